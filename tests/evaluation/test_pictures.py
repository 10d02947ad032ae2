"""The side-by-side picture shows what each run predicted, in the class colours, under its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_project import Project
from udaseg import params
from udaseg.errors import UserError
from udaseg.evaluation.pictures import GAP, TITLE, evenly_spaced, save_examples, side_by_side


def test_side_by_side(project: Project) -> None:
    p = params.load("params.yaml")
    truth = np.zeros((32, 64), np.uint8)  # road
    truth[:, :4] = 255
    for k, method in enumerate(p.run.methods):
        run = p.resolve("streets", method, 0)
        prediction = np.full((32, 64), 10 + k, np.uint8)  # sky, person
        save_examples(run, [(np.full((32, 64, 3), 200, np.uint8), truth, prediction)] * 2)
    path = side_by_side(p, "streets")
    assert path == Path("figures/streets/examples.png")
    picture = np.array(Image.open(path))
    step = 64 + GAP
    assert picture.shape[1] == 4 * step - GAP
    space = p.resolve("streets", "source_only", 0).classes
    for row in (0, 32 + GAP):
        y = TITLE + row + 10
        assert picture[y, 10].tolist() == [200] * 3
        assert picture[y, step + 10].tolist() == list(space.colours[0])
        assert picture[y, step + 1].tolist() == [0, 0, 0]
        assert picture[y, 2 * step + 10].tolist() == list(space.colours[10])
        assert picture[y, 3 * step + 10].tolist() == list(space.colours[11])
    first = path.read_bytes()
    assert side_by_side(p, "streets").read_bytes() == first


def test_missing_examples_are_named(project: Project) -> None:
    with pytest.raises(UserError, match="udaseg evaluate --benchmark streets --method source_only --seed 0"):
        side_by_side(params.load("params.yaml"), "streets")


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (3, [0, 1, 2]), (10, [0, 3, 6, 9])])
def test_images_are_evenly_spaced(count: int, chosen: list[int]) -> None:
    assert evenly_spaced(list(range(count))) == chosen  # type: ignore[arg-type, comparison-overlap]
