"""Cross-entropy, cell labels and feature distance: oracles o8 to o10 of docs/methods/self_training.md, and loop versions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from udaseg.losses.segmentation import SMALL, cell_labels, cross_entropy, feature_distance, resized


def naive_cross_entropy(logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    total = 0 * logits.sum()
    for b in range(label.shape[0]):
        for y in range(label.shape[1]):
            for x in range(label.shape[2]):
                k = int(label[b, y, x])
                if k != 255:
                    z = logits[b, :, y, x]
                    total = total + weight[b, y, x] * (z.exp().sum().log() - z[k])
    return total / label.numel()


def test_base_o8() -> None:
    logits = torch.tensor([[2.0, 0], [0, 1], [1, 1], [3, -1]], dtype=torch.float64).T.reshape(1, 2, 2, 2)
    label = torch.tensor([[[0, 1], [255, 1]]])
    assert cross_entropy(logits, label).item() == pytest.approx(1.11458492, abs=1e-7)
    weight = torch.tensor([[[1.0, 0.5], [1, 0.5]]])
    assert cross_entropy(logits, label, weight).item() == pytest.approx(0.57315844, abs=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(1, 4), st.integers(1, 4))
def test_cross_entropy_equals_loop(seed: int, classes: int, height: int, width: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, height, width, generator=g, requires_grad=True)
    twin = logits.detach().double().requires_grad_()
    label = torch.randint(0, classes + 1, (2, height, width), generator=g)
    label[label == classes] = 255
    weight = torch.rand(2, height, width, generator=g)
    cross_entropy(logits, label, weight).backward()
    expected = naive_cross_entropy(twin, label, weight.double())
    expected.backward()
    assert cross_entropy(logits, label, weight).item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    assert logits.grad is not None and twin.grad is not None
    torch.testing.assert_close(logits.grad.double(), twin.grad, rtol=1e-4, atol=1e-6)


def test_all_ignored_is_a_zero_with_graph() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    for weight in (None, torch.ones(1, 2, 2)):
        loss = cross_entropy(logits, torch.full((1, 2, 2), 255), weight)
        loss.backward()
        assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


O9 = [
    [11, 11, 0, 0, 13, 13, 255, 255],
    [11, 0, 0, 0, 13, 13, 255, 255],
    [11, 11, 0, 0, 13, 13, 255, 255],
    [11, 11, 0, 0, 13, 0, 255, 18],
    [6, 6, 6, 6, 18, 18, 18, 18],
    [6, 6, 6, 6, 18, 18, 18, 18],
    [6, 6, 6, 0, 8, 8, 8, 18],
    [0, 0, 0, 0, 8, 8, 8, 8],
]


def test_base_o9() -> None:
    label = torch.tensor([O9])
    cells = cell_labels(label, (4, 4), 19, 0.75)
    assert cells.tolist() == [[[11, 0, 13, 255], [11, 0, 13, 255], [6, 6, 18, 18], [255, 0, 8, 8]]]
    things = torch.zeros(256, dtype=torch.bool)
    things[[6, 7, *range(11, 19)]] = True
    assert things[cells].int().tolist() == [[[1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]]
    coarse = cell_labels(label, (2, 2), 19, 0.75)
    assert (coarse == 255).all()
    features = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = feature_distance(features, torch.randn(1, 3, 2, 2), things[coarse])
    loss.backward()
    assert loss.item() == 0 and features.grad is not None and not features.grad.any()


def test_base_o10() -> None:
    student = torch.tensor([[[1.0, 2], [0, 3]], [[0, 0], [4, 4]]])[None].requires_grad_()
    imagenet = torch.tensor([[[1.0, 0], [0, 0]], [[1, 0], [0, 0]]])[None]
    mask = torch.tensor([[[1.0, 0], [0, 1]]])
    loss = feature_distance(student, imagenet, mask)
    assert loss.item() == pytest.approx(3.0)
    assert 0.005 * loss.item() == pytest.approx(0.015)
    loss.backward()
    assert student.grad is not None and math.isclose(student.grad[0, :, 1, 1].norm().item(), 0.5, rel_tol=1e-6)


def test_distance_of_equal_features_has_a_finite_gradient() -> None:
    features = torch.ones(1, 2, 2, 2, requires_grad=True)
    loss = feature_distance(features, torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2))
    loss.backward()
    assert loss.item() == 0 and features.grad is not None and features.grad.isfinite().all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4]), st.floats(0.3, 1.0))
def test_cell_labels_equal_loop(seed: int, factor: int, ratio: float) -> None:
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (2, 8, 8), generator=g)
    label[label == 3] = 255
    cells = cell_labels(label, (8 // factor, 8 // factor), 3, ratio)
    for b in range(2):
        for i in range(8 // factor):
            for j in range(8 // factor):
                block = label[b, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].reshape(-1)
                shares = [(block == k).float().mean().item() for k in (0, 1, 2, 255)]
                best = max(shares)
                if best < ratio - 1e-6:
                    assert cells[b, i, j] == 255
                else:
                    assert shares[{0: 0, 1: 1, 2: 2, 255: 3}[int(cells[b, i, j])]] == best


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(
    "before, after", [((5, 7), (20, 28)), ((8, 16), (33, 50)), ((12, 9), (5, 4)), ((1, 3), (6, 6))]
)
def test_resized_by_products_is_interpolation(before: tuple[int, int], after: tuple[int, int], corners: bool) -> None:
    maps = torch.randn(2, 3, *before, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pull = torch.randn(2, 3, *after)
    found = resized(maps, after, align_corners=corners)
    assert (
        "Bmm" in type(found.grad_fn).__name__ or "View" in type(found.grad_fn).__name__
    )  # a product, not an interpolation
    expected = F.interpolate(maps, size=after, mode="bilinear", align_corners=corners)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ours, theirs = (torch.autograd.grad(value, maps, pull)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert resized(maps.bfloat16(), after).dtype == torch.bfloat16
    assert resized(maps.double(), after).dtype == torch.float64


@pytest.mark.parametrize("wanted", [False, True])
def test_resized_of_large_maps_and_of_values_alone_is_interpolation(wanted: bool) -> None:
    maps = torch.randn(1, 2, SMALL + 1 if wanted else 8, 8, requires_grad=wanted)
    found = resized(maps, (130, 16))
    assert torch.equal(found, F.interpolate(maps, size=(130, 16), mode="bilinear"))
    assert not wanted or "Upsample" in type(found.grad_fn).__name__
