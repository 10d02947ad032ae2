"""Gains and their intervals, and the published numbers beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import MakeRuns, change, texts
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from udaseg.comparison.compare import compare_benchmark
from udaseg.errors import UserError
from udaseg.figures import gains

SUMMARY = Path("results/streets/summary.json")


def lines(figure: Figure, gid: str) -> list[Line2D]:
    return [line for line in figure.axes[0].lines if line.get_gid() == gid]


def summary() -> dict[str, Any]:
    found = json.loads(SUMMARY.read_text())
    assert isinstance(found, dict)
    return found


def test_one_seed_has_no_interval_and_says_so(make_runs: MakeRuns) -> None:
    figure = gains.gain(make_runs(), "streets")
    assert not lines(figure, "interval") and not lines(figure, "seeds")
    assert any(text.startswith("One seed: no interval.") for text in texts(figure))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["source_only", "sepico"]  # gains over self_training, not of it


def test_several_seeds_show_interval_and_every_seed(make_runs: MakeRuns) -> None:
    p = make_runs(seeds=(0, 1, 2))
    figure = gains.gain(p, "streets")
    methods = summary()["methods"]
    found = [list(line.get_xdata()) for line in lines(figure, "interval")]
    assert found == [methods[name]["gain"]["ci95"] for name in ("source_only", "sepico")]
    for line, method in zip(lines(figure, "seeds"), ("source_only", "sepico"), strict=True):
        assert sum(line.get_xdata()) / 3 == pytest.approx(methods[method]["gain"]["mean"], abs=1e-3)
    assert not any("no interval" in text for text in texts(figure))


def test_without_self_training_the_figure_says_so(make_runs: MakeRuns) -> None:
    figure = gains.gain(make_runs(("source_only", "oracle")), "streets")
    assert "No gain to show: self_training is not among run.methods." in " ".join(texts(figure)).replace("\n", " ")
    figure = gains.gain(make_runs(("self_training",)), "streets")
    assert "self_training alone" in " ".join(texts(figure)).replace("\n", " ")


def test_no_published_number_is_said(make_runs: MakeRuns) -> None:
    figure = gains.published(make_runs(), "streets")
    assert not lines(figure, "published")
    assert any(text.startswith("No published number for streets") for text in texts(figure))
    assert [text for text in texts(figure) if text.endswith("| –")]


def test_published_numbers_stand_apart(make_runs: MakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = {"miou": 70.5, "backbone": "DAFormer (MiT-B5)", "tested_on": "cityscapes/val", "variant": "", "source": ""}
    papers = {"sepico": paper, "source_only": paper | {"miou": None}}
    monkeypatch.setattr("udaseg.comparison.published.lookup", lambda method, *_: papers.get(method))
    p = make_runs()
    figure = gains.published(p, "streets")
    assert [(*line.get_xdata(), *line.get_ydata()) for line in lines(figure, "published")] == [(70.5, 2)]
    said = " ".join(texts(figure)).replace("\n", " ")
    assert "| 70.5" in said and "| not readable" in said and "published, in another setting" in said
    assert "source_only, sepico: DAFormer (MiT-B5) on cityscapes/val" in said


def test_seeds_may_stand_in_any_order(make_runs: MakeRuns) -> None:
    p = make_runs(seeds=(1, 0))
    assert summary()["seeds"] == [0, 1]
    assert len(lines(gains.gain(p, "streets"), "interval")) == 2


def test_a_summary_of_other_runs_is_refused(make_runs: MakeRuns) -> None:
    p = make_runs()
    change(SUMMARY, seeds=[0, 1])
    with pytest.raises(
        UserError,
        match=r"summary.json: found methods .* with seeds 0, 1, .*run `udaseg compare --benchmark streets` again",
    ):
        gains.gain(p, "streets")
    compare_benchmark(p, "streets")
    blocks = summary()["methods"]
    blocks["sepico"]["miou"]["mean"] = 77.7
    change(SUMMARY, methods=blocks)
    with pytest.raises(UserError, match=r"methods.sepico.miou.mean: found 77.7, expected .*`udaseg compare"):
        gains.published(p, "streets")
    SUMMARY.unlink()
    with pytest.raises(UserError, match=r"summary.json: not found; expected .*`udaseg compare --benchmark streets`"):
        gains.published(p, "streets")
