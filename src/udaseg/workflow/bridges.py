"""Snakemake and DVC on one pipeline: the commands between their two ledgers (docs/workflow.md).

`stage` lets DVC run one rule. `record` and `sync` rebuild one tool's records where the other vouches for every result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from udaseg import params
from udaseg.errors import Interrupted, UserError
from udaseg.workflow import altered, guard, plan, stopped

SNAKEMAKE = (sys.executable, "-m", "snakemake")
DVC = (sys.executable, "-m", "dvc")
LOCKS = Path(".snakemake/locks")
LOCKED = (
    "Snakemake's lock is held: another run is at work here (wait for it), or one was killed (then `snakemake --unlock` and "
    "run this again)"
)
log = logging.getLogger("udaseg")


def stage(rule: str, target: str) -> int:
    """Make `target` with `rule` and nothing else; what the commands of dvc.yaml call.

    DVC removes a stage's outputs first. A training that is finished all the same is not made again (`engine.training.KEPT`).

    Returns:
        Snakemake's exit code.

    Raises:
        Interrupted: a stop signal came; Snakemake and the training have ended.
    """
    command = [*SNAKEMAKE, "--cores", "all", "--force", "--rerun-incomplete", "--quiet", "progress", "rules", "host"]
    command += ["--allowed-rules", rule, "--", target]
    signals: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        """Once: a second signal would make Snakemake leave before the training has saved its state."""
        if not signals:
            signals.append(number)
            interrupt(running)

    began = time.time() - 1
    former = {number: signal.signal(number, hand_on) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    try:
        # A group of its own: Ctrl-C reaches only this process, which hands it on.
        running.append(subprocess.Popen(command, env=environment(), process_group=0))
        if signals:  # while it started
            interrupt(running)
        code = running[0].wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if signals and code:  # a stage that was done all the same is not taken back
        raise Interrupted(f"{target}: {stopped.told(stopped.saved(began))}")
    if code:
        log.error("%s: %s", target, LOCKED if locked() else stopped.told(stopped.saved(began)))
    return code if code >= 0 else 128 - code


def interrupt(running: list[subprocess.Popen[bytes]]) -> None:
    """SIGINT to the process group of each: at SIGTERM Snakemake would wait for the training to finish."""
    for process in running:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGINT)


def record() -> None:
    """After `snakemake`: DVC records what was made.

    Raises:
        UserError: Snakemake has work left, so there is nothing to vouch for; a result that no job has made.
    """
    altered.check_made(status())  # first: what is made from an altered file is no better
    planned = subprocess.run([*SNAKEMAKE, "-n"], capture_output=True, text=True, check=False)
    text = planned.stdout + planned.stderr
    if planned.returncode:
        raise UserError(f"Snakemake cannot plan: {last_line(text)}")
    if "Nothing to be done" not in text:
        raise UserError("Snakemake has work left, so the results are not final; run `snakemake`, then this again")
    commit()
    log.info("recorded in dvc.lock; `git status` shows the scores that changed")


def commit(*stages: str) -> None:
    """Let DVC record what is there: the named stages, or all."""
    plan.write_identities(params.load())
    wanted = ["identity", *stages] if stages else []
    done = subprocess.run([*DVC, "commit", "--force", *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`dvc commit --force` failed: {last_line(done.stdout + done.stderr)}")


def sync() -> None:
    """After `git clone`, `dvc pull`, `dvc checkout` or a restored `dvc repro`: Snakemake records what is there.

    Raises:
        UserError: the workspace is not what dvc.lock says.
    """
    if found := stale():
        raise UserError(
            f"the workspace is not what dvc.lock says ({len(found)} stages, the first: {found[0]}; see `dvc status`), so "
            f"Snakemake must not take it over; `dvc checkout --force` restores what was recorded, `dvc repro` makes what is stale"
        )
    touch("--forceall")
    log.info("Snakemake's records are complete")


def stale(*stages: str) -> list[str]:
    """Stages whose results are not those of dvc.lock: of those named and all before them, or of all.

    The stage `identity` is left out: what it looks at has been looked at here.

    Raises:
        UserError: DVC cannot tell.
    """
    return sorted(name for name in status(*stages) if name != "identity")


def status(*stages: str) -> dict[str, Any]:
    """What differs from dvc.lock, by stage: of those named and all before them, or of all.

    Raises:
        UserError: DVC cannot tell.
    """
    plan.write_identities(params.load())
    command = [*DVC, "status", "--json", *(["--with-deps", *stages] if stages else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`dvc status` failed: {last_line(done.stdout + done.stderr)}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def touch(*options: str) -> None:
    """Let Snakemake record results as they are, without running anything."""
    command = [*SNAKEMAKE, "--touch", "--cores", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise UserError(LOCKED if locked() else f"Snakemake refused: {last_line(done.stdout + done.stderr)}")


def environment() -> dict[str, str]:
    """For a Snakemake that need not ask where results come from, with this Python first in the search path of its rules."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {guard.OFF: "off", "PATH": path}


def locked() -> bool:
    return LOCKS.is_dir() and any(LOCKS.iterdir())


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
