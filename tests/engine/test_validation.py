"""Scores on the way and the warning of a collapse: both only look on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tiny_project import Project
from udaseg import cli
from udaseg.artifacts import file_hash
from udaseg.engine.training import Collapse

RUN = ["--benchmark", "streets", "--method", "self_training"]


def history() -> list[dict[str, str]]:
    with Path("results/streets/self_training/seed0/history.csv").open() as handle:
        return list(csv.DictReader(handle))


def test_validation_moves_no_number_and_ends_at_the_score(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("benchmarks/streets/train/steps", 6)
    project.set("benchmarks/streets/train/log_every", 1)
    assert cli.main(["train", *RUN]) == 0
    model = Path("results/streets/self_training/seed0/model.safetensors")
    plain, before = file_hash(model), history()
    for path in (model.parent, Path("results/.trained")):
        path.rename(path.with_name(f"{path.name}.before"))
    project.set("benchmarks/streets/train/validate_every", 2)
    assert cli.main(["train", *RUN]) == 0
    after = history()
    scored = [row["step"] for row in after if row["validation/student"]]
    assert scored == ["2", "4", "6"] and file_hash(model) == plain
    stripped = [{name: text for name, text in row.items() if not name.startswith("validation/")} for row in after]
    assert stripped == before
    assert cli.main(["evaluate", *RUN]) == 0
    metrics = json.loads((model.parent / "metrics.json").read_text())
    assert float(after[-1]["validation/student"]) == pytest.approx(metrics["miou"], abs=1e-6)
    assert float(after[-1]["validation/teacher"]) == pytest.approx(metrics["other"]["teacher"]["miou"], abs=1e-6)
    assert cli.main(["train", *RUN]) == 0  # the same run: how often to look is no part of it
    assert history() == after


def test_a_class_that_vanishes_is_named_once() -> None:
    look = Collapse(["road", "train", "sky"]).look
    assert look([0, 0, 0]) == []  # a method without pseudo-labels
    assert look([90, 10, 0]) == look([100, 0, 0]) == look([100, 0, 0]) == []
    (line,) = look([100, 0, 0])
    assert line.startswith("train has vanished from the teacher's labels (10.0 % of the pixels at most, now 0.00 %)")
    assert look([100, 0, 0]) == []
    assert look([90, 10, 0]) == look([100, 0, 0]) == look([90, 5, 5]) == []
