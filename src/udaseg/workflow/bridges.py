"""Snakemake and DVC on one pipeline: the commands between their two ledgers (docs/workflow.md).

`stage` lets DVC run one rule. `record` and `sync` rebuild one tool's records where the other vouches for every result.
`import_run` takes a run from elsewhere where hashes vouch for it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from udaseg.artifacts import TRAINING_CODE, code_hash, file_hash, read_json, writing
from udaseg.errors import Interrupted, UserError
from udaseg.params import Params, Run
from udaseg.workflow import guard

SNAKEMAKE = (sys.executable, "-m", "snakemake")
DVC = (sys.executable, "-m", "dvc")
LOCKS = Path(".snakemake/locks")
LOCKED = (
    "Snakemake's lock is held: another run is at work here (wait for it), or one was killed (then `snakemake --unlock` and "
    "run this again)"
)
RECORDS = ("metrics.json", "run.json", "history.csv")
log = logging.getLogger("udaseg")


def stage(rule: str, target: str) -> int:
    """Make `target` with `rule` and nothing else; what every command of dvc.yaml calls.

    Returns:
        Snakemake's exit code.

    Raises:
        Interrupted: a stop signal came; Snakemake and the training have ended.
    """
    command = [*SNAKEMAKE, "--cores", "all", "--force", "--rerun-incomplete", "--quiet", "progress", "rules", "host"]
    command += ["--allowed-rules", rule, "--", target]
    stopped: list[int] = []
    # A group of its own: Ctrl-C reaches only this process, which hands it on once. A second signal would make Snakemake
    # leave before the training has saved its state.
    process = subprocess.Popen(command, env=environment(), process_group=0)

    def hand_on(number: int, frame: FrameType | None) -> None:
        if not stopped:
            stopped.append(number)
            os.killpg(process.pid, signal.SIGINT)  # at SIGTERM Snakemake would wait for the training to finish

    former = {number: signal.signal(number, hand_on) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if stopped:
        raise Interrupted(f"{target}: stopped; a training has saved its state, and the same command goes on from there")
    if code and locked():
        log.error("%s: %s", target, LOCKED)
    return code if code >= 0 else 128 - code


def record() -> None:
    """After `snakemake`: DVC records what was made.

    Raises:
        UserError: Snakemake has work left, so there is nothing to vouch for.
    """
    plan = subprocess.run([*SNAKEMAKE, "-n"], capture_output=True, text=True, check=False)
    text = plan.stdout + plan.stderr
    if plan.returncode:
        raise UserError(f"Snakemake cannot plan: {last_line(text)}")
    if "Nothing to be done" not in text:
        raise UserError("Snakemake has work left, so the results are not final; run `snakemake`, then this again")
    done = subprocess.run([*DVC, "commit", "--force"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`dvc commit --force` failed: {last_line(done.stdout + done.stderr)}")
    log.info("recorded in dvc.lock; `git status` shows the scores that changed")


def sync() -> None:
    """After `git clone`, `dvc pull`, `dvc checkout` or a restored `dvc repro`: Snakemake records what is there.

    Raises:
        UserError: the workspace is not what dvc.lock says.
    """
    status = subprocess.run([*DVC, "status", "--quiet"], capture_output=True, text=True, check=False)
    if status.returncode:
        raise UserError(
            f"the workspace is not what dvc.lock says ({last_line(status.stdout + status.stderr) or 'see `dvc status`'}), so "
            f"Snakemake must not take it over; `dvc checkout --force` restores what was recorded, `dvc repro` makes what is stale"
        )
    touch("--forceall")
    log.info("Snakemake's records are complete")


def touch(*options: str) -> None:
    """Let Snakemake record results as they are, without running anything."""
    command = [*SNAKEMAKE, "--touch", "--cores", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise UserError(LOCKED if locked() else f"Snakemake refused: {last_line(done.stdout + done.stderr)}")


def import_run(params: Params, folder: Path, *, reference: bool) -> Path:
    """Take a run made on another machine into results/, or its scores into results/reference/.

    Into results/ the model comes too and Snakemake records the training as done; scoring is repeated here.

    Args:
        params: params.yaml of this checkout.
        folder: a run's folder, as `udaseg train` and `evaluate` leave it.
        reference: take the committed records alone (metrics.json, run.json, history.csv).

    Raises:
        UserError: a file is missing, or the run was made with other parameters, code or data than those of this checkout.
    """
    made = read_json(folder / "run.json", "the record of a training run")
    try:
        run = params.resolve(made["benchmark"], made["method"], int(made["seed"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder / 'run.json'}: found no benchmark, method and seed; expected a run of udaseg"
        ) from None
    read_json(folder / "metrics.json", f"the scores of the run; run `udaseg evaluate` where {folder} was made")
    for name in RECORDS if reference else (*RECORDS, "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: not found; expected a finished run (--reference needs no model)")
    same_hashes(folder, made, run, reference=reference)
    home = Path("results/reference", *run.folder.parts[1:]) if reference else run.folder
    for name in RECORDS if reference else (*RECORDS, "model.safetensors"):
        with writing(home / name) as temporary:
            temporary.write_bytes((folder / name).read_bytes())
    if not reference:
        touch("--force", "--allowed-rules", "train", "--", str(home / "model.safetensors"))
    return home


def same_hashes(folder: Path, made: dict[str, Any], run: Run, *, reference: bool) -> None:
    data = Path("data", run.benchmark_name, "data.json")
    expected = {"params_hash": run.hash, "code_hash": code_hash(*TRAINING_CODE)}
    if data.exists():
        expected["data_hash"] = file_hash(data)
    elif not reference:
        raise UserError(f"{data}: not found, so the run's data cannot be compared; run `snakemake {data}` first")
    for key, value in expected.items():
        if made.get(key) != value:
            raise UserError(
                f"{folder / 'run.json'}: {key}: found {made.get(key)}, expected {value}; check out the revision and "
                f"params.yaml that made the run ({made.get('revision') or 'revision not recorded'}), or train again"
            )
    if not reference:
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", framework="numpy") as model:
            header = model.metadata() or {}
        if header.get("params_hash") != run.hash:
            raise UserError(
                f"{folder / 'model.safetensors'}: params_hash: found {header.get('params_hash')}, expected {run.hash}; "
                f"the model does not belong to the run.json beside it"
            )


def environment() -> dict[str, str]:
    """For a Snakemake that need not ask where results come from, with this Python first in the search path of its rules."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {guard.OFF: "off", "PATH": path}


def locked() -> bool:
    return LOCKS.is_dir() and any(LOCKS.iterdir())


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
