"""What is done to a command, its files and its folders, and how the cause is taken away again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from rounds import BENCHMARK, DAMAGE, FULL, LIMIT, READ_ONLY, Job, Round
from world import Place, Reference, Started, Warm

STATE = ("state.pt", "state.previous.pt")


class Impossible(Exception):
    """This machine does not let the drill do that; the round is counted as skipped."""


# --- signals ----------------------------------------------------------------------------------------------------------


def strike(spec: Round, place: Place, command: Started, seconds: float) -> bool:
    """Send the signal of a round at its moment; whether there was somebody to send it to.

    Args:
        seconds: how long the undisturbed command takes, or the job where the place is one.
    """
    number = signal.Signals[spec.fault]
    find: Callable[[], list[psutil.Process]] | None = None
    if spec.place in ("job", "rank", "loader worker"):
        find = finder(spec, place)
        if not wait_until(lambda: bool(find()), command):
            return False
    if not sleep(spec.moment * seconds, command):
        return False
    if find:
        targets = find()
        if spec.place == "rank" and targets:
            targets = [targets[spec.number % len(targets)]]
        targets = targets[:1]
    elif spec.place == "all":
        targets = [command.process, *command.process.children(recursive=True), *place.processes()]
    else:
        targets = [command.process]
    if not targets:
        return False
    if spec.place == "group":
        os.killpg(command.pid, number)
        return True
    for target in targets:
        with contextlib.suppress(psutil.NoSuchProcess):
            target.send_signal(number)
    return True


def finder(spec: Round, place: Place) -> Callable[[], list[psutil.Process]]:
    """Finds the processes of a job, the ranks of a training, the loader processes of one."""

    def find() -> list[psutil.Process]:
        jobs = [p for p in place.processes() if step_of(p) == spec.job[0]]
        ids = {p.pid for p in jobs}
        loaders = [p for p in jobs if parent(p) in ids]
        if spec.place == "loader worker" and spec.start == "step":
            return [p for p in place.processes() if parent(p) in {q.pid for q in place.processes()}]
        return loaders if spec.place == "loader worker" else [p for p in jobs if p not in loaders]

    return find


def step_of(process: psutil.Process) -> str:
    """The step that a process runs itself: "" for `udaseg with-gpus ...`, a shell, a launcher."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        for n, word in enumerate(words[:6]):
            if word == "-m":
                return words[n + 2] if words[n + 1] == "udaseg" and len(words) > n + 2 else ""
    return ""


