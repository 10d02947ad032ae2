"""Rounds of labels for the target: complete or absent, resumed with the same bits, made again after a mishap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_project import Project
from udaseg import params
from udaseg.data.sampling import Views
from udaseg.engine import rounds, runtime, training
from udaseg.errors import Interrupted, UserError
from udaseg.methods import base, source_only


@pytest.mark.parametrize(("steps", "count"), [(10, 3), (400, 10), (7, 7), (2, 4), (5, 1)])
def test_rounds_divide_the_run(steps: int, count: int) -> None:
    begins = [step for step in range(steps) if rounds.begins(step, steps, count)]
    assert begins[0] == 0 and len(begins) == min(steps, count)
    for first, following in zip(begins, [*begins[1:], steps], strict=True):
        assert {rounds.end(step, steps, count) for step in range(first, following)} == {following}
        assert len({rounds.round_of(step, steps, count) for step in range(first, following)}) == 1
    assert not any(rounds.begins(step, steps, 0) for step in range(steps))
    assert rounds.end(0, steps, 0) == steps


class Rounds(source_only.SourceOnlyMethod):
    """Learns its own labels of the target, which say how many rounds there were."""

    made = 0

    @property
    def rounds(self) -> int:
        return 3

    def views(self) -> Views:
        return Views(static=True)

    def label_target(self, images: base.Images, labels: np.ndarray) -> None:
        type(self).made += 1
        with torch.no_grad():
            self.student.eval()
            for n, image in images():
                logits = self.student.predict(self.student.normalise(image[None]), (image.shape[1], image.shape[2]))
                labels[n] = logits.argmax(dim=1)[0].to(torch.uint8).numpy()
            self.student.train()

    def losses(self, batch, step):  # type: ignore[no-untyped-def]
        assert batch.static is not None and batch.target is not None
        for image, label in ((batch.image, batch.label), (batch.target, batch.static)):
            yield {"loss": self.student.loss(self.student(self.student.normalise(image)), label)}


def train(project: Project) -> Path:
    run = params.load(project.folder / "params.yaml").resolve("streets", "source_only", 0)
    training.train(run, run.folder)
    return project.folder / run.folder


@pytest.fixture
def start(make_project: Callable[[str], Project], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Project]:
    monkeypatch.setattr(source_only, "METHOD", Rounds)
    monkeypatch.setattr(Rounds, "made", 0)

    def begin(name: str) -> Project:
        project = make_project(name)
        project.set("benchmarks/streets/init", {"default": "none"})
        for key, value in (("steps", 9), ("save_every", 2), ("log_every", 1)):
            project.set(f"benchmarks/streets/train/{key}", value)
        return project

    return begin


def content(folder: Path) -> tuple[bytes, str]:
    return (folder / "model.safetensors").read_bytes(), (folder / "history.csv").read_text()


@pytest.mark.parametrize("stop_after", [2, 3, 4, 7])
def test_a_stopped_run_goes_on_with_the_labels_of_its_round(
    start: Callable[[str], Project], monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    expected = content(train(start("whole")))
    assert Rounds.made == 3
    project = start("stopped")
    calls = []

    def stop(self: runtime.StopRequest, where: torch.device) -> bool:
        calls.append(1)
        return len(calls) == stop_after

    with monkeypatch.context() as patch:
        patch.setattr(runtime.StopRequest, "on_any_rank", stop)
        with pytest.raises(Interrupted):
            train(project)
    assert content(train(project)) == expected
    assert not Path("results/.restart/streets/source_only/seed0").exists()


def test_labels_of_another_run_are_refused(start: Callable[[str], Project], monkeypatch: pytest.MonkeyPatch) -> None:
    project = start("project")
    with monkeypatch.context() as patch:
        patch.setattr(runtime.StopRequest, "on_any_rank", lambda self, where: True)
        with pytest.raises(Interrupted):
            train(project)
    labels = Path("results/.restart/streets/source_only/seed0/labels0.npy")
    labels.write_bytes(labels.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"labels0.npy: damaged; expected the labels of round 0"):
        train(project)
    labels.unlink()
    with pytest.raises(UserError, match=r"labels0.npy: not found"):
        train(project)
