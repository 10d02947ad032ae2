"""Curves for TensorBoard show what history.csv says, follow a resumed run, and touch no result."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tiny_project import Project
from udaseg import params
from udaseg.artifacts import file_hash
from udaseg.engine import runtime, trainer, training
from udaseg.engine.curves import Curves
from udaseg.errors import Interrupted, UserError

EVENTS = Path("logs/tensorboard/streets/self_training/seed0")


def run_of(project: Project, tensorboard: bool = True) -> params.Run:
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("benchmarks/streets/train/steps", 4)
    project.set("run/tensorboard", tensorboard)
    return params.load(project.folder / "params.yaml").resolve("streets", "self_training", 0)


def shown(folder: Path = EVENTS) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every curve, as TensorBoard reads them."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_curves_are_the_history_and_change_no_bit(make_project: Callable[[str], Project]) -> None:
    plain = run_of(make_project("plain"), tensorboard=False)
    training.train(plain, plain.folder)
    expected = file_hash(plain.folder / "model.safetensors"), (plain.folder / "history.csv").read_text()
    assert not EVENTS.exists()

    run = run_of(make_project("watched"))
    assert run.hash == plain.hash
    training.train(run, run.folder)
    assert (file_hash(run.folder / "model.safetensors"), (run.folder / "history.csv").read_text()) == expected
    curves = shown()
    assert all(value > 0 for _, value in curves.pop("images_per_second"))
    for row in csv.DictReader(expected[1].splitlines()):
        for name, value in row.items():
            if name != "step":
                curve = dict(curves[name if name == "learning_rate" else f"loss/{name}"])
                assert curve[int(row["step"])] == pytest.approx(float(value), rel=1e-5)
    assert {len(curve) for curve in curves.values()} == {4}


def test_a_resumed_run_shows_every_step_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(project)
    project.set("benchmarks/streets/train/save_every", 3)  # the run is stopped at step 4, and repeats it from step 3
    run = params.load(project.folder / "params.yaml").resolve("streets", "self_training", 0)

    def power_cut(self: trainer.Loop, request: runtime.StopRequest) -> None:
        fit(self, request)
        raise Interrupted("after the last row, before anything is written")

    fit = trainer.Loop.fit
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Loop, "fit", power_cut)
        with pytest.raises(Interrupted):
            training.train(run, run.folder)
    before = shown()["loss/source"]
    training.train(run, run.folder)
    assert shown()["loss/source"] == before
    assert [step for step, _ in before] == [1, 2, 3, 4]
    assert len(list(EVENTS.iterdir())) == 2


def test_without_the_package_training_does_not_start(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(project)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"python -m pip install tensorboard") as caught:
        training.train(run, run.folder)
    assert "\n" not in str(caught.value)
    assert not (run.folder / "history.csv").exists()


def test_a_full_disk_ends_the_curves_and_not_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    curves = Curves(tmp_path / "curves", 0)
    row = {"step": 1, "learning_rate": 0.1, "source": float(torch.tensor(2.0))}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    assert curves.writer is not None
    curves.writer.add_scalar = full  # type: ignore[method-assign]
    curves.add(row, 3.0)
    curves.add(row | {"step": 2}, 3.0)
    assert caplog.text.count("No space left on device") == 1
