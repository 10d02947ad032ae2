"""The self-training step's parts against the oracles of docs/methods/self_training.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from udaseg.classes import class_space
from udaseg.data.prepared import Sample
from udaseg.data.sampling import class_counts, files_with_class, rare_class_probabilities
from udaseg.engine.optim import learning_rate
from udaseg.errors import UserError
from udaseg.methods.base import Averaged
from udaseg.methods.step.augment import BLUR_REACH, gaussian_blur, scale_saturation
from udaseg.methods.step.mixing import class_mask, confident_share, paste, without_border
from udaseg.params import Schedule


def test_base_o1() -> None:
    counts = np.array([600, 300, 90, 10])
    for temperature, expected in [
        (0.01, [2.4e-26, 2.5e-13, 0.00033535, 0.99966465]),
        (0.02, [1.5e-13, 4.95e-7, 0.01798620, 0.98201330]),
        (0.1, [0.00181770, 0.03650954, 0.29814310, 0.66352966]),
        (math.inf, [0.25] * 4),
    ]:
        np.testing.assert_allclose(rare_class_probabilities(counts, temperature), expected, rtol=0.05, atol=1e-8)


def test_base_o2() -> None:
    found = rare_class_probabilities(np.array([5000, 4000, 980, 12, 8]), 0.01)
    np.testing.assert_allclose(found, [1.1e-22, 2.3e-18, 0.00003063, 0.48998632, 0.50998304], rtol=0.05, atol=1e-8)


def test_base_o3() -> None:
    space = class_space("cityscapes19")
    samples = [
        Sample("a", "a", "a", (8, 8), (8, 8), None, {0: 700, 1: 200, 11: 60}),
        Sample("b", "b", "b", (8, 8), (8, 8), None, {0: 500, 6: 20, 11: 120}),
    ]
    counts = class_counts(samples, space.lut(), 19)
    assert {k: int(v) for k, v in enumerate(counts.sum(axis=0)) if v} == {0: 1200, 1: 200, 11: 180, 6: 20}
    probabilities = rare_class_probabilities(counts.sum(axis=0), 0.1)[[6, 11, 1, 0]]
    np.testing.assert_allclose(probabilities, [0.59061211, 0.21727405, 0.19174368, 0.00037015], atol=1e-8)
    with pytest.raises(UserError, match="traffic light"):
        files_with_class(counts, 100, space)
    counts[:, 6] = 0
    files = files_with_class(counts, 100, space)
    assert files[11].tolist() == [1] and files[1].tolist() == [0]
    with pytest.raises(UserError, match="person"):  # a count equal to the bound does not qualify
        files_with_class(counts, 120, space)


def test_base_o4() -> None:
    mean = Averaged(nn.Linear(1, 1), horizon=0.025, steps=40_000)
    for t, expected in [(1, 0.5), (2, 0.6666667), (9, 0.9), (98, 0.989898990), (99, 0.99), (500, 0.998003992),
                        (998, 0.998998999), (999, 0.999), (39_999, 0.999)]:  # fmt: skip
        assert mean.decay(t) == pytest.approx(expected, abs=1e-7)
    assert Averaged(nn.Linear(1, 1), 0.0025, 40_000).decay(5000) == pytest.approx(0.99)

    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 1.0)
    teacher = Averaged(student, 0.025, 40_000)
    for t, value, expected in [(1, 2.0, 1.5), (2, 3.0, 2.0), (3, 4.0, 2.5)]:
        nn.init.constant_(student.weight, value)
        teacher.update(student, t)
        weight = next(teacher.module.parameters())
        assert weight.item() == pytest.approx(expected) and not weight.requires_grad


def test_base_o5() -> None:
    schedule = Schedule(warmup=1500 / 40_000, power=1.0)
    for t, expected in [
        (0, 6.0000000002e-11), (1, 4.0058958501e-8), (100, 3.9900558600e-6), (750, 2.9437529438e-5), (1499, 5.7712999039e-5),
        (1500, 5.7750000000e-5), (1501, 5.77485e-5), (10_000, 4.5e-5), (20_000, 3.0e-5), (39_999, 1.5e-9),
    ]:  # fmt: skip
        assert learning_rate(t, 40_000, 6e-5, schedule) == pytest.approx(expected, rel=1e-9)
    rates = [learning_rate(t, 40_000, 6e-5, schedule) for t in range(3000)]
    assert max(range(3000), key=rates.__getitem__) == 1500


def test_base_o6() -> None:
    confidence = torch.tensor([[[0.99, 0.968, 0.9679], [0.5, 0.97, 0.2]], [[0.1, 0.2, 0.999], [0.3, 0.968, 0.4]]])
    assert confident_share(confidence, 0.968, per_image=False).tolist() == pytest.approx([5 / 12, 5 / 12])
    assert confident_share(confidence, 0.968, per_image=True).tolist() == pytest.approx([0.5, 1 / 3])


LABEL = torch.tensor([[[0, 0, 11], [2, 2, 11], [255, 8, 8]]])
PSEUDO = torch.tensor([[[10, 10, 10], [2, 0, 0], [0, 0, 0]]])


@pytest.mark.parametrize(
    ("first", "mask", "mixed", "weights"),
    [
        ((2, 11), [[0, 0, 1], [1, 1, 1], [0, 0, 0]], [[10, 10, 11], [2, 2, 11], [0, 0, 0]],
         [[0, 0, 1], [1, 1, 1], [0.4, 0.4, 0.4]]),
        ((8, 19), [[0, 0, 0], [0, 0, 0], [1, 1, 1]], [[10, 10, 10], [2, 0, 0], [255, 8, 8]],
         [[0, 0, 0], [0.4, 0.4, 0.4], [1, 1, 1]]),
    ],
)  # fmt: skip
def test_base_o7(first: tuple[int, int], mask: list, mixed: list, weights: list) -> None:
    """n = 5 labels choose 3; here the third is a class that the image has not, so that the oracle's two remain."""
    keys = torch.full((1, 20), 0.9)
    keys[0, list(first)] = 0.1
    # labels {0, 2, 8, 11, 255} choose 3: take the third from a second image of the batch, absent here
    other = torch.full((1, 3, 3), 5)
    label = torch.cat([LABEL, other])
    label[1, 0] = torch.tensor([0, 0, 0])
    keys = keys.repeat(2, 1)
    keys[:, 5] = 0.05
    found = class_mask(label, keys, per_image=False)[:1]
    assert found.int().tolist() == [mask]
    q = without_border(torch.full((1, 3, 3), 0.4), 1 / 3, 0.0)
    assert paste(found, LABEL, PSEUDO).tolist() == [mixed]
    assert paste(found, torch.ones(1, 3, 3), q)[0].tolist() == [pytest.approx(row) for row in weights]


