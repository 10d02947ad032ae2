"""Scores on the way and the warning of a collapse: both only look on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from tiny_project import ROOT, Project
from udaseg import cli, params
from udaseg.artifacts import file_hash
from udaseg.engine.gradients import Gradients
from udaseg.engine.history import only_looks
from udaseg.engine.trainer import nudge
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
    stripped = [{name: text for name, text in row.items() if not only_looks(name)} for row in after]
    assert stripped == before
    last = {name: float(text) for name, text in after[-1].items() if name.startswith("labels/")}
    assert set(last) == {"labels/right", "labels/sure", "labels/sure_right"} and 0 < last["labels/right"] < 100
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
    assert look([100, 0, 0]) == ["train (10.0 % of the pixels at most)"]
    assert look([100, 0, 0]) == []
    assert look([90, 10, 0]) == look([100, 0, 0]) == look([90, 5, 5]) == []
    assert look([100, 0, 0]) == look([100, 0, 0]) == []
    assert look([100, 0, 0]) == ["sky (5.0 % of the pixels at most)"]  # train, which is gone once more, was named


def test_gradients_move_no_number_and_tell_of_each_loss(project: Project) -> None:
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("benchmarks/streets/train/steps", 4)
    project.set("benchmarks/streets/train/log_every", 1)
    project.set("benchmarks/streets/train/accumulate", 2)
    project.set("methods/cluda", params.load(ROOT / "params.yaml").raw["methods"]["cluda"])
    run = ["--benchmark", "streets", "--method", "cluda"]
    assert cli.main(["train", *run]) == 0
    folder = Path("results/streets/cluda/seed0")
    plain = file_hash(folder / "model.safetensors")
    for path in (folder, Path("results/.trained")):
        path.rename(path.with_name(f"{path.name}.before"))
    project.set("benchmarks/streets/train/gradient_norms", 2)
    assert cli.main(["train", *run]) == 0
    assert file_hash(folder / "model.safetensors") == plain
    with (folder / "history.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["step"] for row in rows if row["gradient/source"]] == ["2", "4"]
    last = rows[-1]
    pulls = {name: float(text) for name, text in last.items() if name.startswith(("gradient/", "cosine/"))}
    assert {"gradient/mixed", "gradient/cluda_source", "cosine/cluda_source", "cosine/cluda_mixed"} <= set(pulls)
    assert "cosine/source" not in pulls and all(-1.0001 <= pulls[n] <= 1.0001 for n in pulls if n.startswith("cosine/"))
    assert all(value > 0 for name, value in pulls.items() if name.startswith("gradient/"))


def test_gradients_of_a_known_function() -> None:
    student = torch.nn.Linear(2, 1, bias=False)
    gradients = Gradients(student)
    for share in (0.5, 0.5):
        weight = student.weight[0]
        gradients.add(
            {"source": 3 * weight[0], "mixed": 4 * weight[1], "pull": 10 * weight[1], "fixed": torch.ones(())}, share
        )
    found = gradients.measured()
    assert found == pytest.approx(
        {"gradient/source": 0.6, "gradient/mixed": 0.8, "gradient/pull": 2.0, "cosine/pull": 0.8}
    )


def test_gradients_are_refused_where_they_would_be_lost(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.set("benchmarks/streets/train/log_every", 4)
    project.set("benchmarks/streets/train/gradient_norms", 6)
    assert cli.main(["train", *RUN]) == 2
    assert "found gradient_norms 6 and log_every 4" in capsys.readouterr().err
    project.set("benchmarks/streets/train/gradient_norms", 8)
    project.set("benchmarks/streets/train/compile", "default")
    assert cli.main(["train", *RUN]) == 2
    assert "a compiled graph gives its gradient once" in capsys.readouterr().err


def test_a_nudge_moves_every_weight_by_rounding() -> None:
    one, two, three = (torch.nn.Conv2d(3, 8, 3) for _ in range(3))
    two.load_state_dict(one.state_dict())
    three.load_state_dict(one.state_dict())
    nudge(two, 1)
    nudge(three, 2)
    change = (two.weight / one.weight - 1).abs()
    assert 0 < change.mean() < 3e-7 and change.max() < 1e-6
    assert not two.weight.equal(three.weight)
