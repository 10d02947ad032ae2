"""Maps of features and measures of compactness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_runs import MakeRuns, change, texts

from udaseg.errors import UserError
from udaseg.figures import features, files


def test_maps_show_both_domains_in_class_colours(make_runs: MakeRuns) -> None:
    p = make_runs()
    figure = features.tsne(p, "streets")
    run = p.resolve("streets", "self_training", 0)
    plane, label, domain = files.tsne(run)
    ax = figure.axes[1]
    assert ax.get_title() == "self_training" and len(ax.collections) == 2
    for value, points in enumerate(ax.collections):
        offsets, colours = np.asarray(points.get_offsets()), np.asarray(points.get_facecolors())[:, :3]
        assert len(offsets) == (domain == value).sum()
        k = int(np.flatnonzero((plane == offsets[0]).all(1))[0])
        np.testing.assert_allclose(colours[0], run.classes.palette()[label[k]] / 255)


def test_a_class_without_enough_cells_is_said(make_runs: MakeRuns) -> None:
    figure = features.tsne(make_runs(), "streets")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*make_runs().resolve("streets", "sepico", 0).classes.names[:-1], "source", "target"]
    assert any("left out: bicycle." in text for text in texts(figure))


def test_measures_are_bars_over_methods(make_runs: MakeRuns) -> None:
    p = make_runs(seeds=(0, 1))
    figure = features.compactness(p, "streets")
    assert len(figure.axes) == len(features.MEASURES)
    for ax, (key, _, more, _) in zip(figure.axes, features.MEASURES, strict=True):
        assert ("more is better" if more else "less is better") in ax.get_title()
        means = [np.mean([files.analysis(p.resolve("streets", m, s))[key] for s in (0, 1)]) for m in p.run.methods]
        assert [group[0].get_width() for group in ax.containers] == pytest.approx(means)
    assert "discrimination (PDD)\n→ more is better" in texts(figure)


def test_a_measure_without_value_is_not_drawn(make_runs: MakeRuns) -> None:
    p = make_runs()
    change(Path("results/streets/sepico/seed0/analysis.json"), pdd=None)
    figure = features.compactness(p, "streets")
    assert texts(figure).count(" not defined") == 1
    assert sorted(len(ax.containers) for ax in figure.axes) == [2, *[3] * 7]


def test_a_run_without_features_is_told(make_runs: MakeRuns) -> None:
    p = make_runs()
    folder = Path("results/streets/sepico/seed0")
    command = "run `udaseg analyse --benchmark streets --method sepico --seed 0`"
    (folder / "tsne.npz").write_bytes((folder / "tsne.npz").read_bytes()[:200])
    with pytest.raises(UserError, match=rf"tsne.npz: damaged .*; {command} again"):
        features.tsne(p, "streets")
    (folder / "tsne.npz").unlink()
    with pytest.raises(UserError, match=rf"tsne.npz: not found; {command} first"):
        features.tsne(p, "streets")
    (folder / "analysis.json").unlink()
    with pytest.raises(UserError, match=rf"analysis.json: not found; .*{command}"):
        features.compactness(p, "streets")