def parent(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return 0


def wait_until(condition: Callable[[], bool], command: Started) -> bool:
    """Whether it comes about while the command runs."""
    while command.running():
        if condition():
            return True
        time.sleep(0.02)
    return False


def sleep(seconds: float, command: Started) -> bool:
    end = time.monotonic() + seconds
    while command.running():
        if time.monotonic() >= end:
            return True
        time.sleep(0.005)
    return False


# --- damage -----------------------------------------------------------------------------------------------------------


def files_to_damage(spec: Round, place: Place) -> list[Path]:
    """The files that `spec.place` means."""
    method = spec.job[1] if spec.job[0] in ("evaluate", "analyse", "train") else "self_training"
    run = f"results/{BENCHMARK}/{method}/seed{spec.seed}"
    restart = f"results/.restart/{BENCHMARK}/{'pretrained' if spec.job[0] == 'pretrain' else method}/seed{spec.seed}"
    sets = place.sets()
    if spec.job[0] in ("evaluate",):
        sets = [name for name in sets if "photo" in name]
    data = sets[spec.number % len(sets)]
    found = {
        "@images": [f"{data}/images.zip"],
        "@labels": [f"{data}/labels.zip"],
        "@manifest": [f"{data}/manifest.json"],
        "@data": [f"data/{BENCHMARK}/data.json"],
        "@pretrained": [f"results/{BENCHMARK}/pretrained/seed{spec.seed}/model.safetensors"],
        "@state": [f"{restart}/{STATE[0]}"],
        "@states": [f"{restart}/{name}" for name in STATE],
        "@model": [f"{run}/model.safetensors"],
        "@history": [f"{run}/history.csv"],
        "@record": [f"{run}/run.json"],
        "@summary": [f"results/{BENCHMARK}/summary.json"],
    }
    return [place / name for name in found.get(spec.place, [f"{run}/{spec.place}"])]


def damage(path: Path, spec: Round) -> str:
    """Cut, empty or flip one bit of a file, in place as a failing disk does; says what."""
    about, data = path.stat(), bytearray(path.read_bytes())
    where = min(int(spec.moment * len(data)), len(data) - 1)
    if spec.fault == "bit flipped":
        data[where] ^= 1 << (spec.number % 8)
        said = f"bit {spec.number % 8} of byte {where} of {len(data)}"
    else:
        said = f"{len(data)} bytes cut to {where if spec.fault == 'truncated' else 0}"
        del data[where if spec.fault == "truncated" else 0 :]
    with path.open("r+b") as handle:
        handle.truncate(len(data))
        handle.write(data)
    if spec.again:  # unseen: a disk does not tell when it forgets
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    return said


def begin_training(spec: Round, place: Place, warm: Warm) -> None:
    """Leave the state of a training that was asked to stop."""
    restart = place / f"results/.restart/{BENCHMARK}" / ("pretrained" if spec.job[0] == "pretrain" else spec.job[1])
    command = warm.start(place, place.arguments(spec.job), place / ".log.begun")
    state = restart / f"seed{spec.seed}" / STATE[1]
    assert wait_until(state.exists, command), command.text
    command.process.terminate()
    assert command.wait() == 75, command.text


# --- folders ----------------------------------------------------------------------------------------------------------


class Folders:
    """Mounts and attributes of a round, undone by `heal` (what a user does) and `undo` (what remains)."""

    def __init__(self, place: Place) -> None:
        self.place, self.full, self.undoing = place, [], []  # type: ignore[var-annotated]

    def fill(self, name: str, free: int) -> None:
        """Put a small disk with little room below folder `name`."""
        folder, aside = self.place / name, self.place / f".{name}.aside"
        folder.mkdir(exist_ok=True)
        act("cp", "-a", str(folder), str(aside))
        act("mount", "-t", "tmpfs", "-o", "size=1g", "drill", str(folder))
        self.undoing.append(lambda: act("umount", "--lazy", str(folder)))
        self.full.append(folder)
        act("cp", "-a", f"{aside}/.", str(folder))
        shutil.rmtree(aside)
        about = os.statvfs(folder)
        used = (about.f_blocks - about.f_bfree) * about.f_frsize
        act("mount", "-o", f"remount,size={(used + free) // 1024 + 4}k", str(folder))

    def close(self, folder: Path, way: int) -> str:
        """Make a folder read-only: as a read-only mount (0), as an attribute (1); without root by its mode."""
        if os.geteuid() != 0:
            mode = folder.stat().st_mode
            folder.chmod(0o555)
            self.undoing.append(lambda: folder.chmod(mode))
            return "mode"
        if way == 0:
            act("mount", "--bind", str(folder), str(folder))
            self.undoing.append(lambda: act("umount", "--lazy", str(folder)))
            act("mount", "-o", "remount,bind,ro", str(folder))
            return "mount"
        act("chattr", "+i", str(folder))
        self.undoing.append(lambda: act("chattr", "-i", str(folder)))
        return "attribute"

    def heal(self) -> None:
        """Make room; make folders writable."""
        for folder in self.full:
            act("mount", "-o", "remount,size=1g", str(folder))
        if not self.full:
            self.undo()

    def undo(self) -> None:
        while self.undoing:
            self.undoing.pop()()


def act(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Impossible(f"{command[0]}: {done.stderr.strip()}")


def folder_to_close(spec: Round, place: Place) -> Path:
    """Where the job writes, or a folder above it."""
    if spec.place in ("logs", "data") and spec.place == "logs":
        name = {"compare": "compare", "select": ".", "report": "report"}.get(spec.job[0], f"{spec.job[0]}/{BENCHMARK}")
        folder = place / "logs" / name
    else:
        outputs = place.written_by_hand(spec.job)
        choices = [Path(outputs[0]).parent, Path(outputs[0]).parts[0]]
        if spec.job[0] in ("train", "pretrain"):
            choices += ["results/.restart", "results/.trained"]
        folder = place / choices[int(spec.moment * len(choices))]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def needed(spec: Round, place: Place, reference: Place) -> int:
    """About what the missing jobs write below `spec.place`."""
    names = [
        name for job in (spec.missing or (spec.job,)) for name in place.outputs_of(job) if name.startswith(spec.place)
    ]
    total = sum((reference / name).stat().st_size for name in names)
    if any(job[0] in ("train", "pretrain") for job in spec.missing):
        total *= 4  # two states with optimizer and teacher
    return total


def seconds_of(job: Job, reference: Reference) -> float:
    return float(json.loads((reference.home / "steps" / ".seconds").read_text())[job[0]])


__all__ = ["DAMAGE", "FULL", "LIMIT", "READ_ONLY"]
