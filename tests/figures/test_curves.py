"""Loss curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake_runs import MakeRuns, texts

from tiny_project import Project
from udaseg import params
from udaseg.figures import style, training


def test_every_loss_has_a_panel_with_the_methods_that_log_it(make_runs: MakeRuns) -> None:
    p = make_runs()
    path = Path("results/streets/sepico/seed0/history.csv")
    path.write_text(path.read_text().replace("late", "sepico_source"))
    figure = training.curves(p, "streets")
    assert [ax.get_title() for ax in figure.axes] == ["source", "late", "sepico source"]
    assert [len(ax.lines) for ax in figure.axes] == [3, 2, 1]
    late = figure.axes[1].lines[0].get_ydata()
    assert np.isnan(late[:3]).all() and not np.isnan(late[3:]).any()  # the loss began at step 4
    assert "learning rate" not in texts(figure)


def test_ticks_are_plain_numbers_without_a_power_or_offset_in_a_corner(make_runs: MakeRuns) -> None:
    """Losses that are tiny, nearly constant, or both."""
    p = make_runs()
    for method, value in (("sepico", lambda k: f"{-1 - k * 1e-8:.9f}"), ("source_only", lambda k: f"0.0000{k}")):
        path = Path(f"results/streets/{method}/seed0/history.csv")
        steps = int(path.read_text().splitlines()[-1].split(",")[0])
        rows = [f"{k},0.1,{value(k)},0.5" for k in range(1, steps + 1)]
        path.write_text("\n".join([f"step,learning_rate,{method},late", *rows]) + "\n")
    with style.style():
        figure = training.curves(p, "streets")
        figure.savefig("curves.png")
    axes = {ax.get_title(): ax for ax in figure.axes}
    for ax in axes.values():
        assert ax.yaxis.get_offset_text().get_text() == ax.xaxis.get_offset_text().get_text() == ""
        assert all("e" not in label.get_text() and len(label.get_text()) < 9 for label in ax.get_yticklabels())
    low, high = axes["sepico"].get_ylim()
    assert high - low >= 0.0004  # not the rounding of a constant


def test_several_seeds_have_a_mean_and_a_band(make_runs: MakeRuns) -> None:
    p = make_runs(seeds=(0, 1))
    path = Path("results/streets/source_only/seed1/history.csv")
    path.write_text(path.read_text().replace(",0.5\n", ",0.9\n"))
    figure = training.curves(p, "streets")
    np.testing.assert_allclose(np.asarray(figure.axes[1].lines[0].get_ydata())[3:], 0.7)
    low, high = figure.axes[1].collections[0].get_datalim(figure.axes[1].transData).intervaly
    assert (low, high) == (0.5, 0.9)
    assert len(figure.axes[0].collections) == 3
    assert any("bands: lowest to highest seed" in text for text in texts(figure))


def test_where_nothing_is_scored_the_target_is_named(project: Project, make_runs: MakeRuns) -> None:
    make_runs()
    project.set("benchmarks/streets/evaluate", [])
    figure = training.curves(params.load(), "streets")
    assert any("streets_photo/train, synthetic images, 19 classes" in text.replace("\n", " ") for text in texts(figure))


def test_smoothing_is_a_mean_that_keeps_gaps() -> None:
    values = np.array([np.nan, 2.0, 4.0, 6.0, 8.0] + [8.0] * 15)
    found = training.smooth(values)  # 20 values: one to each side
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:4], [3.0, 4.0, 6.0])
    np.testing.assert_allclose(found[5:], 8.0)
