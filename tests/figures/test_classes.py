"""Bars, table and confusion by class; a class that is not in the target is said, never drawn as 0."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from fake_runs import MakeRuns, texts, without
from matplotlib.patches import Rectangle

from udaseg import results
from udaseg.errors import UserError
from udaseg.figures import classes


def test_one_bar_for_each_method_and_class(make_runs: MakeRuns) -> None:
    p = make_runs(seeds=(0, 1))
    figure = classes.iou_bars(p, "streets")
    bars = [bar for ax in figure.axes for group in ax.containers for bar in group]
    assert len(bars) == 3 * 19
    ious = [results.metrics(p.resolve("streets", "source_only", seed))["iou"]["road"] for seed in (0, 1)]
    first = figure.axes[0].containers[0][0]
    assert first.get_height() == pytest.approx(sum(ious) / 2)
    ranges = [line for line in figure.axes[0].lines if line.get_gid() == "range"]
    assert sorted(ranges[0].get_ydata()) == pytest.approx(sorted(ious))
    assert {"road", "traffic\nlight", "bicycle", "source_only", "sepico"} <= set(texts(figure))


def test_a_class_not_counted_has_no_bar(make_runs: MakeRuns) -> None:
    p = make_runs()
    for method in p.run.methods:
        without(p.resolve("streets", method, 0), "train")
    figure = classes.iou_bars(p, "streets")
    assert texts(figure).count("not\ncounted") == 1
    heights = [group[6].get_height() for group in figure.axes[1].containers]  # sky ... bus, train
    assert len(heights) == 3 and all(math.isnan(height) for height in heights)
    table = classes.iou_heatmap(p, "streets")
    cells = [text.get_text() for text in table.axes[0].texts]
    assert len(cells) == 3 * 20 - 3
    for drawn in (figure, table):
        assert any("Not counted, in neither truth nor prediction: train." in text for text in texts(drawn))


def test_a_class_that_one_method_does_not_count_is_said(make_runs: MakeRuns) -> None:
    p = make_runs()
    without(p.resolve("streets", "sepico", 0), "train")
    assert any("nor prediction: train." in text for text in texts(classes.iou_bars(p, "streets")))


def test_the_table_holds_the_scores(make_runs: MakeRuns) -> None:
    p = make_runs(seeds=(0, 1))
    ax = classes.iou_heatmap(p, "streets").axes[0]
    rows = [label.get_text() for label in ax.get_yticklabels()]
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert rows == list(p.run.methods) and columns == ["mIoU", *p.resolve("streets", "sepico", 0).classes.names]
    cells = iter(text.get_text() for text in ax.texts)
    for method in rows:
        found = [results.metrics(p.resolve("streets", method, seed)) for seed in (0, 1)]
        for column in columns:
            values = [one["miou"] if column == "mIoU" else one["iou"][column] for one in found]
            assert next(cells) == f"{sum(values) / 2:.1f}", (method, column)


def test_confusion_is_normalised_by_truth_and_summed_over_seeds(make_runs: MakeRuns) -> None:
    p = make_runs(seeds=(0, 1))
    runs = [p.resolve("streets", "sepico", seed) for seed in (0, 1)]
    for run in runs:  # no truth of the last class
        path = run.folder / "confusion.csv"
        rows = path.read_text().splitlines()
        path.write_text("\n".join(f"{r.rpartition(',')[0]},0" if r.startswith("bicycle,") else r for r in rows) + "\n")
    figure = classes.confusion(p, "streets")
    share = np.ma.filled(figure.axes[2].images[0].get_array(), np.nan)
    counts = sum(results.confusion(run) for run in runs)
    seen = counts.sum(1) > 0
    assert not seen[-1] and np.isnan(share[~seen]).all()
    np.testing.assert_allclose(share[seen], 100 * counts[seen] / counts[seen].sum(1, keepdims=True))
    assert any("Hatched, no pixel in the truth: bicycle." in text for text in texts(figure))
    assert [ax.get_title() for ax in figure.axes[:3]] == list(p.run.methods)
    hatched = [patch for patch in figure.axes[2].patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert len(hatched) == 1 and hatched[0].get_zorder() < figure.axes[2].images[0].get_zorder()


def test_without_a_metrics_file_the_command_is_told(make_runs: MakeRuns) -> None:
    p = make_runs()
    Path("results/streets/sepico/seed0/metrics.json").unlink()
    with pytest.raises(UserError, match="udaseg evaluate --benchmark streets --method sepico --seed 0"):
        classes.iou_bars(p, "streets")