@pytest.mark.parametrize(("n", "chosen"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4)])
def test_base_o7_number_of_classes(n: int, chosen: int) -> None:
    label = torch.arange(n).repeat(4, 1)[None]
    mask = class_mask(label, torch.rand(1, 20, generator=torch.Generator().manual_seed(n)), per_image=True)
    assert len(label[mask].unique()) == chosen


def test_class_scope_batch_or_image() -> None:
    """Paper: half of each image's own classes. Released: half of the batch's, so an image may get none of its own."""
    label = torch.tensor([[[0, 0]], [[1, 2]]])
    keys = torch.tensor([[0.9, 0.1, 0.2, 1.0]]).repeat(2, 1)
    assert class_mask(label, keys, per_image=True).tolist() == [[[True, True]], [[True, False]]]
    assert class_mask(label, keys, per_image=False).tolist() == [[[False, False]], [[True, True]]]


@pytest.mark.parametrize("side", [256, 360, 512, 540, 640, 760, 1024])
def test_base_o13(side: int) -> None:
    """Our 13 taps against the published kernel of a tenth of the image side, over the whole range of sigma."""
    tenth = math.ceil(0.1 * side)
    taps = math.floor(tenth - 0.5 + tenth % 2)
    assert taps == {256: 25, 360: 35, 512: 51, 540: 53, 640: 63, 760: 75, 1024: 103}[side]
    image = torch.rand(1, 3, 120, 120, generator=torch.Generator().manual_seed(side)).double()
    for sigma in (0.15, 0.6, 1.15):
        x = torch.arange(taps, dtype=torch.float64) - taps // 2
        kernel = torch.exp(-0.5 * (x / sigma) ** 2)
        kernel /= kernel.sum()
        padded = nn.functional.pad(image, (taps // 2,) * 4, mode="reflect")
        full = nn.functional.conv2d(padded.reshape(3, 1, *padded.shape[-2:]), (kernel[:, None] * kernel)[None, None])
        ours = gaussian_blur(image, torch.tensor([sigma], dtype=torch.float64), math.ceil(BLUR_REACH * 1.15))
        assert (ours[0] - full[:, 0]).abs().max() < 2e-6


def test_saturation_is_that_of_hsv() -> None:
    import colorsys

    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    for factor in (0.5, 1.5, 3.0):
        ours = scale_saturation(image, factor)
        for y in range(4):
            for x in range(4):
                h, s, v = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
                expected = colorsys.hsv_to_rgb(h, min(1.0, s * factor), v)
                assert ours[:, y, x].tolist() == pytest.approx(expected, abs=1e-5)
