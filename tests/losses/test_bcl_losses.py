"""BCL: oracles of docs/methods/bcl.md, loop versions, properties. (O10, O11: tests/methods/test_static_labels.py; O13, O14: tests/methods/test_bcl.py.)"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udaseg.classes import class_space
from udaseg.evaluation.scores import miou
from udaseg.losses import bcl, plain
from udaseg.losses.segmentation import nearest_labels

# one pair of images of six and five pixels (O1 to O5)
F_S = torch.tensor([[2, 0], [1, 1], [0, 2], [1, -1], [0, 1], [5, 5]], dtype=torch.float64)
Y_S = torch.tensor([0, 0, 1, 0, 1, 255])
F_T = torch.tensor([[3, 1], [0, 1], [1, 3], [-1, 0], [1, 1]], dtype=torch.float64)
Y_T = torch.tensor([0, 1, 1, 2, 255])


def row(points: Tensor) -> Tensor:
    """N points (N, D) as a feature map (1, D, 1, N)."""
    return points.T[None, :, None]


def pooled(features: Tensor, label: Tensor, classes: int) -> bcl.Prototypes:
    return bcl.prototypes(*bcl.class_sums(features, nearest_labels(label, features.shape[2:]), classes))


def both_ways(
    f_s: Tensor, y_s: Tensor, f_t: Tensor, y_t: Tensor, classes: int, temperature: float, absent: str = "mask"
) -> tuple[Tensor, Tensor]:
    """FCL and BCL of features (B, D, h, w) and labels (B, H, W)."""
    rho_s, rho_t = pooled(f_s, y_s, classes), pooled(f_t, y_t, classes)
    shared = (rho_s.present & rho_t.present)[..., None, None]
    n_s = bcl.label_counts(y_s, f_s.shape[2:], classes) * shared
    n_t = bcl.label_counts(y_t, f_t.shape[2:], classes) * shared
    forward = bcl.contrast(bcl.cosine(f_t, rho_s.vectors), rho_s.present, n_t, temperature, absent=absent)
    backward = bcl.contrast(bcl.cosine(f_s, rho_t.vectors), rho_t.present, n_s, temperature, absent=absent)
    return forward, backward


def toy(temperature: float, absent: str = "mask") -> tuple[Tensor, Tensor]:
    return both_ways(row(F_S), Y_S[None, None], row(F_T), Y_T[None, None], 3, temperature, absent)


def per_anchor(f: Tensor, y: Tensor, g: Tensor, z: Tensor) -> list[float]:
    """The toy contrast at tau = 1 of each pixel of (f, y) that is an anchor with the prototypes of (g, z)."""
    rho, own = pooled(row(g), z[None, None], 3), pooled(row(f), y[None, None], 3)
    counts = bcl.label_counts(y[None, None], (1, len(y)), 3) * (rho.present & own.present)[..., None, None]
    similarity = bcl.cosine(row(f), rho.vectors)
    anchors = [i for i in range(len(y)) if counts[..., i].any()]
    return [bcl.contrast(similarity[..., i : i + 1], rho.present, counts[..., i : i + 1], 1.0).item() for i in anchors]


def test_bcl_o1() -> None:
    sums, counts = bcl.class_sums(row(F_S), Y_S[None, None], 3)
    rho_s, rho_t = bcl.prototypes(sums, counts), pooled(row(F_T), Y_T[None, None], 3)
    torch.testing.assert_close(rho_s.vectors[0], torch.tensor([[4 / 3, 0], [0, 1.5], [0, 0]], dtype=torch.float64))
    torch.testing.assert_close(rho_t.vectors[0], torch.tensor([[3, 1], [0.5, 2], [-1, 0]], dtype=torch.float64))
    assert counts.tolist() == [[3, 2, 0]]
    assert bcl.class_sums(row(F_T), Y_T[None, None], 3)[1].tolist() == [[1, 2, 1]]
    assert (rho_s.present & rho_t.present).tolist() == [[True, True, False]]


def test_bcl_o2() -> None:
    assert toy(0.1)[0].item() == pytest.approx(0.001208573, abs=1e-9)
    assert toy(1.0)[0].item() == pytest.approx(0.388492329, abs=1e-9)
    assert per_anchor(F_T, Y_T, F_S, Y_S) == pytest.approx([0.426108, 0.313262, 0.426108], abs=1e-6)


def test_bcl_o3() -> None:
    assert toy(0.1)[1].item() == pytest.approx(0.105875323, abs=1e-9)
    assert toy(1.0)[1].item() == pytest.approx(0.615336438, abs=1e-9)
    expected = [0.492256, 0.772571, 0.641346, 0.529163, 0.641346]
    assert per_anchor(F_S, Y_S, F_T, Y_T) == pytest.approx(expected, abs=1e-6)


def test_bcl_o4() -> None:
    assert [x.item() for x in toy(0.1, "minus_one")] == pytest.approx([0.001193443, 0.105850881], abs=1e-9)
    assert [x.item() for x in toy(1.0, "minus_one")] == pytest.approx([0.423224860, 0.561390889], abs=1e-9)


def test_bcl_o5() -> None:
    f_s, f_t = F_S.clone().requires_grad_(), F_T.clone().requires_grad_()
    forward, backward = both_ways(row(f_s), Y_S[None, None], row(f_t), Y_T[None, None], 3, 1.0)
    d_s, d_t = torch.autograd.grad(forward, (f_s, f_t), retain_graph=True)
    zero, a, b = [0.0, 0], [0, 0.040698], [0.024381, 0]
    expected_t = torch.tensor([[-0.014629, 0.043887], [0.089647, 0], d_t[2].tolist(), zero, zero], dtype=torch.float64)
    torch.testing.assert_close(d_t, expected_t, rtol=0, atol=1e-6)
    expected_s = torch.tensor([a, a, b, a, b, zero], dtype=torch.float64)
    torch.testing.assert_close(d_s, expected_s, rtol=0, atol=1e-6)
    negative = torch.autograd.grad(backward, f_t)[0][3]  # no anchor, but its prototype is a negative
    torch.testing.assert_close(negative, torch.tensor([0, 0.066737], dtype=torch.float64), rtol=0, atol=1e-6)
    rho = pooled(row(f_s), Y_S[None, None], 3)
    counts = bcl.label_counts(Y_T[None, None], (1, 5), 3) * torch.tensor([1, 1, 0])[:, None, None]
    detached = bcl.contrast(bcl.cosine(row(f_t), rho.vectors.detach()), rho.present, counts, 1.0)
    assert torch.autograd.grad(detached, f_s, allow_unused=True)[0] is None


def test_bcl_o6() -> None:
    for classes, expected in ((3, 9.07957e-5), (19, 8.16865e-4)):
        f = row(torch.eye(classes, dtype=torch.float64))
        label = torch.arange(classes)[None, None]
        for loss in both_ways(f, label, f, label, classes, 0.1):
            assert loss.item() == pytest.approx(expected, rel=1e-5)
            assert loss.item() == pytest.approx(math.log1p((classes - 1) * math.exp(-10)), rel=1e-9)
    same = row(torch.ones(19, 4, dtype=torch.float64))
    assert both_ways(same, label, same, label, 19, 0.1)[0].item() == pytest.approx(2.944439, abs=1e-6)
    scaled = F_T * torch.tensor([7.0, 1, 0.01, 1, 1])[:, None]
    forward = both_ways(row(F_S), Y_S[None, None], row(scaled), Y_T[None, None], 3, 0.1)[0]
    assert forward.item() == pytest.approx(toy(0.1)[0].item(), rel=1e-12)


O7 = torch.tensor([[3, 1], [1, 1], [2, 1.9], [1, 1.2], [1, 1.5]], dtype=torch.float64)


def assert_confidence(similarity: Tensor, present: Tensor, expected: list[float]) -> None:
    """Each pixel passes a threshold just below its confidence, to six digits, and none just above."""
    for i, confidence in enumerate(expected):
        pixel = similarity[..., i : i + 1]
        assert bcl.dynamic_labels(pixel, present, 0.1, confidence - 1e-6).item() != 255
        assert bcl.dynamic_labels(pixel, present, 0.1, confidence + 1e-6).item() == 255


def test_bcl_o7() -> None:
    rho = pooled(row(F_S), Y_S[None, None], 3)
    similarity = bcl.cosine(row(O7), rho.vectors)
    assert_confidence(similarity, rho.present, [0.998211, 0.5, 0.589645, 0.782513, 0.941227])
    dynamic = bcl.dynamic_labels(similarity, rho.present, 0.1, 0.8)
    assert dynamic.tolist() == [[[0, 255, 255, 255, 1]]]
    assert bcl.fuse(torch.tensor([[[255, 2, 255, 255, 1]]]), dynamic).tolist() == [[[0, 2, 255, 255, 1]]]
    two = torch.tensor([[True, True]])
    gaps = torch.tensor([[0.1, 0.2], [0, 0]], dtype=torch.float64)[None, :, None]
    assert_confidence(gaps, two, [0.731059, 0.880797])
    limit = torch.tensor([[0.138629, 0.138630], [0, 0]], dtype=torch.float64)[None, :, None]
    assert bcl.dynamic_labels(limit, two, 0.1, 0.8).tolist() == [[[255, 0]]]


def test_bcl_o8() -> None:
    rho = pooled(row(F_S), Y_S[None, None], 3)
    bias = torch.tensor([[0.5, 0.5], [0, 0], [0, 0]], dtype=torch.float64)
    similarity = bcl.cosine(row(O7), rho.vectors + bias)
    assert_confidence(similarity, rho.present, [0.998912, 0.833601, 0.872056, 0.626066, 0.685613])
    assert bcl.dynamic_labels(similarity, rho.present, 0.1, 0.0).tolist() == [[[0, 0, 0, 0, 1]]]
    assert bcl.dynamic_labels(similarity, rho.present, 0.1, 0.8).tolist() == [[[0, 0, 0, 255, 255]]]


def test_bcl_o9() -> None:
    first = bcl.class_bias(pooled(row(F_S), Y_S[None, None], 3), pooled(row(F_T), Y_T[None, None], 3))
    bias = bcl.calibrate(torch.zeros(3, 2, dtype=torch.float64), *first, 0.9)
    leaf = F_S.clone().requires_grad_()
    assert not bcl.class_bias(pooled(row(leaf), Y_S[None, None], 3), pooled(row(F_T), Y_T[None, None], 3))[
        0
    ].requires_grad
    torch.testing.assert_close(bias, torch.tensor([[1 / 6, 0.1], [0.05, 0.05], [0, 0]], dtype=torch.float64))
    source = bcl.Prototypes(torch.tensor([[[1.0, 0], [0, 1], [1, 1]]]).double(), torch.tensor([[True, True, True]]))
    target = bcl.Prototypes(torch.tensor([[[2.0, 1], [9, 9], [0, 1]]]).double(), torch.tensor([[True, False, True]]))
    bias = bcl.calibrate(bias, *bcl.class_bias(source, target), 0.9)
    torch.testing.assert_close(bias, torch.tensor([[0.25, 0.19], [0.05, 0.05], [-0.1, 0]], dtype=torch.float64))


def test_bcl_o12() -> None:
    scores = torch.tensor([[2, 0, 0], [0, 0, 0], [5, 1, -1]], dtype=torch.float64)
    each = [bcl.entropy(s[None, :, None, None]).item() for s in scores]
    assert each == pytest.approx([0.665573, 1.098612, 0.106921], abs=1e-6)
    assert bcl.entropy(row(scores)).item() == pytest.approx(0.623702, abs=1e-6)


def test_bcl_o15() -> None:
    iou = torch.arange(1, 20, dtype=torch.float64) / 100
    matrix = torch.ones(21, 19, dtype=torch.float64)  # 18 misses and 18 false alarms of each class
    matrix[19:] = 0
    matrix[range(19), range(19)] = 36 * iou / (1 - iou)
    subsets = class_space("cityscapes19").subsets
    assert 100 * miou(matrix, subsets["miou16"]) == pytest.approx(9.25, abs=1e-9)
    assert 100 * miou(matrix, subsets["miou13"]) == pytest.approx(10.230769, abs=1e-6)


def test_bcl_o16() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 4, 5, 7, generator=g, dtype=torch.float64)
    label = torch.randint(0, 5, (1, 23, 31), generator=g)
    label[label == 4] = 255
    weight = torch.tensor([1.0, 1, 0, 1], dtype=torch.float64)
    expected = plain.bcl_cross_entropy(scores, torch.where(label == 2, 255, label))
    counts = bcl.label_counts(label, (5, 7), 4) * weight[:, None, None]
    assert bcl.cell_cross_entropy(scores, counts).item() == pytest.approx(expected.item(), abs=1e-12)


def naive_both_ways(
    f_s: Tensor, y_s: Tensor, f_t: Tensor, y_t: Tensor, classes: int, temperature: float, absent: str
) -> tuple[Tensor, Tensor]:
    """As the paper says it: pixel by pixel at label size, one pair after the other."""

    def masked_means(f: Tensor, y: Tensor) -> dict[int, Tensor]:
        (height, width), members = f.shape[1:], {}
        for r in range(height):
            for s in range(width):
                k = int(y[r * y.shape[0] // height, s * y.shape[1] // width])
                members.setdefault(k, []).append(f[:, r, s])
        return {k: torch.stack(v).mean(dim=0) for k, v in members.items() if k != 255}

    def one_way(f: Tensor, y: Tensor, rho: dict[int, Tensor], own: dict[int, Tensor]) -> Tensor:
        losses = []
        for r in range(y.shape[0]):
            for s in range(y.shape[1]):
                k = int(y[r, s])
                if k not in rho or k not in own:
                    continue
                z = f[:, r * f.shape[1] // y.shape[0], s * f.shape[2] // y.shape[1]]
                cosines = {c: z @ m / (z.norm() * m.norm()) for c, m in rho.items()}
                if absent == "minus_one":
                    minus = z.new_tensor(-1.0)
                    cosines = {c: cosines.get(c, minus) for c in range(classes)}
                    cosines = {c: minus if v == 0 else v for c, v in cosines.items()}
                total = torch.stack([(v / temperature).exp() for v in cosines.values()]).sum()
                losses.append(total.log() - cosines[k] / temperature)
        return torch.stack(losses).mean() if losses else 0 * f.sum()

    pairs = []
    for i in range(len(f_s)):
        rho_s, rho_t = masked_means(f_s[i], y_s[i]), masked_means(f_t[i], y_t[i])
        pairs.append((one_way(f_t[i], y_t[i], rho_s, rho_t), one_way(f_s[i], y_s[i], rho_t, rho_s)))
    return torch.stack([p[0] for p in pairs]).mean(), torch.stack([p[1] for p in pairs]).mean()


def pair(seed: int, classes: int, size: tuple[int, int], factor: float = 1.0, batch: int = 2) -> tuple[Tensor, ...]:
    """f_s, y_s, f_t, y_t with features of `size` and 4 channels, labels about `factor` times as large, a quarter ignored."""
    g = torch.Generator().manual_seed(seed)
    full = (max(1, round(factor * size[0])), max(1, round(factor * size[1])))
    out = []
    for _ in range(2):
        label = torch.randint(0, classes, (batch, *full), generator=g)
        label[torch.rand(label.shape, generator=g) < 0.25] = 255
        out += [torch.randn(batch, 4, *size, generator=g, dtype=torch.float64), label]
    return tuple(out)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.sampled_from([0.5, 1.0, 1.7, 3.0]),
    st.sampled_from(["mask", "minus_one"]),
)
def test_contrast_equals_loop(seed: int, classes: int, size: tuple[int, int], factor: float, absent: str) -> None:
    f_s, y_s, f_t, y_t = pair(seed, classes, size, factor)
    twins = [(f_s.clone().requires_grad_(), f_t.clone().requires_grad_()) for _ in range(2)]
    found = both_ways(twins[0][0], y_s, twins[0][1], y_t, classes, 0.3, absent)
    expected = naive_both_ways(twins[1][0], y_s, twins[1][1], y_t, classes, 0.3, absent)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
        d_one = torch.autograd.grad(one, twins[0], retain_graph=True)
        d_two = torch.autograd.grad(two, twins[1], retain_graph=True, allow_unused=True)
        for x, y in zip(d_one, d_two, strict=True):
            torch.testing.assert_close(x, torch.zeros_like(x) if y is None else y, rtol=1e-8, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.randoms(use_true_random=False))
def test_contrast_ignores_order_names_and_direction(seed: int, classes: int, random) -> None:  # type: ignore[no-untyped-def]
    f_s, y_s, f_t, y_t = pair(seed, classes, (3, 4))
    found = both_ways(f_s, y_s, f_t, y_t, classes, 0.1)
    assert both_ways(f_t, y_t, f_s, y_s, classes, 0.1) == (found[1], found[0])
    order = random.sample(range(12), 12)
    shuffled = f_s.flatten(2)[..., order].view_as(f_s), y_s.flatten(1)[:, order].view_as(y_s)
    names = torch.full((256,), 255)
    names[:classes] = torch.tensor(random.sample(range(classes + 2), classes))  # some classes become absent ones
    renamed = both_ways(f_s, names[y_s], f_t, names[y_t], classes + 2, 0.1)
    for other in (both_ways(*shuffled, f_t, y_t, classes, 0.1), renamed):
        torch.testing.assert_close(torch.stack(other), torch.stack(found), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("absent", ["mask", "minus_one"])
def test_nothing_in_common_is_a_zero_with_graph(absent: str) -> None:
    f_s, y_s, f_t, y_t = pair(0, 3, (3, 3))
    ignored, others = torch.full_like(y_t, 255), torch.where(y_t == 255, 255, y_t + 3)
    for source, target in ((y_s, ignored), (ignored, ignored), (y_s, others)):
        leaves = f_s.clone().requires_grad_(), f_t.clone().requires_grad_()
        loss = torch.stack(both_ways(leaves[0], source, leaves[1], target, 6, 0.1, absent)).sum()
        assert loss.item() == 0
        for gradient in torch.autograd.grad(loss, leaves):
            assert not gradient.any()  # NaN counts as any


def test_one_pair_without_anchors_leaves_the_other_alone() -> None:
    f_s, y_s, f_t, y_t = pair(1, 3, (3, 3))
    y_t[1] = 255
    alone = both_ways(f_s[:1], y_s[:1], f_t[:1], y_t[:1], 3, 0.1)
    found = both_ways(f_s, y_s, f_t, y_t, 3, 0.1)
    torch.testing.assert_close(torch.stack(found), torch.stack(alone) / 2)


def test_zero_features_have_a_finite_gradient() -> None:
    f_s, y_s, f_t, y_t = pair(2, 3, (3, 3))
    leaves = (f_s * 0).requires_grad_(), f_t.index_fill(2, torch.tensor(1), 0).requires_grad_()
    loss = torch.stack(both_ways(leaves[0], y_s, leaves[1], y_t, 3, 0.1)).sum()
    assert loss.isfinite()
    assert all(g.abs().max() < 100 for g in torch.autograd.grad(loss, leaves))  # 1e12 where a zero length is clamped


def test_one_class_costs_nothing_and_one_pixel_counts() -> None:
    f_s, y_s, f_t, y_t = pair(3, 1, (1, 1), batch=1)
    assert both_ways(f_s, y_s * 0, f_t, y_t * 0, 1, 0.1)[0].item() == 0
    found = both_ways(f_s, y_s * 0, f_t, y_t * 0, 2, 0.1, "minus_one")[0]
    cosine = F.cosine_similarity(f_s, f_t).item()
    assert found.item() == pytest.approx(math.log1p(math.exp((-1 - cosine) / 0.1)), rel=1e-9)


def test_one_set_for_the_batch_is_one_large_pair() -> None:
    f_s, y_s, f_t, y_t = pair(4, 4, (2, 3), 2.0)

    def together(features: Tensor, label: Tensor) -> bcl.Prototypes:
        sums, counts = bcl.class_sums(features, nearest_labels(label, features.shape[2:]), 4)
        return bcl.prototypes(sums.sum(dim=0, keepdim=True), counts.sum(dim=0, keepdim=True))

    rho_s, rho_t = together(f_s, y_s), together(f_t, y_t)
    counts = bcl.label_counts(y_t, (2, 3), 4) * (rho_s.present & rho_t.present)[..., None, None]
    anchors = counts.sum() / len(counts)
    found = bcl.contrast(bcl.cosine(f_t, rho_s.vectors), rho_s.present, counts, 0.1, anchors=anchors)
    tall = [x.transpose(0, 1).flatten(1, 2)[None] for x in (f_s, f_t)]
    expected = both_ways(tall[0], y_s.flatten(0, 1)[None], tall[1], y_t.flatten(0, 1)[None], 4, 0.1)[0]
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_half_precision_and_autocast_give_the_single_precision_value() -> None:
    f_s, y_s, f_t, y_t = pair(5, 5, (6, 8), 4.0)
    half = f_s.bfloat16(), f_t.bfloat16()
    exact = torch.stack(both_ways(half[0].double(), y_s, half[1].double(), y_t, 5, 0.1))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.stack(both_ways(half[0], y_s, half[1], y_t, 5, 0.1))
        h = bcl.entropy(half[0])
    assert found.dtype == h.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(h.double(), bcl.entropy(half[0].double()), rtol=1e-5, atol=1e-6)


def test_compiles_in_one_graph() -> None:
    """Tracing and both graphs; what a backend makes of them is torch's own business."""

    def step(f_s: Tensor, y_s: Tensor, f_t: Tensor, y_t: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        rho_s = pooled(f_s, y_s, 4)
        dynamic = bcl.dynamic_labels(bcl.cosine(f_t, rho_s.vectors + bias), rho_s.present, 0.1, 0.5)
        hybrid = bcl.fuse(y_t, nearest_labels(dynamic, y_t.shape[1:]))
        losses = both_ways(f_s, y_s, f_t, hybrid, 4, 0.1)
        moved = bcl.calibrate(bias, *bcl.class_bias(rho_s, pooled(f_t, hybrid, 4)), 0.9)
        return (*losses, bcl.entropy(f_t), moved)

    f_s, y_s, f_t, y_t = pair(6, 4, (4, 6), 2.0)
    leaves = f_s.float().requires_grad_(), f_t.float().requires_grad_()
    arguments = (leaves[0], y_s, leaves[1], y_t, torch.zeros(4, 4))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments)
    eager = step(*arguments)
    torch.testing.assert_close(compiled, eager)
    gradients = [torch.autograd.grad(sum(out[:3], torch.zeros(())), leaves) for out in (compiled, eager)]
    torch.testing.assert_close(*gradients)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.tuples(*[st.integers(1, 9)] * 4))
