"""Stopped, killed or failed: training goes on where it was, and no old score passes as a new one."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from repository import ONE_METHOD, RESTART, TRAINED, Repository, interrupt, kill_tree, wait_for

MODEL = f"{TRAINED}/model.safetensors"
COMMANDS = {
    "snakemake": ("snakemake", "--cores", "2", MODEL),
    "dvc": ("dvc", "repro", "--single-item", "train@streets-self_training-0"),
}
STEPS = 50  # some seconds: it is stopped after the second of so many saves
LONG = 400  # longer than another command takes to begin


def longer(repository: Repository, steps: int = STEPS) -> None:
    """A training that lasts long enough to be stopped, and needs nothing but the data."""
    repository.set("benchmarks/streets/init", {"default": "none"})
    repository.set("benchmarks/streets/train/steps", steps)
    repository.set("benchmarks/streets/train/log_every", 10)
    repository.udaseg("identity")  # for `dvc repro --single-item`, which runs no stage before its own


def content(repository: Repository) -> tuple[bytes, str]:
    return (repository / MODEL).read_bytes(), (repository / f"{TRAINED}/history.csv").read_text()


def in_training(repository: Repository, tool: str) -> subprocess.Popen[bytes]:
    """Start the training with a tool and wait until its state has been saved twice."""
    process = repository.start(*COMMANDS[tool])
    wait_for(lambda: (repository / f"{RESTART}/state.previous.pt").exists() or process.poll() is not None)
    assert process.poll() is None, (repository / ".started").read_text()
    return process


@pytest.fixture(scope="module")
def undisturbed(finished_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "repository"
    subprocess.run(["cp", "-a", str(finished_repository), str(folder)], check=True)
    repository = Repository(folder)
    longer(repository)
    shutil.rmtree(folder / TRAINED)
    repository.udaseg("train", "--benchmark", "streets", "--method", "self_training")
    return content(repository)


@pytest.mark.parametrize("stop", [interrupt, kill_tree])
@pytest.mark.parametrize("tool", ["snakemake", "dvc"])
def test_i_12_stopped_training_goes_on(
    tool: str, stop: Callable[[subprocess.Popen[bytes]], None], finished: Repository, undisturbed: tuple[bytes, str]
) -> None:
    longer(finished)
    process = in_training(finished, tool)
    stop(process)
    assert process.returncode != 0
    assert not (finished / MODEL).exists()
    if stop is interrupt:
        step = (finished / f"{RESTART}/step").read_text().strip()
        told = f"not finished, but saved: streets/self_training/0 at step {step}; the same command goes on from there"
        *before, last = (finished / ".started").read_text().splitlines()
        if tool == "dvc":  # which has the last word itself
            assert last.startswith("ERROR: failed to reproduce")
            last = before[-1]
        assert last.endswith(told)
    if stop is kill_tree:  # only now is a lock left behind
        text = finished.run(*COMMANDS[tool], expect=None)
        assert "snakemake --unlock" in text or "Directory cannot be locked" in text
        finished.snakemake("--unlock")
    text = finished.run(*COMMANDS[tool])
    (step,) = re.findall(r"going on from step (\d+)", text)
    assert 0 < int(step) < STEPS
    assert content(finished) == undisturbed
    assert not (finished / f"{RESTART}/state.pt").exists()
    (log,) = (finished / "logs/train/streets/self_training").iterdir()  # all that was said, by both attempts
    assert re.search(
        rf"starts from random weights.*^--- again, .*going on from step.*^results/streets/self_training/seed0: {STEPS} steps",
        log.read_text(),
        re.DOTALL | re.MULTILINE,
    )
    finished.run(*COMMANDS["snakemake"], "--force")  # a new job, and a log of its own
    assert "--- again" not in log.read_text() and "trained already" in log.read_text()


def test_i_13_no_going_on_with_other_parameters(finished: Repository) -> None:
    longer(finished)
    kill_tree(in_training(finished, "snakemake"))
    finished.snakemake("--unlock")
    finished.set("benchmarks/streets/train/steps", 2)
    assert "going on from" not in finished.run(*COMMANDS["snakemake"])
    assert (finished / MODEL).exists()


def test_i_16_a_run_is_not_made_twice(finished: Repository) -> None:
    longer(finished, LONG)
    process = in_training(finished, "snakemake")
    text = finished.udaseg("stage", "train", MODEL, expect=1)
    assert "another run is at work here" in text
    assert "snakemake --unlock" in text
    assert process.poll() is None
    interrupt(process)


def test_i_11_no_old_score_after_a_failure(finished: Repository) -> None:
    finished.set("methods/self_training/threshold", 0.9)
    (finished / RESTART).mkdir(parents=True, exist_ok=True)
    with (finished / f"{RESTART}/lock").open("a") as handle:  # the training finds its folder in use, and fails
        fcntl.flock(handle, fcntl.LOCK_EX)
        text = finished.snakemake("--keep-going", expect=1)
    assert "in use by" in text
    assert "non-zero exit code" in text and "output files are missing" not in text  # seen behind the pipe of the log
    assert finished.planned() == ONE_METHOD
    assert "work left" in finished.udaseg("record", expect=2)
