"""A method has one colour, whatever stands beside it."""

from __future__ import annotations

import itertools
from pathlib import Path

from udaseg import params
from udaseg.figures import style

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


def test_colours_do_not_depend_on_the_other_methods() -> None:
    few, many = style.colours(["sepico", "sepico-off"]), style.colours(["bcl", "sepico-off", "plca", "sepico"])
    assert few["sepico"] == many["sepico"] and few["sepico-off"] == many["sepico-off"]


def test_references_are_grey() -> None:
    for name, (red, green, blue) in style.colours(
        ["source_only", "self_training", "oracle", "self_training-dacs"]
    ).items():
        assert red == green == blue, name
    red, green, blue = style.colours(["bcl"])["bcl"]
    assert red > green > blue


def test_a_minus_is_a_minus() -> None:
    assert style.signed(-0.04, 2) == "−0.04" and style.signed(3.0) == "+3.0"
