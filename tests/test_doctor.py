"""`udaseg doctor`: a line for each thing, the next action for what is not well, and no check that hides another."""

from __future__ import annotations

import fcntl
import re
import socket
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from tiny_project import Project
from udaseg.doctor import Finding, doctor, show
from udaseg.workflow import bridges, guard, lease

MARKS = re.compile(r"^(ok|note|problem) +(.*)")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC says "nothing changed" at once; no mirror, no GPU; no questions about data that were prepared by hand."""
    monkeypatch.setattr(bridges, "DVC", (sys.executable, "-c", "print('{}')"))
    monkeypatch.setattr(lease, "pool", list)
    monkeypatch.setenv(guard.OFF, "off")
    monkeypatch.delenv("UDASEG_MIRROR", raising=False)


def test_lines_are_as_wide_as_the_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    longest = {}
    for columns in (80, 120, 400):
        monkeypatch.setenv("COLUMNS", str(columns))
        show(Finding("note", "many words " * 40, "a command " * 30))
        longest[columns] = max(map(len, capsys.readouterr().out.splitlines()))
    assert 70 < longest[80] <= 80 < 110 < longest[120] == longest[400] <= 120


def told(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, str]]:
    """(mark, text, next action) of each finding, lines joined."""
    found: list[list[str]] = []
    for line in capsys.readouterr().out.splitlines():
        assert len(line) <= 80 and "\x1b" not in line
        if match := MARKS.match(line):
            found.append([*match.groups(), ""])
        elif line.startswith("         -> "):
            found[-1][2] = line[12:]
        elif line.startswith("         "):
            found[-1][2 if found[-1][2] else 1] += " " + line.strip()
    return [(mark, text, do) for mark, text, do in found]


def one(found: list[tuple[str, str, str]], words: str) -> tuple[str, str, str]:
    (finding,) = [finding for finding in found if words in finding[1]]
    return finding


def test_a_healthy_project(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(Path("params.yaml")) == 0
    found = told(capsys)
    assert {mark for mark, _, _ in found} == {"ok", "note"}
    assert all(do for mark, _, do in found if mark != "ok")
    assert one(found, "data streets_game")[1] == "data streets_game: prepared for streets"
    assert one(found, "PyTorch")[0] == one(found, "GB free")[0] == one(found, "weights")[0] == "ok"
    assert one(found, "runs trained") == ("note", "streets: 0 of 2 runs trained, 0 scored", "snakemake")


def test_what_is_missing_is_named_with_what_to_do(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.folder / "data/streets/streets_game-64x32/images.zip").unlink()
    project.set("benchmarks/streets/target", "cityscapes/train")
    project.set("datasets/cityscapes", {"format": "cityscapes", "root": "raw"})
    project.set("benchmarks/streets/evaluate", ["mine/train"])
    project.set("datasets/mine", {"format": "folder", "root": "nowhere"})
    project.set("benchmarks/streets/init", {})
    project.set("benchmarks/streets/model/backbone", "resnet10t")
    project.set("benchmarks/streets/model/weights", "resnet10t.of_mine")
    project.set("run/device", "cuda")
    project.set("run/threads", 4096)
    monkeypatch.setenv("UDASEG_MIRROR", "/nowhere")
    (project.folder / "requirements.lock").write_text(
        "# pins\nnumpy==0.1 \\\n    --hash=sha256:0a \\\n    --hash=sha256:0b\nno-such-package==1\n"
    )
    assert doctor(Path("params.yaml")) == 1
    found = told(capsys)
    assert one(found, "data streets_game")[1].endswith("found; prepared by the next `snakemake`")
    mark, text, do = one(found, "cityscapes: found nothing at raw")
    assert mark == "problem" and "www.cityscapes-dataset.com" in text and "raw" in do
    assert one(found, "data mine")[0] == "problem" and "no folder nowhere" in one(found, "data mine")[1]
    assert one(found, "resnet10t.of_mine")[::2] == ("problem", "see docs/models.md")
    assert one(found, "UDASEG_MIRROR: no folder /nowhere")[0] == "problem"
    assert one(found, "run.device is cuda")[2] == "say `device: auto` in params.yaml"
    assert "set run.threads" in one(found, "4096 threads")[2]
    mark, text, do = one(found, "2 of 2 packages")
    assert mark == "note" and "no-such-package is missing" in text and do.endswith("-r requirements.lock")


def test_weights_are_looked_for_and_not_fetched(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project.folder / "hub"))
    project.set("benchmarks/streets/init", {})
    project.set("benchmarks/streets/model/backbone", "resnet10t")
    project.set("benchmarks/streets/model/weights", "timm:c3_in1k")
    assert doctor(Path("params.yaml")) == 0
    mark, text, do = one(told(capsys), "weights of streets")
    assert mark == "note" and "not on this machine" in text and "network" in do


def test_a_check_that_fails_hides_no_other(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor(Path("params.yaml"))
    before = told(capsys)

    def broken() -> list[str]:
        raise RuntimeError("no answer")

    monkeypatch.setattr(lease, "pool", broken)
    assert doctor(Path("params.yaml")) == 1
    after = told(capsys)
    assert one(after, "the check of devices failed: RuntimeError: no answer")[0] == "problem"
    kept = [finding for finding in before if "no GPU" not in finding[1] and "GB free" not in finding[1]]
    assert [finding for finding in kept if finding not in after] == []


def test_wrong_parameters_leave_the_machine_to_look_at(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.set("run/thread", 2)
    assert doctor(Path("params.yaml")) == 1
    found = told(capsys)
    assert "did you mean 'threads'" in one(found, "unknown key 'thread'")[1]
    assert one(found, "PyTorch")[0] == "ok"
    assert one(found, "not looked at")[0] == "note"


def test_results_without_records_and_stopped_trainings(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(guard.OFF)
    model = project.folder / "results/streets/self_training/seed0/model.safetensors"
    model.parent.mkdir(parents=True)
    model.touch()
    for method in ("self_training", "source_only"):
        restart = project.folder / f"results/.restart/streets/{method}/seed0"
        restart.mkdir(parents=True)
        (restart / "state.pt").touch()
        (restart / "lock").touch()
    with (restart / "lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert doctor(Path("params.yaml")) == 1
    found = told(capsys)
    assert one(found, "no record of")[::2] == ("problem", "udaseg sync")
    assert one(found, "stopped before its end")[2] == "snakemake results/streets/self_training/seed0/model.safetensors"
    assert one(found, "training now") == ("ok", "results/streets/source_only/seed0: training now", "")
