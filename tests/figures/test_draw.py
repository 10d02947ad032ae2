"""Every figure is drawn as PNG and PDF, with equal bytes for equal files, and nothing is cut, covered or too small to read."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from fake_runs import MakeRuns, texts
from matplotlib.text import Text

from tiny_project import Project
from udaseg.classes import NAMES as CLASSES
from udaseg.errors import UserError
from udaseg.figures import NAMES, style
from udaseg.figures.draw import DRAW, draw

SMALLEST = 7  # points, at the size on the page


def test_the_command_draws_all_and_equal_files_give_equal_bytes(project: Project, make_runs: MakeRuns) -> None:
    p = make_runs(("self_training", "sepico"))
    assert tuple(DRAW) == NAMES
    done = project.udaseg("figure", "--benchmark", "streets", PYTHONHASHSEED="1", MPLBACKEND="tkagg")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.split() == [f"figures/streets/{name}.png" for name in NAMES]
    first = {path: path.read_bytes() for path in sorted(Path("figures/streets").iterdir())}
    assert [path.name for path in first] == sorted(f"{name}.{end}" for name in NAMES for end in ("pdf", "png"))
    for path, content in first.items():
        assert content.startswith(b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")
        assert b"CreationDate" not in content and b"Software" not in content
        path.unlink()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):  # a user's own style changes nothing
        for name in NAMES:
            assert draw(p, "streets", name) == Path(f"figures/streets/{name}.png")
    assert {path: path.read_bytes() for path in first} == first


def test_text_is_large_enough_and_nothing_is_cut_or_covered(make_runs: MakeRuns) -> None:
    """Twelve methods with long names, nineteen classes, two seeds."""
    families = (
        "source_only",
        "self_training",
        "self_training-dacs",
        "bcl",
        "bcl-uncalibrated",
        "plca",
        "plca-prediction",
    )
    p = make_runs((*families, "sepico", "sepico-night_off", "pipa-released", "cluda-released", "oracle"), seeds=(0, 1))
    for name, function in DRAW.items():
        with style.style():
            figure = function(p, "streets")
            figure.draw_without_rendering()
        page = figure.bbox.padded(1.5)
        for text in figure.findobj(Text):
            assert text.get_fontsize() >= SMALLEST or not text.get_text(), (name, text.get_text())
        for part in (*figure.axes, *figure.legends, *figure.texts):
            box = part.get_tightbbox()
            assert page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1), (name, part, box)
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert not any(box.overlaps(ax.get_window_extent()) for ax in figure.axes), f"{name}: legend on a panel"
        assert figure.get_figwidth() in (style.SINGLE, style.DOUBLE) and figure.get_figheight() < 13


def test_an_unknown_name_is_told(make_runs: MakeRuns) -> None:
    with pytest.raises(UserError, match="unknown figure 'tnse'; did you mean 'tsne'"):
        draw(make_runs(), "streets", "tnse")


def test_class_names_with_dollars_are_text_and_no_formulas(make_runs: MakeRuns, project: Project) -> None:
    hostile = ["$\\frac{$", "$(touch x)", "<img src=x>", "a$b$c"]
    names = [*CLASSES[:-4], *hostile]
    project.raw["benchmarks"]["streets"]["classes"] = names
    p = make_runs(("source_only", "self_training"))
    for name, function in DRAW.items():
        with style.style():
            figure = function(p, "streets")
            figure.draw_without_rendering()
        if name == "iou_heatmap":
            assert set(hostile) <= set(texts(figure))
