"""What an overlay shows: colours, borders, and the names of the classes that occur."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from udaseg import colours
from udaseg.classes import class_space
from udaseg.deploy.overlay import borders, names, overlay

SPACE = class_space("cityscapes19")


def scene() -> tuple[Image.Image, np.ndarray]:
    """A grey picture whose left half is road, the right a car; a corner is void."""
    labels = np.zeros((40, 80), np.uint8)
    labels[:, 40:] = SPACE.names.index("car")
    labels[:4, :4] = 255
    return Image.fromarray(np.full((40, 80, 3), 100, np.uint8)), labels


def test_regions_are_tinted_and_borders_pure() -> None:
    picture, labels = scene()
    table = colours.table(SPACE)
    found = np.asarray(overlay(picture, labels, SPACE, legend=False)).astype(int)
    edge = borders(labels, 1)
    assert found.shape == (40, 80, 3) and edge[:, 39:41].all() and edge.sum() < 40 * 2 + 20
    np.testing.assert_array_equal(found[edge], table[labels][edge])
    assert np.abs(found[~edge] - (100 + table[labels][~edge].astype(int)) / 2).max() <= 1
    assert not borders(np.zeros((3, 5), np.uint8), 1).any()
    assert borders(labels, 2)[20, 38:42].all() and not borders(labels, 2)[20, 37]


def test_the_legend_names_what_occurs_and_nothing_else() -> None:
    picture, labels = scene()
    whole = overlay(picture, labels, SPACE)
    assert whole.width == picture.width and whole.height > picture.height
    bare = np.asarray(overlay(picture, labels, SPACE, legend=False))
    np.testing.assert_array_equal(np.asarray(whole)[:40], bare)
    below = {tuple(pixel) for row in np.asarray(whole)[40:].tolist() for pixel in row}
    shown = {name for name, colour in zip(SPACE.names, colours.shown(SPACE), strict=True) if colour in below}
    assert shown - {"building", "pole"} == {"road", "car"}  # two greys, which the edges of letters have too
    void = np.full((40, 80), 255, np.uint8)
    assert overlay(picture, void, SPACE).size == picture.size  # no class: nothing to name


@pytest.mark.parametrize("width", [1, 30, 200, 4000])
def test_a_name_that_does_not_fit_has_a_row_of_its_own(width: int) -> None:
    entries = [(name, (0, 0, 0)) for name in ("road", "Gehweg und Bäume", "traffic light")]
    strip = names(entries, width)
    assert strip.width == width
    assert strip.height < names(entries * 3, width).height or width == 4000


def test_cars_buses_trucks_and_trains_are_told_apart() -> None:
    """Distances in Oklab; of the standard palette bus and train are 0.07 apart."""
    shown = dict(zip(SPACE.names, colours.shown(SPACE), strict=True))
    for name in ("truck", "bus", "train"):
        assert min(distance(shown[name], shown[other]) for other in SPACE.names if other != name) > 0.15, name
    standard = dict(zip(SPACE.names, SPACE.colours, strict=True))
    assert distance(standard["bus"], standard["train"]) < 0.07
    assert {name for name in SPACE.names if shown[name] != standard[name]} == {"truck", "bus", "train"}
    assert (SPACE.palette()[:19] == np.array(SPACE.colours)).all()  # files keep the standard


def test_colours_of_ones_own_stay() -> None:
    own = class_space(("road", "bus", "tree"))
    assert colours.shown(own) == own.colours and (colours.table(own)[255] == 0).all()


def distance(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    return float(np.linalg.norm(oklab(one) - oklab(other)))


def oklab(colour: tuple[int, int, int]) -> np.ndarray:
    """B. Ottosson, A perceptual color space for image processing (2020)."""
    part = np.array(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(lab) @ np.cbrt(np.array(cones) @ linear)
