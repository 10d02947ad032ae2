"""PiPa's pixel and patch contrast: oracles p1 to p11 of docs/methods/pipa.md, loop versions, properties.

P7 and P7b, the geometry of the crops, are in tests/data/test_pairs.py; P12 and P13 in tests/methods/test_pipa.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udaseg.data.two_crops import STRIDE, overlap_cells
from udaseg.losses.pipa import (
    ROWS,
    anchor_quotas,
    anchors_per_group,
    choose_anchors,
    directions,
    group_sizes,
    matching_cells,
    patch_contrast,
    pixel_contrast,
    pushed,
)
from udaseg.losses.segmentation import nearest_labels

TAU, BASE = 0.1, 0.07
seeds = st.integers(0, 2**31)


def pixel(embedding: Tensor, classes: list[int], base: float = BASE) -> float:
    return pixel_contrast(embedding, torch.tensor(classes), torch.ones(len(classes)).bool(), TAU, base).item()


def at_degrees(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def unit(*shape: int, g: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=g, dtype=dtype), dim=-1)


def test_pipa_p1() -> None:
    assert pixel(at_degrees(0, 0, 90, 90), [0, 0, 1, 1]) == pytest.approx(1.2970820e-4, rel=1e-7)
    assert pixel(at_degrees(0, 0, 90, 90).float(), [0, 0, 1, 1]) == pytest.approx(1.2970820e-4, rel=1e-3)


def test_pipa_p1b() -> None:
    assert pixel(at_degrees(0, 0, 180, 180), [0, 0, 1, 1]) == pytest.approx(5.8890e-9, rel=1e-4)


def test_pipa_p2() -> None:
    assert pixel(at_degrees(0, 0, 0, 0), [0, 0, 1, 1]) == pytest.approx(math.log(3) / 0.7, rel=1e-9)
    assert math.log(3) / 0.7 == pytest.approx(1.5694462, abs=2e-7)


def test_pipa_p3() -> None:
    for classes, per_class, expected in [(3, 4, 3.1388929), (5, 10, 5.3051030)]:
        n = classes * per_class
        loss = pixel(at_degrees(*[30.0] * n), [i % classes for i in range(n)])
        assert loss == pytest.approx(math.log(1 + (classes - 1) * per_class) / 0.7, rel=1e-9)
        assert loss == pytest.approx(expected, rel=1e-6)


def test_pipa_p4() -> None:
    e = at_degrees(0, 30, 90, 120)
    assert pixel(e, [0, 0, 1, 1]) == pytest.approx(0.0183886, abs=1e-7)
    assert pixel(e, [0, 0, 1, 1], base=TAU) == pytest.approx(0.0128721, abs=1e-7)


def test_pipa_p4b() -> None:
    assert pixel(at_degrees(0, 40, 80, 50), [0, 0, 1, 1]) == pytest.approx(1.5859595, rel=1e-6)


def test_pipa_p5() -> None:
    """(hard, easy, V) -> (hard, easy) to keep."""
    cases = {
        (200, 300, 100): (50, 50),
        (300, 20, 100): (80, 20),
        (10, 500, 100): (10, 90),
        (30, 30, 50): (25, 25),
        (300, 0, 42): (42, 0),
        (25, 24, 49): (25, 24),
    }
    for (hard, easy, v), (keep_hard, keep_easy) in cases.items():
        assert anchor_quotas(torch.tensor([easy, hard]), torch.tensor(v)).tolist() == [keep_easy, keep_hard]


def test_pipa_p5b() -> None:
    cases = {1: (100, 100), 10: (100, 1000), 11: (93, 1023), 20: (51, 1020), 24: (42, 1008), 38: (26, 988)}
    for groups, (per_group, anchors) in cases.items():
        v = int(anchors_per_group(torch.tensor(groups), 1024, 100))
        assert (v, groups * v) == (per_group, anchors)
    assert (
        int(anchors_per_group(torch.tensor(0), 1024, 100)) == 100
    )  # no group: nothing is chosen, nothing divides by 0


def test_pipa_p6() -> None:
    assert nearest_labels(torch.arange(16).view(1, 4, 4), (2, 2)).tolist() == [[[0, 2], [8, 10]]]


def one_direction(positive: float, negatives: list[float], epsilon: float = 0.0) -> float:
    """The patch term of one query from its logits."""
    query = torch.ones(1, 1, 1, dtype=torch.float64)
    keys = torch.tensor(negatives, dtype=torch.float64).view(1, -1, 1) * TAU
    place, tag = query * positive * TAU, torch.zeros(1, 1, dtype=torch.long)
    return patch_contrast(
        query, place, tag, torch.ones(1, 1), keys, torch.ones(1, len(negatives)).long(), TAU, epsilon
    ).item()


def test_pipa_p8() -> None:
    assert one_direction(10, [0, 0, 0]) == pytest.approx(1.3619051e-4, rel=1e-6)
    assert one_direction(5, [5, -5, 0]) == pytest.approx(0.6965331, abs=1e-7)
    assert one_direction(0, [10]) == pytest.approx(10.0000454, abs=1e-7)
    assert one_direction(0, [10], epsilon=1e-8) == pytest.approx(9.9998252, abs=1e-6)
    assert one_direction(-10, [10]) == pytest.approx(20.0000000, abs=1e-7)
    assert one_direction(-10, [10], epsilon=1e-8) == pytest.approx(18.2332760, abs=1e-6)
    assert one_direction(10, [10] * 9600) == pytest.approx(9.1696225, abs=1e-7)


def test_pipa_p9() -> None:
    """One positive in the denominator, as in the released code; with all others in it the value would be another."""
    e, classes = at_degrees(0, 20, 40, 90, 110), [0, 0, 0, 1, 1]
    assert pixel(e, classes) == pytest.approx(0.0622274, abs=1e-7)
    assert pixel(e, classes, base=TAU) == pytest.approx(0.0435592, abs=1e-7)
    similarity = (e @ e.T / TAU).masked_fill(torch.eye(5).bool(), -torch.inf).log_softmax(dim=1)
    mates = [[j for j in range(5) if j != i and classes[j] == classes[i]] for i in range(5)]
    all_others = -np.mean([np.mean([similarity[i, j].item() for j in js]) for i, js in enumerate(mates)])
    assert all_others == pytest.approx(0.5710941, abs=1e-7)


def test_pipa_p10() -> None:
    first, second = torch.tensor([[0.95, 0.92], [0.92, 0.95], [0.5, 0.91], [0.5, 0.9], [0.95, 0.95]]).unbind(1)
    masks = torch.stack(directions(first, second, 0.9), dim=1).int()
    assert masks.tolist() == [[0, 1], [1, 0], [1, 0], [0, 0], [0, 0]]


def test_pipa_p11() -> None:
    bank, lengths = torch.full((3, 4), -1), []
    for step in range(1, 7):
        bank = pushed(bank, torch.full((4,), step))
        lengths.append(int((bank[:, 0] >= 0).sum()))
    assert lengths == [1, 2, 3, 3, 3, 3] and bank[0, 0] == 4


# Loop versions


def naive_pixel_contrast(e: Tensor, label: Tensor, valid: Tensor, tau: float, base: float) -> Tensor:
    per_anchor, n = [], len(label)
    for i in range(n):
        if not valid[i]:
            continue
        negatives = sum(
            (torch.exp(e[i] @ e[k] / tau) for k in range(n) if valid[k] and label[k] != label[i]), 0 * e.sum()
        )
        terms = []
        for j in range(n):
            if j != i and valid[j] and label[j] == label[i]:
                s = torch.exp(e[i] @ e[j] / tau)
                terms.append(-torch.log(s / (s + negatives)))
        if terms:
            per_anchor.append(sum(terms) / len(terms))
    return tau / base * sum(per_anchor, 0 * e.sum()) / max(len(per_anchor), 1)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 4), st.floats(0.05, 1.0))
def test_pixel_contrast_equals_loop(seed: int, n: int, classes: int, tau: float) -> None:
    g = torch.Generator().manual_seed(seed)
    e = unit(n, 5, g=g).requires_grad_()
    twin = e.detach().clone().requires_grad_()
    label, valid = torch.randint(0, classes, (n,), generator=g), torch.rand(n, generator=g) < 0.8
    label[~valid] = 255
    loss, expected = pixel_contrast(e, label, valid, tau, BASE), naive_pixel_contrast(twin, label, valid, tau, BASE)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(e.grad, twin.grad, rtol=1e-7, atol=1e-10)


def naive_patch_contrast(
    q: Tensor, p: Tensor, tag: Tensor, weight: Tensor, keys: Tensor, key_tag: Tensor, tau: float, epsilon: float
) -> Tensor:
    total = 0 * q.sum()
    for b in range(len(q)):
        k = min(b, len(keys) - 1)
        for n in range(q.shape[1]):
            s = torch.exp(q[b, n] @ p[b, n] / tau)
            x = s / (
                s
                + sum(
                    torch.exp(q[b, n] @ keys[k, m] / tau)
                    for m in range(keys.shape[1])
                    if key_tag[k, m] >= 0 and key_tag[k, m] != tag[b, n]
                )
            )
            total = total - weight[b, n] * torch.log(x + epsilon)
    return total


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 5), st.booleans(), st.sampled_from([0.0, 1e-8, 0.1]))
def test_patch_contrast_equals_loop(seed: int, n: int, m: int, shared: bool, epsilon: float) -> None:
    g = torch.Generator().manual_seed(seed)
    q, p, keys = unit(2, n, 4, g=g), unit(2, n, 4, g=g), unit(1 if shared else 2, m, 4, g=g)
    tag, key_tag = torch.randint(0, 3, (2, n), generator=g), torch.randint(-1, 3, keys.shape[:2], generator=g)
    weight = torch.rand(2, n, generator=g, dtype=torch.float64)
    mine, twin = q.clone().requires_grad_(), q.clone().requires_grad_()
    p.requires_grad_()
    keys.requires_grad_()
    loss = patch_contrast(mine, p, tag, weight, keys, key_tag, TAU, epsilon)
    expected = naive_patch_contrast(twin, p.detach(), tag, weight, keys.detach(), key_tag, TAU, epsilon)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, twin.grad, rtol=1e-7, atol=1e-10)
    assert p.grad is None and keys.grad is None


def test_patch_contrast_in_pieces_equals_the_whole() -> None:
    """More queries than are held at once."""
    g = torch.Generator().manual_seed(0)
    n = ROWS + 7
    q, p, keys = unit(1, n, 3, g=g).requires_grad_(), unit(1, n, 3, g=g), unit(1, 6, 3, g=g)
    tag, key_tag = torch.randint(0, 3, (1, n), generator=g), torch.tensor([[0, 1, 2, 0, 1, -1]])
    weight = torch.rand(1, n, generator=g, dtype=torch.float64)

    def gradient(pieces: list[slice]) -> Tensor:
        losses = [patch_contrast(q[:, s], p[:, s], tag[:, s], weight[:, s], keys, key_tag, TAU) for s in pieces]
        return torch.autograd.grad(torch.stack(losses).sum(), q)[0]

    torch.testing.assert_close(gradient([slice(None)]), gradient([slice(0, 500), slice(500, None)]))


def naive_anchors(label: Tensor, predicted: Tensor, keys: Tensor, quota: Tensor) -> list[int]:
    flat_label, flat_predicted, flat_keys = label.flatten(1), predicted.flatten(1), keys.flatten(1)
    chosen, cells = [], flat_label.shape[1]
    for b in range(len(label)):
        for k in range(quota.shape[1]):
            for hard in (0, 1):
                members = [
                    i for i in range(cells) if flat_label[b, i] == k and (flat_predicted[b, i] != k) == bool(hard)
                ]
                members.sort(key=lambda i: float(flat_keys[b, i]))
                chosen += [b * cells + i for i in members[: int(quota[b, k, hard])]]
    return chosen


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 30), st.integers(0, 6), st.integers(1, 12))
def test_choose_anchors_equals_loop(seed: int, images: int, classes: int, slots: int, fewest: int, side: int) -> None:
    """Also: as many as the sampling of the paper wants, each group its share, nothing of ignored or rare classes."""
    g = torch.Generator().manual_seed(seed)
    shape = (images, side, side)
    label = torch.randint(0, classes + 1, shape, generator=g)
    label[label == classes] = 255
    predicted, keys = torch.randint(0, classes, shape, generator=g), torch.rand(shape, generator=g)
    sizes = group_sizes(label, predicted, classes)
    for b in range(images):
        for k in range(classes):
            mine = label[b] == k
            assert sizes[b, k].tolist() == [
                int((mine & (predicted[b] == k)).sum()),
                int((mine & (predicted[b] != k)).sum()),
            ]
    eligible = sizes.sum(dim=-1) > fewest
    per_group = anchors_per_group(eligible.sum(), slots, fewest)
    quota = anchor_quotas(sizes, per_group) * eligible[..., None]
    index, valid = choose_anchors(label, predicted, keys, quota, slots)
    assert index.shape == valid.shape == (slots,)
    assert index[valid].tolist() == naive_anchors(label, predicted, keys, quota)
    assert int(valid.sum()) == int(per_group * eligible.sum())
    assert int(index.min()) >= 0 and int(index.max()) < label.numel()  # what fills an empty slot is a cell too
    assert (quota <= sizes * eligible[..., None]).all() and (quota >= 0).all()


# Properties


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 12))
def test_order_of_anchors_names_of_classes_and_rotation_do_not_matter(seed: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    e, label, valid = unit(n, 4, g=g), torch.randint(0, 3, (n,), generator=g), torch.rand(n, generator=g) < 0.9
    loss = pixel_contrast(e, label, valid, TAU, BASE)
    order, names = torch.randperm(n, generator=g), torch.tensor([7, 0, 3])
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))[0]
    for other in (
        pixel_contrast(e[order], label[order], valid[order], TAU, BASE),
        pixel_contrast(e, names[label], valid, TAU, BASE),
        pixel_contrast(e @ rotation, label, valid, TAU, BASE),
    ):
        torch.testing.assert_close(other, loss, rtol=1e-9, atol=1e-12)
    q, p, keys = unit(1, n, 4, g=g), unit(1, n, 4, g=g), unit(1, 5, 4, g=g)
    key_tag, weight = torch.randint(0, 3, (1, 5), generator=g), torch.rand(1, n, generator=g)
    loss = patch_contrast(q, p, label[None], weight, keys, key_tag, TAU)
    turn = torch.randperm(5, generator=g)
    for other in (
        patch_contrast(q @ rotation, p @ rotation, label[None], weight, keys @ rotation, key_tag, TAU),
        patch_contrast(q, p, names[label][None], weight, keys, names[key_tag], TAU),
        patch_contrast(q, p, label[None], weight, keys[:, turn], key_tag[:, turn], TAU),
    ):
        torch.testing.assert_close(other, loss, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", [[0, 0, 0], [0, 1, 2], [0]], ids=["one class", "no positives", "one anchor"])
@pytest.mark.parametrize("filled", [True, False])
def test_pixel_contrast_without_pairs_is_a_zero_with_graph(classes: list[int], filled: bool) -> None:
    e = unit(len(classes), 4, g=torch.Generator().manual_seed(0), dtype=torch.float32).requires_grad_()
    loss = pixel_contrast(e, torch.tensor(classes), torch.full((len(classes),), filled), TAU, BASE)
    loss.backward()
    assert loss.item() == 0 and e.grad is not None and not e.grad.any()


def test_all_ignored_crop_gives_no_anchor() -> None:
    label = torch.full((2, 3, 3), 255)
    sizes = group_sizes(label, torch.zeros_like(label), 4)
    quota = anchor_quotas(sizes, anchors_per_group(torch.tensor(0), 8, 2)) * (sizes.sum(dim=-1) > 2)[..., None]
    _, valid = choose_anchors(label, torch.zeros_like(label), torch.rand(2, 3, 3), quota, 8)
    assert not valid.any()


def test_patch_contrast_without_weight_or_negatives_is_a_zero_with_graph() -> None:
    g = torch.Generator().manual_seed(0)
    keys, tag = unit(1, 2, 4, g=g, dtype=torch.float32), torch.zeros(1, 3).long()
    for weight, key_tag in [(0.0, 1), (1.0, 0), (1.0, -1)]:  # no query; only keys of its class; an empty bank
        q = unit(1, 3, 4, g=g, dtype=torch.float32).requires_grad_()
        loss = patch_contrast(q, q, tag, torch.full((1, 3), weight), keys, torch.full((1, 2), key_tag), TAU)
        loss.backward()
        assert loss.item() == 0 and q.grad is not None and not q.grad.any()


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([torch.float32, torch.bfloat16]))
def test_precision(seed: int, dtype: torch.dtype) -> None:
    """Under autocast, too, the value is that of the given numbers in single precision."""
    g = torch.Generator().manual_seed(seed)
    label, weight = torch.arange(12) % 3, torch.rand(1, 12, generator=g)
    e, p, keys = (unit(1, 12, 16, g=g).to(dtype) for _ in range(3))

    def both(e: Tensor, p: Tensor, keys: Tensor, weight: Tensor) -> list[float]:
        pixels = pixel_contrast(e[0], label, torch.ones(12).bool(), TAU, BASE)
        return [pixels.item(), patch_contrast(e, p, label[None], weight, keys, label[None], TAU).item()]

    with torch.autocast("cpu", torch.bfloat16):
        cast = both(e, p, keys, weight)
    assert cast == pytest.approx(both(e.double(), p.double(), keys.double(), weight.double()), rel=2e-5, abs=1e-6)


# Geometry of the two views


def both_directions(
    f: tuple[Tensor, Tensor],
    c: tuple[Tensor, Tensor],
    s: tuple[Tensor, Tensor],
    overlap: Tensor,
    flipped: Tensor,
    keys: Tensor,
) -> Tensor:
    """L_patch of two (B, h, w, D) maps, seen from the first view."""
    size = (f[0].shape[1], f[0].shape[2])
    match, shared = matching_cells(overlap, flipped, size)
    image = torch.arange(len(match))[:, None]
    first, c1, s1 = (x[0].flatten(1, 2) for x in (f, c, s))
    second, c2, s2 = (x[1].flatten(1, 2)[image, match] for x in (f, c, s))
    total = torch.zeros((), dtype=first.dtype)
    key_tag = torch.arange(keys.shape[1])[None] % 3
    for q, p, tag, mask in zip((first, second), (second, first), (c1, c2), directions(s1, s2, 0.5), strict=True):
        weight = (mask & shared).to(first.dtype)
        total = total + patch_contrast(q, p, tag, weight / weight.sum().clamp(min=1), keys, key_tag, TAU)
    return total


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(-4, 4), st.integers(-4, 4))
def test_swapping_the_views_changes_nothing(seed: int, dy: int, dx: int) -> None:
    g = torch.Generator().manual_seed(seed)
    f = (unit(2, 5, 5, 4, g=g), unit(2, 5, 5, 4, g=g))
    c = (torch.randint(0, 3, (2, 5, 5), generator=g), torch.randint(0, 3, (2, 5, 5), generator=g))
    s = (torch.rand(2, 5, 5, generator=g), torch.rand(2, 5, 5, generator=g))
    overlap = torch.stack([overlap_cells(a * STRIDE, b * STRIDE, 5 * STRIDE) for a, b in ((dy, dx), (dx, -dy))])
    flipped, keys = torch.rand(2, 2, generator=g) < 0.5, unit(1, 7, 4, g=g)
    loss = both_directions(f, c, s, overlap, flipped, keys)
    swapped = both_directions(f[::-1], c[::-1], s[::-1], overlap.flip(1), flipped.flip(1), keys)
    torch.testing.assert_close(loss, swapped, rtol=1e-9, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(-5, 5), st.integers(-5, 5), st.booleans(), st.booleans())
def test_matching_cells_show_the_same_place(dy: int, dx: int, first_flipped: bool, second_flipped: bool) -> None:
    """A network that returns coordinates sees equal ones, flips included; and no shared cell is missed."""
    height, width = 6, 6
    place = torch.stack(torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij"), dim=-1)
    views = [place[7:][:height, 7:13], place[7 + dy :][:height, 7 + dx : 13 + dx]]
    flipped = torch.tensor([[first_flipped, second_flipped]])
    views = [v.flip(1) if f else v for v, f in zip(views, flipped[0], strict=True)]
    overlap = overlap_cells(dy * STRIDE, dx * STRIDE, height * STRIDE)[None]
    match, shared = matching_cells(overlap, flipped, (height, width))
    first, second = (v.reshape(-1, 2) for v in views)
    assert torch.equal(first[shared[0]], second[match[0]][shared[0]])
    assert int(shared.sum()) == (height - abs(dy)) * (width - abs(dx))
    assert torch.equal(match[0][~shared[0]], torch.arange(height * width)[~shared[0]])


@pytest.mark.parametrize("loss", ["anchors", "pixel", "patch"])
def test_no_shape_depends_on_the_data(loss: str) -> None:
    """The whole function becomes one graph."""
    g = torch.Generator().manual_seed(0)
    label, keys = torch.randint(0, 3, (2, 8, 8), generator=g), torch.rand(2, 8, 8, generator=g)

    def anchors(label: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        sizes = group_sizes(label, nearest_labels(label.flip(1), (8, 8)), 3)
        quota = anchor_quotas(sizes, anchors_per_group((sizes.sum(dim=-1) > 5).sum(), 40, 5))
        return choose_anchors(label, label.flip(1), keys, quota, 40)

    tags, weight = label.flatten(1), torch.ones(2, 64)
    e = unit(64, 4, g=g, dtype=torch.float32).requires_grad_()
    functions: dict[str, tuple[Callable[..., object], tuple[Tensor, ...]]] = {
        "anchors": (anchors, (label, keys)),
        "pixel": (lambda e, c: pixel_contrast(e, c, c < 2, TAU, BASE), (e, tags[0])),
        "patch": (
            lambda e, c, w: patch_contrast(e.expand(2, -1, -1), e.expand(2, -1, -1), c, w, e[None], c[:1], TAU),
            (e, tags, weight),
        ),
    }
    function, arguments = functions[loss]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(compiled, function(*arguments))
