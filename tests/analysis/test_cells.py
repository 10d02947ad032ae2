"""Which cells are looked at: pure ones, the same for every network, as many in both domains."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from block_data import STRIDE, FakeData, Pooled, blocks
from torch import Tensor

from udaseg.analysis import cells as sampling
from udaseg.analysis.cells import SOURCE, TARGET, Cells, first, pure_cells
from udaseg.classes import NAMES
from udaseg.errors import UserError
from udaseg.params import Run

CPU = torch.device("cpu")
MakeRun = Callable[..., Run]
Data = dict[str, FakeData]


def draw(run: Run, network: Pooled | None = None) -> tuple[Cells, dict[str, tuple[int, int]]]:
    return sampling.draw_cells(run, network or Pooled(), CPU)  # type: ignore[arg-type]


def places(cells: Cells) -> list[tuple[int, ...]]:
    columns = (cells.domain, cells.label, cells.image, cells.row, cells.column)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def counts(cells: Cells, domain: int) -> list[int]:
    return np.bincount(cells.label[cells.domain == domain], minlength=19).tolist()


@pytest.mark.parametrize(
    "size", [(4, 7), (5, 4), (6, 5), (12, 14), (16, 9)]
)  # dividing, not dividing, larger than the label
def test_pure_cells_are_those_whose_adaptive_window_agrees(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    values = rng.choice(np.array([0, 7, 255], np.uint8), (2, 4, 7), p=[0.6, 0.2, 0.2])
    label = values.repeat(3, 1).repeat(2, 2)
    found = pure_cells(torch.from_numpy(label), size).numpy()
    (height, width), pure = label.shape[1:], 0
    for b, i, j in np.ndindex(2, *size):
        rows = slice(i * height // size[0], -(-(i + 1) * height // size[0]))
        columns = slice(j * width // size[1], -(-(j + 1) * width // size[1]))
        below = np.unique(label[b, rows, columns])
        assert found[b, i, j] == (below[0] if len(below) == 1 else 255)
        pure += found[b, i, j] != 255
    assert 0 < pure < found.size


def test_first_takes_the_smallest_keys_of_each_class() -> None:
    label = np.array([2, 0, 2, 0, 2, 1])
    key = np.array([0.9, 0.2, 0.1, 0.8, 0.5, 0.7])
    assert first(label, key, np.array([1, 0, 2])).tolist() == [1, 2, 4]


def test_cells_are_pure_and_as_many_in_both_domains(make_run: MakeRun, data: Data) -> None:
    cells, left_out = draw(make_run(per_class=10, images=5))
    assert counts(cells, SOURCE) == counts(cells, TARGET) == [10] * 4 + [0] * 15
    for domain, label, image, row, column in places(cells):
        whole = data[("streets_game", "streets_photo")[domain]].labels[image]
        below = whole[row * STRIDE : (row + 1) * STRIDE, column * STRIDE : (column + 1) * STRIDE]
        assert (below == label).all()
    assert len(set(places(cells))) == len(cells.label)
    assert set(left_out) == set(NAMES[4:])


def test_a_feature_belongs_to_its_cell(make_run: MakeRun, data: Data) -> None:
    cells, _ = draw(make_run(per_class=10))
    for k, (domain, _, image, row, column) in enumerate(places(cells)):
        fake = data[("streets_game", "streets_photo")[domain]]
        below = fake.image(fake.samples("")[image])[row * STRIDE :, column * STRIDE :][:STRIDE, :STRIDE]
        colour = below.reshape(-1, 3).mean(0)
        np.testing.assert_allclose(cells.feature[k], colour / np.linalg.norm(colour), atol=1e-3)


def test_every_network_is_looked_at_in_the_same_places(make_run: MakeRun, data: Data) -> None:
    class Other(Pooled):
        def forward(self, images: Tensor) -> SimpleNamespace:
            return SimpleNamespace(feature=super().forward(images).feature.flip(1) + 1)

    one, other = draw(make_run()), draw(make_run(), Other())
    assert places(one[0]) == places(other[0]) and one[1] == other[1]
    assert not np.array_equal(one[0].feature, other[0].feature)


def test_the_seed_decides(make_run: MakeRun, data: Data) -> None:
    one, again, other = (draw(make_run(seed=seed, per_class=8, images=2))[0] for seed in (0, 0, 1))
    assert places(one) == places(again) and np.array_equal(one.feature, again.feature)
    assert places(one) != places(other)


def test_keeping_the_best_so_far_is_choosing_among_all(make_run: MakeRun, data: Data) -> None:
    """The first cells of a small sample are the small sample: keys belong to cells, not to what else was seen."""
    few, many = (draw(make_run(per_class=n))[0] for n in (6, 30))
    kept = [
        i
        for domain in (0, 1)
        for k in range(4)
        for i in np.flatnonzero((many.domain == domain) & (many.label == k))[:6]
    ]
    assert places(few) == [places(many)[i] for i in kept]


def test_at_most_so_many_images(make_run: MakeRun, data: Data) -> None:
    cells, _ = draw(make_run(images=2, per_class=100))
    assert all(len(np.unique(cells.image[cells.domain == domain])) == 2 for domain in (SOURCE, TARGET))


def test_a_class_absent_in_the_target_is_named_with_its_counts(make_run: MakeRun, data: Data) -> None:
    data["streets_photo"].labels = [
        np.where(label == 2, 255, label).astype(np.uint8) for label in data["streets_photo"].labels
    ]
    cells, left_out = draw(make_run(per_class=10))
    assert counts(cells, SOURCE) == counts(cells, TARGET) == [10, 10, 0, 10] + [0] * 15
    assert left_out[NAMES[2]] == (10, 0) and left_out[NAMES[4]] == (0, 0)


def test_fewer_cells_in_one_domain_decide_for_both(make_run: MakeRun, data: Data) -> None:
    data["streets_photo"].labels = [blocks(0, 3)]
    cells, _ = draw(make_run(per_class=1000, least=2, images=5))
    pure = pure_cells(torch.from_numpy(blocks(0, 3)[None]), (6, 10)).numpy()
    expected = np.bincount(pure[pure < 255], minlength=19).tolist()
    assert counts(cells, SOURCE) == counts(cells, TARGET) == expected


@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_classes_are_an_error(classes: int, make_run: MakeRun, data: Data) -> None:
    data["streets_photo"].labels = [np.full((8, 8), 255 if classes == 0 else 3, np.uint8)]
    with pytest.raises(UserError, match=f"found {classes} classes with 4 pure cells in each, expected 2 at least"):
        draw(make_run())


@pytest.mark.parametrize("value", [float("nan"), 1.0])
def test_features_of_a_diverged_network_are_an_error(value: float, make_run: MakeRun, data: Data) -> None:
    class Diverged(Pooled):
        def forward(self, images: Tensor) -> SimpleNamespace:
            return SimpleNamespace(feature=torch.full_like(super().forward(images).feature, value))

    with pytest.raises(UserError, match="found features that are not finite or all the same"):
        draw(make_run(), Diverged())


def test_a_benchmark_without_labelled_split_is_an_error(make_run: MakeRun, data: Data) -> None:
    run = make_run()
    object.__setattr__(run.benchmark, "evaluate", ())
    with pytest.raises(UserError, match="evaluate: found none, expected a labelled split to analyse"):
        draw(run)
