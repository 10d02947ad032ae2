"""A step in a copy of a process that has imported everything is the same step."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from repository import RESTART, TRAINED, Repository, wait_for

ANALYSIS = f"{TRAINED}/analysis.json"
ANALYSE = ("analyse", "--benchmark", "streets", "--method", "self_training")
TRAIN = ("train", "--benchmark", "streets", "--method", "self_training")


class Warm(Repository):
    """A repository in which steps go to a warm process."""

    def __init__(self, folder: Path, place: str) -> None:
        super().__init__(folder)
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, "-m", "udaseg.workflow.warm", place],
            stdin=subprocess.PIPE,
            cwd=folder,
            env=Repository(folder).environment,
            start_new_session=True,
        )
        wait_for(Path(place).exists)

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"UDASEG_WARM": self.place}

    def steps(self) -> list[psutil.Process]:
        """What the process has become for steps that run now."""
        return psutil.Process(self.process.pid).children()

    def answer(self, **changed: Any) -> dict[str, Any]:
        """What it says to a step of another or the same interpreter."""
        request = {"argv": ["figure", "--help"], "folder": str(self.folder), "environment": self.environment}
        with socket.socket(socket.AF_UNIX) as line, open(os.devnull, "r+b") as nothing:
            line.connect(self.place)
            text = json.dumps(request | {"python": self.python(), "heard": []} | changed).encode() + b"\n"
            socket.send_fds(line, [text], [nothing.fileno()] * 3)
            return dict(json.loads(line.makefile().readline()))

    def python(self) -> list[str]:
        """As a step of this repository names itself."""
        code = "import json, sys; sys.path[0] = sys.argv[1]; from udaseg.workflow.warm import interpreter; print(json.dumps(interpreter()))"
        return list(json.loads(Repository(self.folder).run(sys.executable, "-c", code, str(self.folder))))


@pytest.fixture
def warm(finished: Repository) -> Iterator[Warm]:
    folder = tempfile.mkdtemp(prefix="udaseg-")
    repository = Warm(finished.folder, f"{folder}/warm")
    yield repository
    assert repository.process.stdin is not None
    repository.process.stdin.close()
    assert repository.process.wait(30) == 0  # it ends with what started it
    shutil.rmtree(folder)


def test_a_step_gives_the_same_files_and_words(warm: Warm) -> None:
    before = (warm / ANALYSIS).read_bytes()
    alone = Repository(warm.folder).udaseg(*ANALYSE)
    (warm / ANALYSIS).unlink()
    assert untimed(warm.udaseg(*ANALYSE)) == untimed(alone)
    assert (warm / ANALYSIS).read_bytes() == before
    refused = ("evaluate", "--benchmark", "streets", "--method", "nobody")
    assert warm.udaseg(*refused, expect=2) == Repository(warm.folder).udaseg(*refused, expect=2)


def test_what_does_not_fit_runs_alone(warm: Warm) -> None:
    assert "pid" in warm.answer()
    assert warm.answer(python=["another"]) == {"no": "another environment"}
    source = warm / "src/udaseg/figures/style.py"
    source.write_text(source.read_text() + "\n# edited\n")
    assert warm.answer() == {"no": "edited code"}
    (warm / ANALYSIS).unlink()
    assert "cells" in warm.udaseg(*ANALYSE)
    assert (warm / ANALYSIS).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_reaches_the_step(number: signal.Signals, warm: Warm) -> None:
    process = in_training(warm)
    process.send_signal(number)
    assert process.wait(60) == 75
    assert "the same command goes on from there" in (warm / ".started").read_text()
    assert warm.steps() == []


def test_a_step_ends_with_who_waits_for_it(warm: Warm) -> None:
    process = in_training(warm)
    process.kill()
    wait_for(lambda: warm.steps() == [], 20)


def test_who_waits_ends_when_the_process_is_killed(finished: Repository, tmp_path: Path) -> None:
    folder = tempfile.mkdtemp(prefix="udaseg-")
    warm = Warm(finished.folder, f"{folder}/warm")
    process = in_training(warm)
    (step,) = warm.steps()
    warm.process.kill()
    assert process.wait(60) == 128 + signal.SIGKILL
    wait_for(lambda: not step.is_running() or step.status() == psutil.STATUS_ZOMBIE, 20)
    shutil.rmtree(folder)


def untimed(text: str) -> str:
    return re.sub(r"[0-9.]+ s\b", "", text)


def in_training(warm: Warm) -> subprocess.Popen[bytes]:
    """A training that was handed over and has saved its state."""
    warm.set("benchmarks/streets/train/steps", 400)
    warm.set("benchmarks/streets/init", {"default": "none"})
    process = warm.start(sys.executable, "-m", "udaseg", *TRAIN)
    wait_for(lambda: (warm / f"{RESTART}/state.pt").exists() or process.poll() is not None)
    assert process.poll() is None, (warm / ".started").read_text()
    assert len(warm.steps()) == 1
    return process
