"""Windows, flips and scales, on predictors whose answer is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udaseg.evaluation import inference
from udaseg.models.windows import starts, windows
from udaseg.params import Size
from udaseg.params import Test as Block  # pytest would collect a class called Test

WEIGHT = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(1))


def pointwise(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits that depend on nothing but the pixel: symmetric, and the same in every window."""
    return F.interpolate(F.conv2d(images, WEIGHT), size=size, mode="bilinear", align_corners=False)


def from_the_left(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Every pixel gets the first pixel's channels."""
    return images[:, :, :1, :1].expand(-1, -1, *size)


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_base_o11() -> None:
    def sides(height: int, width: int, window: int, stride: int) -> tuple[list[int], list[int]]:
        corners = windows(height, width, (window, window), (stride, stride))
        assert len(corners) == len(set(corners))
        return sorted({y for y, _ in corners}), sorted({x for _, x in corners})

    assert sides(1024, 2048, 1024, 512) == ([0], [0, 512, 1024])
    assert len(windows(1024, 1024, (512, 512), (256, 256))) == 9
    assert sides(1080, 1920, 1024, 512) == ([0, 56], [0, 512, 896])
    assert sides(540, 960, 512, 256) == ([0, 28], [0, 256, 448])


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 200), window=st.integers(1, 60), ratio=st.integers(1, 60))
def test_windows_cover_and_never_overrun(length: int, window: int, ratio: int) -> None:
    stride = min(ratio, window)
    first = starts(length, window, stride)
    covered = {pixel for start in first for pixel in range(start, start + min(window, length))}
    assert covered == set(range(length))
    assert first == sorted(set(first)) and first[0] == 0


@pytest.mark.parametrize("size", [(21, 35), (42, 70), (13, 51)])
def test_one_window_is_the_whole_image(size: tuple[int, int]) -> None:
    x = images(2, 21, 35)
    whole = pointwise(x, size)
    for window in ((21, 35), (64, 64)):
        assert torch.equal(inference.slide(pointwise, x, size, window=window, stride=(8, 8)), whole)


@pytest.mark.parametrize("batch", [1, 3])
def test_windows_of_a_pointwise_network_give_the_whole_image(batch: int) -> None:
    x = images(batch, 21, 35)
    slid = inference.slide(pointwise, x, (21, 35), window=(8, 16), stride=(5, 7))
    assert torch.allclose(slid, pointwise(x, (21, 35)), atol=1e-5)


def test_windows_are_averaged_by_coverage() -> None:
    x = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    slid = inference.slide(from_the_left, x, (1, 4), window=(1, 2), stride=(1, 1))
    # windows begin at 0, 1, 2 and hold 1, 2, 4
    assert slid[0, 0, 0].tolist() == [1.0, 1.5, 3.0, 4.0]


def test_windows_pass_through_the_network_in_bounded_batches() -> None:
    seen = []

    def predict(x: Tensor, size: tuple[int, int]) -> Tensor:
        seen.append(len(x))
        return pointwise(x, size)

    inference.slide(predict, images(3, 32, 32), (32, 32), window=(8, 8), stride=(8, 8))
    assert sum(seen) == 3 * 16 and max(seen) <= inference.WINDOWS_AT_ONCE


def test_flip_changes_nothing_for_a_symmetric_network() -> None:
    x = images(2, 9, 13)
    plain = inference.augmented(pointwise, x, (18, 26), scales=(1.0,), flip=False)
    assert torch.equal(plain, pointwise(x, (18, 26)).softmax(1))
    flipped = inference.augmented(pointwise, x, (18, 26), scales=(1.0,), flip=True)
    assert torch.allclose(flipped, plain, atol=1e-6)


def test_flip_is_the_mean_of_probabilities() -> None:
    x = images(1, 4, 6)
    ours = inference.augmented(from_the_left, x, (4, 6), scales=(1.0,), flip=True)
    wanted = (x[0, :, 0, 0].softmax(0) + x[0, :, 0, -1].softmax(0)) / 2
    assert torch.allclose(ours[0], wanted.view(3, 1, 1).expand(3, 4, 6))


def test_scales_resize_the_input() -> None:
    seen = []

    def predict(x: Tensor, size: tuple[int, int]) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        return pointwise(x, size)

    x = torch.full((1, 3, 17, 23), 0.3)
    many = inference.augmented(predict, x, (34, 46), scales=(0.5, 1.0, 1.75), flip=True)
    assert seen == [(8, 12), (8, 12), (17, 23), (17, 23), (30, 40), (30, 40)]
    assert torch.allclose(many, pointwise(x, (34, 46)).softmax(1), atol=1e-6)  # a constant image has no scale
    assert torch.allclose(many.sum(1), torch.ones(1, 34, 46), atol=1e-5)


def test_batch_is_the_same_as_single_images() -> None:
    x = images(3, 15, 20)
    for predict in (
        lambda x: inference.slide(pointwise, x, (30, 40), window=(8, 8), stride=(4, 4)),
        lambda x: inference.augmented(pointwise, x, (30, 40), scales=(0.5, 1.0), flip=True),
    ):
        assert torch.allclose(predict(x), torch.cat([predict(one[None]) for one in x]), atol=1e-6)


def test_the_test_block_decides() -> None:
    x = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 3, 1, 8)
    block = Block("slide", Size(4, 1), Size(4, 1), False, (1.0,), True)
    assert inference.from_test(from_the_left, block)(x, (1, 8))[0, 0, 0].tolist() == [0] * 4 + [4] * 4
    whole = Block("whole", Size(4, 1), Size(4, 1), False, (1.0,), True)
    assert inference.from_test(from_the_left, whole)(x, (1, 8)).eq(0).all()
