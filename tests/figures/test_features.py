"""Maps of features and measures of compactness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_runs import MakeRuns, change, texts

from udaseg import results
from udaseg.errors import UserError
from udaseg.figures import features
from udaseg.params import Params


def test_maps_show_both_domains_in_class_colours(make_runs: MakeRuns) -> None:
    p = make_runs()
    figure = features.tsne(p, "streets")
    run = p.resolve("streets", "self_training", 0)
    plane, label, domain = results.tsne(run)
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


TITLES = [
    "variance in a class\n← less is better",
    "centre distance (CCD)\n← less is better",
    "separation / variance\n→ more is better",
    "silhouette\n→ more is better",
    "discrimination (PDD)\n→ more is better",
    "gap of domains\n← less is better",
    "linear probe (%)\n→ more is better",
    "k\u2011NN (%)\n→ more is better",
]


def test_measures_are_bars_over_methods(make_runs: MakeRuns) -> None:
    p = make_runs(seeds=(0, 1))
    figure = features.compactness(p, "streets")
    assert [ax.get_title() for ax in figure.axes] == TITLES
    for ax, key in zip(figure.axes, features.PANELS, strict=True):
        assert [group[0].get_width() for group in ax.containers] == pytest.approx(means(p, key))
        diamonds = [line.get_xdata()[0] for line in ax.lines if line.get_gid() == "from source"]
        assert diamonds == (pytest.approx(means(p, f"{key}_from_source")) if key in ("linear_probe", "knn") else [])


def means(p: Params, key: str) -> list[float]:
    """Of a measure over two seeds, by method."""
    return [
        float(np.mean([results.analysis(p.resolve("streets", method, seed))[key] for seed in (0, 1)]))
        for method in p.run.methods
    ]


def test_a_measure_that_a_seed_does_not_have_is_not_drawn_and_said(make_runs: MakeRuns) -> None:
    p = make_runs(seeds=(0, 1))
    change(Path("results/streets/sepico/seed0/analysis.json"), pdd=None, pdd_clamped=3)
    figure = features.compactness(p, "streets")
    assert texts(figure).count(" not defined") == 1
    assert sorted(len(ax.containers) for ax in figure.axes) == [2, *[3] * 7]
    assert "PDD is not defined for sepico:" in " ".join(texts(figure)).replace("\n", " ")


def test_what_limits_the_probes_is_said(make_runs: MakeRuns) -> None:
    p = make_runs()
    assert "Probes" not in " ".join(texts(features.compactness(p, "streets")))
    change(Path("results/streets/sepico/seed0/analysis.json"), probe_classes=17, classes=18, probe_split="cell")
    said = " ".join(texts(features.compactness(p, "streets"))).replace("\n", " ")
    assert "Probes saw all images" in said and "Probes were asked for 17 of 18 classes" in said


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
