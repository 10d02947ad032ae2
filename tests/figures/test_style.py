"""A method has one colour in all figures of a benchmark, and lines that white paper shows."""

from __future__ import annotations

import itertools
from pathlib import Path

from fake_runs import MakeRuns

from udaseg import params
from udaseg.figures import classes, features, style, training

ROOT = Path(__file__).parents[2]


def distance(a: style.Colour, b: style.Colour) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def test_every_method_of_params_has_a_colour_of_its_own() -> None:
    p = params.load(ROOT / "params.yaml")
    for kind in {name.partition("-")[0] for name in p.methods}:
        family = style.colours([name for name in p.methods if name.partition("-")[0] == kind])
        for a, b in itertools.combinations(family, 2):
            assert distance(family[a], family[b]) > 0.05, (a, b)


def test_methods_that_stand_together_are_far_apart() -> None:
    p = params.load(ROOT / "params.yaml")
    found = style.colours(
        [*p.run.methods, "self_training-dacs", "sepico-off", "bcl-off", "pipa-off", "cluda-off", "plca-off"]
    )
    for a, b in itertools.combinations(found, 2):
        assert distance(found[a], found[b]) > 0.15, (a, b)


def test_a_method_has_the_same_colour_in_all_figures_of_a_benchmark(make_runs: MakeRuns) -> None:
    p = make_runs(("sepico-off", "bcl", "sepico", "sepico-sharp"))
    every = style.colours(p.run.methods)
    bars = [[group[0].get_facecolor()[:3] for group in classes.iou_bars(p, "streets").axes[0].containers]]
    bars += [
        [group[0].get_facecolor()[:3] for group in ax.containers] for ax in features.compactness(p, "streets").axes
    ]
    assert all(drawn == list(every.values()) for drawn in bars)
    drawn = [line.get_color() for line in training.curves(p, "streets").axes[0].lines]
    assert drawn == [style.dark(colour) for colour in every.values()]


def test_lines_are_dark_enough_and_have_a_pattern_of_their_own() -> None:
    assert style.contrast((1, 1, 1)) == 1 and style.contrast((0, 0, 0)) == 21
    assert round(style.contrast((118 / 255, 118 / 255, 118 / 255)), 2) == 4.54  # WCAG's #767676
    p = params.load(ROOT / "params.yaml")
    for name, look in style.lines(list(p.methods)).items():
        assert style.contrast(look["color"]) >= 3, name
    patterns = [look["linestyle"] for look in style.lines(list(style.palette())).values()]
    assert len(set(patterns)) == len(style.palette())
    assert style.lines(["sepico", "sepico-off"])["sepico-off"]["linestyle"] != patterns[5]


def test_references_are_grey() -> None:
    for name, (red, green, blue) in style.colours(
        ["source_only", "self_training", "oracle", "self_training-dacs"]
    ).items():
        assert red == green == blue, name
    red, green, blue = style.colours(["bcl"])["bcl"]
    assert red > green > blue


def test_a_minus_is_a_minus() -> None:
    assert style.signed(-0.04, 2) == "−0.04" and style.signed(3.0) == "+3.0"
