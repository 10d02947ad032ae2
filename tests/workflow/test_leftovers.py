"""Halves of files that killed commands have left: removed by the next command that is alone, and by no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from udaseg.workflow.leftovers import at_work

HALVES = ("results/streets/.report.html.0123456789abcdef.part", "results/streets/bcl/seed0/.model.safetensors.0123.part", "figures/streets/.iou.png.01.part")  # fmt: skip
OURS = (
    "results/.restart/streets/bcl/seed0/.state.pt.01.part",
    "results/streets/report.html",
    "results/streets/.hidden",
)
WRITER = """
import sys, time
from udaseg import artifacts
from udaseg.workflow.leftovers import at_work
with at_work("report"), artifacts.writing("results/streets/report.html") as half:
    half.write_text("half")
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (*HALVES, *OURS):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    return tmp_path


def test_what_a_killed_command_left_goes_and_what_one_at_work_writes_stays(here: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, text=True)
    assert writer.stdout and writer.stdout.readline()
    assert not any(Path(name).exists() for name in HALVES) and all(Path(name).exists() for name in OURS)
    with at_work("compare"):
        (half,) = Path("results/streets").glob(".report.html.*.part")
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    with at_work("why"):  # it reads only
        assert half.exists()
    with at_work("compare"):
        assert not half.exists() and all(Path(name).exists() for name in OURS)


def test_a_folder_that_cannot_be_made_hinders_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results").write_text("a file")
    with at_work("train"):
        assert Path("results").read_text() == "a file"
