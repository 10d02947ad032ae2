"""Two overlapping crops: geometry of docs/methods/pipa.md, oracles p7, p7b, pixels that agree, purity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from udaseg.data.two_crops import (
    MEAN_COLOUR,
    STRIDE,
    PairViews,
    intersection_over_union,
    overlap_cells,
    scaled_crop,
    second_corner,
)
from udaseg.errors import UserError

IOU = (0.1, 1.0)


def picture(height: int, width: int) -> np.ndarray:
    """No two places look alike. Values keep their distance from 0 and 255: bicubic overshoot is cut off at either."""
    return np.random.default_rng(0).integers(90, 165, (height, width, 3), dtype=np.uint8)


def test_pipa_p7() -> None:
    """Rows 160..720 and columns 0..640 of the first crop, rows 0..560 and columns 80..720 of the second."""
    first, second = (overlap_cells(160, -80, 720) * STRIDE).tolist()
    assert first == [160, 0, 560, 640] and second == [0, 80, 560, 640]
    assert intersection_over_union(160, -80, 720) == pytest.approx(0.5283019, abs=1e-7)
    assert overlap_cells(160, -80, 720)[:, 2:].tolist() == [[70, 80], [70, 80]]  # 5600 positions


def test_pipa_p7b() -> None:
    for offset, iou, positions in [(408, 0.1036174, 1521), (416, 0.0978585, 1444), (0, 1.0, 8100)]:
        assert intersection_over_union(offset, offset, 720) == pytest.approx(iou, abs=1e-7)
        assert overlap_cells(offset, offset, 720)[:, 2:].prod(dim=1).tolist() == [positions, positions]

    class Given:
        """Draws the given numbers in turn."""

        def __init__(self, *numbers: int) -> None:
            self.numbers = list(numbers)

        def integers(self, end: int) -> int:
            assert self.numbers[0] < end
            return self.numbers.pop(0)

    def second(*drawn: int) -> tuple[int, int]:
        return second_corner(Given(*drawn), (0, 0), (1000, 1000), 720, IOU)  # type: ignore[arg-type]

    assert second(415, 408) == (408, 408)  # moved up to a multiple of 8, accepted
    assert second(416, 416, 95, 7) == (88, 0)  # refused, drawn again
    assert second(*[416] * 100) == (0, 0)  # fifty times: the same crop twice


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 70), st.integers(0, 70), st.integers(1, 8))
def test_second_corner(seed: int, room_y: int, room_x: int, cells: int) -> None:
    rng = np.random.default_rng(seed)
    first = (int(rng.integers(room_y + 1)), int(rng.integers(room_x + 1)))
    side = cells * STRIDE
    second = second_corner(rng, first, (room_y, room_x), side, IOU)
    assert 0 <= second[0] <= room_y and 0 <= second[1] <= room_x
    dy, dx = second[0] - first[0], second[1] - first[1]
    assert dy % STRIDE == dx % STRIDE == 0
    mask = np.zeros((2, room_y + side, room_x + side), bool)
    for m, (top, left) in zip(mask, (first, second), strict=True):
        m[top : top + side, left : left + side] = True
    expected = (mask[0] & mask[1]).sum() / (mask[0] | mask[1]).sum()
    assert intersection_over_union(dy, dx, side) == pytest.approx(expected)
    assert expected >= 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(40, 90), st.integers(40, 120), st.sampled_from([16, 32]))
def test_both_views_show_the_same_in_their_overlap(seed: int, height: int, width: int, side: int) -> None:
    drawn = PairViews(side, (0.8, 2.0), (0.1, 0.9)).draw(np.random.default_rng(seed), picture(height, width))
    assert drawn["pair"].shape == (2, 3, side, side) and drawn["pair"].dtype == torch.uint8
    shown = []
    for image, overlap, flipped in zip(drawn["pair"], drawn["overlap"], drawn["flipped"], strict=True):
        top, left, rows, columns = (overlap * STRIDE).tolist()
        shown.append((image.flip(-1) if flipped else image)[:, top : top + rows, left : left + columns].int())
    assert shown[0].shape == shown[1].shape and shown[0].numel() > 0
    assert (shown[0] - shown[1]).abs().max() <= 2  # two roundings in either crop


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(20, 60), st.integers(20, 60), st.floats(0.8, 2.0))
def test_scaled_crop_equals_a_crop_of_the_scaled_image(seed: int, height: int, width: int, factor: float) -> None:
    """Where the scaled image is smaller than the crop, the mean colour fills it."""
    rng, side = np.random.default_rng(seed), 24
    image = Image.fromarray(picture(height, width))
    scaled = (round(height * factor), round(width * factor))
    top, left = (int(rng.integers(max(s - side, 0) + 1)) for s in scaled)
    whole = np.full((max(scaled[0], side), max(scaled[1], side), 3), MEAN_COLOUR, np.uint8)
    whole[: scaled[0], : scaled[1]] = np.asarray(image.resize(scaled[::-1], Image.Resampling.BICUBIC))
    crop = scaled_crop(image, scaled, (top, left), side)
    assert np.abs(crop.astype(int) - whole[top : top + side, left : left + side]).max() <= 2


def test_pairs_are_pure_and_vary() -> None:
    image, views = picture(64, 128), PairViews(40, (0.8, 2.0), IOU)
    many = [views.draw(np.random.default_rng(seed), image) for seed in range(40)]
    again = views.draw(np.random.default_rng(3), image)
    assert all(torch.equal(again[name], many[3][name]) for name in ("pair", "overlap", "flipped"))
    assert (image == picture(64, 128)).all()
    assert {tuple(p["flipped"].tolist()) for p in many} == {(a, b) for a in (False, True) for b in (False, True)}
    assert len({tuple(p["overlap"].flatten().tolist()) for p in many}) > 20


def test_padding_is_not_compared() -> None:
    drawn = PairViews(40, (0.5, 0.5), IOU).draw(np.random.default_rng(0), picture(50, 200))  # 25 rows are left
    assert (
        drawn["pair"][:, :, 25:].permute(0, 2, 3, 1).unique(dim=1).unique(dim=2).squeeze().tolist()
        == [[*MEAN_COLOUR]] * 2
    )
    assert drawn["overlap"][:, 0].tolist() == [0, 0] and drawn["overlap"][:, 2].tolist() == [3, 3]


def test_crops_that_do_not_fit_are_refused() -> None:
    PairViews(40, (0.8, 2.0), IOU).check([(64, 40), (40, 64)], "data")
    for side, size in [(40, (128, 39)), (40, (39, 128)), (36, (128, 128)), (0, (128, 128))]:
        with pytest.raises(UserError, match=rf"data: found crops of {side}x{side} .* {size[0]}x{size[1]}"):
            PairViews(side, (0.8, 2.0), IOU).check([(200, 200), size], "data")