def test_nearest_and_counts_agree_with_the_loop(seed: int, sizes: tuple[int, int, int, int]) -> None:
    g = torch.Generator().manual_seed(seed)
    (height, width), size = sizes[:2], sizes[2:]
    label = torch.randint(0, 4, (2, height, width), generator=g)
    label[label == 3] = 255
    counts = torch.zeros(2, 3, *size)
    for b in range(2):
        for r in range(height):
            for s in range(width):
                if label[b, r, s] != 255:
                    counts[b, label[b, r, s], r * size[0] // height, s * size[1] // width] += 1
    assert (bcl.label_counts(label, size, 3) == counts).all()
    small = nearest_labels(label, size)
    for r in range(size[0]):
        for s in range(size[1]):
            assert (small[:, r, s] == label[:, r * height // size[0], s * width // size[1]]).all()


def test_nearest_is_exact_where_a_float_factor_is_not() -> None:
    rows = torch.arange(46).view(1, 46, 1)
    found = nearest_labels(rows, (310, 1))[0, :, 0]
    assert (found == torch.arange(310) * 46 // 310).all()
    assert (F.interpolate(rows.view(1, 1, 46).float(), size=310)[0, 0] != found).any()


def test_counting_a_fused_label_equals_adding_dynamic_cells() -> None:
    """The label-size fusion gives each cell its static pixels and, for the holes, its dynamic class."""
    g = torch.Generator().manual_seed(7)
    static = torch.randint(0, 4, (2, 11, 17), generator=g)
    static[static == 3] = 255
    dynamic = torch.randint(0, 3, (2, 4, 5), generator=g)
    fused = bcl.fuse(static, nearest_labels(dynamic, (11, 17)))
    holes = bcl.label_counts(torch.where(static == 255, 0, 255), (4, 5), 1)
    expected = bcl.label_counts(static, (4, 5), 3) + holes * F.one_hot(dynamic, 3).permute(0, 3, 1, 2)
    assert (bcl.label_counts(fused, (4, 5), 3) == expected).all()


def test_without_bias_or_confidence_the_hybrid_is_the_static_label() -> None:
    f_s, y_s, f_t, y_t = pair(8, 4, (4, 6))
    rho_s = pooled(f_s, y_s, 4)
    dynamic = bcl.dynamic_labels(bcl.cosine(f_t, rho_s.vectors), rho_s.present, 0.1, 1.01)
    assert (bcl.fuse(y_t, dynamic) == y_t).all()
    bias = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(3):
        bias = bcl.calibrate(bias, *bcl.class_bias(rho_s, pooled(f_t, y_t, 4)), 1.0)
    assert not bias.any()


def test_an_image_without_source_classes_gets_no_dynamic_label() -> None:
    similarity = torch.zeros(1, 1, 2, 2)
    assert (bcl.dynamic_labels(similarity, torch.tensor([[False]]), 0.1, 0.8) == 255).all()
    assert (bcl.dynamic_labels(similarity, torch.tensor([[True]]), 0.1, 0.8) == 0).all()


def test_bias_is_the_mean_over_the_pairs_that_hold_the_class() -> None:
    f_s, y_s, f_t, y_t = pair(9, 6, (2, 3), batch=3)
    rho_s, rho_t = pooled(f_s, y_s, 6), pooled(f_t, y_t, 6)
    found = bcl.calibrate(torch.full((6, 4), 0.5).double(), *bcl.class_bias(rho_s, rho_t), 0.9)
    seen = 0
    for c in range(6):
        held = [p for p in range(3) if (y_s[p] == c).any() and (y_t[p] == c).any()]
        seen += len(held) < 3
        expected = torch.full((4,), 0.5).double()
        if held:
            gaps = [f_t[p][:, y_t[p] == c].mean(dim=1) - f_s[p][:, y_s[p] == c].mean(dim=1) for p in held]
            expected = 0.9 * expected + 0.1 * torch.stack(gaps).mean(dim=0)
        torch.testing.assert_close(found[c], expected)
    assert seen  # some class was missing somewhere
