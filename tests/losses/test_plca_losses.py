"""PLCA's losses against their plain form and loops, in float64, and the oracles 5_1 to 5_11 of docs/methods/plca.md."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udaseg.bench.losses import peak_memory
from udaseg.engine.optim import learning_rate
from udaseg.losses import plain
from udaseg.losses.association import attention, match, temperatures
from udaseg.losses.plca import (
    Cycles,
    _descending,
    adaptive_smoothing,
    aggregated_features,
    aggregated_probabilities,
    feature_cycles,
    lovasz_softmax,
    probability_cycles,
)
from udaseg.losses.segmentation import nearest_labels
from udaseg.params import Schedule

LEVELS = ("cosine", "kl")
TINY = 1e-10  # a floor that is never reached: the released code


def similarities(level: str, source: Tensor, target: Tensor, alpha: float = 0.0) -> tuple[Tensor, Tensor]:
    """Whole matrices (B, N, M) and (B, M, N) of the way there and back."""
    similarity = plain.plca_cosine if level == "cosine" else plain.plca_divergence
    if alpha:
        scores = similarity(target, target)
        target = plain.plca_aggregation(target, plain.plca_standardised(scores) if level == "cosine" else scores, alpha)
    return similarity(source, target), similarity(target, source)


def dense(level: str, source: Tensor, target: Tensor, label: Tensor, alpha: float = 0.0) -> Cycles:
    """What `streamed` gives, from whole matrices."""
    if source.ndim == 2:
        source, target, label = source[None], target[None], label[None]
    loss, kept, there, back = plain.plca_association(*similarities(level, source, target, alpha), label)
    return Cycles(loss * kept.sum(), kept, there, back)


def streamed(
    level: str,
    source: Tensor,
    target: Tensor,
    label: Tensor,
    alpha: float = 0.0,
    tile: int = 3,
    floor: float = TINY,
    exclude_self: bool = False,
) -> Cycles:
    """What a step computes, for B pairs or one."""
    if source.ndim == 2:
        source, target, label = source[None], target[None], label[None]
    if level == "cosine":
        if alpha:
            target = aggregated_features(target, alpha=alpha, floor=floor, tile=tile)
        return feature_cycles(source, target, label, floor=floor, tile=tile, exclude_self=exclude_self)
    if alpha:
        target = aggregated_probabilities(target, alpha=alpha, tile=tile)
    return probability_cycles(source, target, label, floor=floor, tile=tile, exclude_self=exclude_self)


def mean(cycles: Cycles) -> Tensor:
    return cycles.total / cycles.kept.sum().clamp(min=1)


def f64(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def at_angles(degrees: list[float], norms: list[float] | None = None) -> Tensor:
    angle = torch.deg2rad(f64(degrees))
    return torch.stack([angle.cos(), angle.sin()], dim=1) * f64(norms or [1.0] * len(degrees))[:, None]


def random_pair(seed: int, level: str, n: int, m: int, batch: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Source and target with gradient, and labels of three classes, some ignored."""
    g = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    source, target = (torch.randn(*lead, k, 5, generator=g, dtype=torch.float64) for k in (n, m))
    label = torch.randint(0, 4, (*lead, n), generator=g)
    label[label == 3] = 255
    if level == "kl":
        source, target = source.softmax(dim=-1), target.softmax(dim=-1)
    return source.requires_grad_(), target.requires_grad_(), label


# Oracles


def test_plca_5_1() -> None:
    table = {4: (0.7112345942, 0.6815059078), 9: (0.7151558818, 0.6705094872), 16: (0.7844770300, 0.4854759740)}
    for n, (p_max, expected) in (table | {64: (0.9793032623, 0.0418278340)}).items():
        order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
        source = torch.eye(n, dtype=torch.float64)
        cycles = streamed("cosine", source, source[order], torch.arange(n), tile=5)
        assert mean(cycles).item() == pytest.approx(expected, abs=1e-9)
        assert mean(cycles).item() == pytest.approx(2 * math.log(1 + (n - 1) * math.exp(-math.sqrt(n))), abs=1e-12)
        assert mean(cycles).item() == pytest.approx(-2 * math.log(p_max), abs=1e-9)
        assert cycles.kept.all() and cycles.back[0].tolist() == list(range(n))
        assert order[cycles.there[0]].tolist() == list(range(n))
        tau = temperatures(source[None], source[None, order], TINY, 5)
        torch.testing.assert_close(tau, torch.full_like(tau, n**-0.5))


def test_plca_5_2() -> None:
    source = at_angles([0, 30, 80, 170], [1, 2, 3, 0.5]).requires_grad_()
    target = at_angles([10, 75, 95, 180], [4, 1, 0.1, 2]).requires_grad_()
    unit_source, unit_target = (F.normalize(x.detach(), dim=1)[None] for x in (source, target))
    rows = temperatures(unit_source, unit_target, TINY, 5)
    torch.testing.assert_close(rows, f64([[0.824279, 0.806141, 0.559106, 0.799104]]), atol=1e-6, rtol=0)
    columns = temperatures(unit_target, unit_source, TINY, 5)
    torch.testing.assert_close(columns, f64([[0.896800, 0.478927, 0.438802, 0.907710]]), atol=1e-6, rtol=0)
    both = similarities("cosine", source[None], target[None])
    p, q = (plain.plca_standardised(similarity).softmax(dim=2)[0] for similarity in both)
    torch.testing.assert_close(p[0], f64([0.562787, 0.233258, 0.153303, 0.050652]), atol=1e-6, rtol=0)
    torch.testing.assert_close(q[1], f64([0.114965, 0.293140, 0.536070, 0.055825]), atol=1e-6, rtol=0)
    for label, kept, expected in [
        ([0, 0, 1, 1], [1, 1, 1, 1], 1.4482478355),
        ([0, 1, 1, 2], [1, 0, 1, 1], 1.3287861848),
        ([0, 255, 1, 2], [1, 0, 1, 1], 1.3287861848),
        ([255] * 4, [0, 0, 0, 0], 0.0),
    ]:
        cycles = streamed("cosine", source, target, torch.tensor(label))
        assert cycles.there[0].tolist() == [0, 0, 1, 3] and cycles.back[0].tolist() == [0, 0, 2, 3]
        assert cycles.kept[0].int().tolist() == kept
        assert mean(cycles).item() == pytest.approx(expected, abs=1e-9)
    for gradient in torch.autograd.grad(mean(cycles), (source, target)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_plca_5_3() -> None:
    source, target = at_angles([0, 20, 90]), at_angles([5, 100, 200])
    for label, kept, expected in [
        ([0, 0, 1], [1, 1, 1], 0.9996703881),
        ([0, 1, 1], [1, 0, 1], 0.8944001592),
        ([1, 0, 255], [1, 0, 0], 1.1126626058),
    ]:
        cycles = streamed("cosine", source, target, torch.tensor(label))
        assert cycles.there[0].tolist() == [0, 0, 1] and cycles.back[0].tolist() == [0, 0, 2]
        assert cycles.kept[0].int().tolist() == kept
        assert mean(cycles).item() == pytest.approx(expected, abs=1e-9)


def test_plca_5_4() -> None:
    even, uneven = f64([[0.5, 0.5]]), f64([[0.9, 0.1]])
    assert plain.plca_divergence(even[None], uneven[None]).item() == pytest.approx(-0.5108256238, abs=2e-9)
    assert plain.plca_divergence(uneven[None], even[None]).item() == pytest.approx(-0.3680642072, abs=2e-9)
    source, target = f64([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), f64([[0.8, 0.2], [0.1, 0.9], [0.6, 0.4]])
    label = torch.tensor([0, 1, 0])
    (there,), (back,) = similarities("kl", source[None], target[None])
    torch.testing.assert_close(there[0], f64([-0.036690, -1.757780, -0.226289]), atol=1e-6, rtol=0)
    torch.testing.assert_close(back[0], f64([-0.044403, -0.831777, -0.192745]), atol=1e-6, rtol=0)
    for alpha, expected, home in [(0.0, 1.0556319871, None), (0.5, 1.0341221470, [2, 1, 2])]:
        cycles = streamed("kl", source, target, label, alpha)  # without the entropy
        assert mean(cycles).item() == pytest.approx(expected, abs=1e-9)
        assert cycles.there[0].tolist() == [0, 1, 2] and cycles.kept.all()
        assert home is None or cycles.back[0].tolist() == home
        assert mean(dense("kl", source, target, label, alpha)).item() == pytest.approx(expected, abs=1e-9)


def test_plca_5_5() -> None:
    identity = torch.eye(4, dtype=torch.float64)[None]
    weights = 2 * aggregated_features(identity, alpha=0.5, floor=TINY, tile=3) - identity
    expected = torch.where(identity > 0, f64(0.7112345942), f64(0.0962551353))
    torch.testing.assert_close(weights, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        (identity + weights).diagonal(dim1=1, dim2=2) / 2, torch.full((1, 4), 0.8556172971).double()
    )
    torch.testing.assert_close((weights / 2)[0, 0, 1], f64(0.0481275676), atol=1e-9, rtol=0)
    p = f64([[[0.9, 0.1], [0.1, 0.9]]])
    assert plain.plca_divergence(p, p)[0, 0, 1].item() == pytest.approx(-1.7577796619, abs=2e-9)
    self_weight = (aggregated_probabilities(p, alpha=1.0, tile=1)[0, 0, 0] - 0.1).item() / 0.8
    assert self_weight == pytest.approx(0.8529313604, abs=1e-8)
    mixed = aggregated_probabilities(p, alpha=0.5, tile=1)
    torch.testing.assert_close(mixed[0], f64([[0.841173, 0.158827], [0.158827, 0.841173]]), atol=1e-6, rtol=0)
    same = f64([0.2, 0.5, 0.3]).expand(1, 6, 3)
    for alpha in (0.1, 0.5, 1.0):
        torch.testing.assert_close(aggregated_features(same, alpha=alpha, floor=1e-4, tile=4), same)
        torch.testing.assert_close(aggregated_probabilities(same, alpha=alpha, tile=4), same)
    _, target, _ = random_pair(0, "kl", 4, 50, batch=2)
    sums = aggregated_probabilities(target, alpha=0.5, tile=7).sum(dim=2)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_plca_5_6() -> None:
    for classes, expected in [(2, -0.6451018792), (16, -2.0038639000), (19, -2.0774668890)]:
        logits = torch.zeros(1, classes, 2, 3, dtype=torch.float64, requires_grad=True)
        loss = adaptive_smoothing(logits, 10.0)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(expected, abs=1e-9) and gradient.abs().max() < 1e-15
    for first, value, slope in [(2.0, -0.9999313368, -0.3378839886), (40.0, 20.0, 0.5)]:
        logits = f64([first, 0.0]).view(1, 2, 1, 1).requires_grad_()
        loss = adaptive_smoothing(logits, 10.0)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(value, abs=1e-9)
        assert gradient.flatten().tolist() == pytest.approx([slope, -slope], abs=1e-9)
    flat = f64([2.0, 0.0]).view(1, 2, 1, 1)
    assert -flat.log_softmax(1).mean().item() == pytest.approx(1.1269280110, abs=1e-9)


def test_plca_5_7() -> None:
    identity = torch.eye(4, dtype=torch.float64)[None]
    similarity = identity.clone().requires_grad_()  # D = D I^T, so that D itself is the leaf
    total, *_ = match([similarity], [identity], torch.arange(4)[None], TINY, 3, False)
    (gradient,) = torch.autograd.grad(total / 4, similarity)
    torch.testing.assert_close(
        gradient, torch.where(identity > 0, f64(-0.2887654058), f64(0.0962551353)), atol=1e-9, rtol=0
    )
    assert gradient.sum(dim=2).abs().max() < 1e-15


GOLDEN = [
    ("cosine", 0.0, 2.1350234526, [5, 2, 0, 2, 0, 2], [0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 0, 0], 1.39267789, 1.18464534),
    ("cosine", 0.5, 2.1554136373, [5, 2, 0, 2, 0, 2], [0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 0, 0], 1.45011261, 1.02081115),
    ("kl", 0.0, 2.3118174586, [5, 2, 0, 2, 0, 2], [2, 5, 2, 5, 2, 5], [0, 0, 1, 0, 0, 0], 3.51547969, 10.59264199),
    ("kl", 0.5, 2.2362017307, [5, 2, 0, 2, 4, 2], [2, 5, 2, 5, 4, 5], [0, 0, 1, 0, 1, 0], 4.13057740, 4.75799576),
]


def golden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    i, k = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)
    return (1 + 3 * i + 7 * k).sin(), (2 + 5 * i + 11 * k).cos(), torch.tensor([0, 0, 1, 1, 2, 255])


def test_plca_5_8() -> None:
    s, t, label = golden_inputs()
    for level, alpha, expected, there, back, kept, by_source, by_target in GOLDEN:
        source, target = (s, t) if level == "cosine" else ((2 * s).softmax(1), (2 * t).softmax(1))
        source, target = source.detach().requires_grad_(), target.detach().requires_grad_()
        cycles = streamed(level, source, target, label, alpha, tile=4)
        assert mean(cycles).item() == pytest.approx(expected, abs=1e-9)
        assert cycles.there[0].tolist() == there and cycles.back[0].tolist() == back
        assert cycles.kept[0].int().tolist() == kept
        gradients = torch.autograd.grad(mean(cycles), (source, target))
        assert [g.norm().item() for g in gradients] == pytest.approx([by_source, by_target], abs=1e-7)
        twins = torch.autograd.grad(mean(dense(level, source, target, label, alpha)), (source, target))
        torch.testing.assert_close(gradients, twins, atol=1e-8, rtol=0)
    lsr = adaptive_smoothing((2 * s).T[None, :, :, None], 10.0)
    assert lsr.item() == pytest.approx(-1.6242012026, abs=1e-9)


def test_plca_5_9() -> None:
    p = f64([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]]).T.reshape(1, 3, 2, 2)
    label = torch.tensor([[[0, 0], [1, 1]]])
    assert lovasz_softmax(p, label).item() == pytest.approx(0.5083333, abs=1e-7)
    assert naive_lovasz(p, label)[1] == pytest.approx([0.45, 0.5666667], abs=1e-7)
    one_hot = F.one_hot(label, 3).permute(0, 3, 1, 2).double()
    assert lovasz_softmax(one_hot, label).item() == 0
    assert lovasz_softmax(one_hot[:, [1, 0]], label).item() == 1


def test_plca_5_10() -> None:
    for steps, horizon, rates in [
        (10416, 30 / 28, {0: 2.5e-4, 5580: 1.3397168e-4, 10415: 2.1876754e-5}),
        (2976, 10 / 8, {0: 2.5e-4, 2975: 5.8801988e-5}),
    ]:
        for step, rate in rates.items():
            schedule = Schedule(warmup=0.0, power=0.9, horizon=horizon)
            assert learning_rate(step, steps, 2.5e-4, schedule) == pytest.approx(rate, rel=1e-6)
    label = torch.arange(730).expand(1, 730, 730)
    small = nearest_labels(label, (92, 92))[0]
    for line in (small[5], nearest_labels(label.mT, (92, 92))[0, :, 5]):
        assert line[:8].tolist() == [0, 7, 15, 23, 31, 39, 47, 55] and line[-4:].tolist() == [698, 706, 714, 722]
    assert torch.equal(small.double(), F.interpolate(label[None].double(), size=(92, 92), mode="nearest")[0, 0])


def test_plca_5_11() -> None:
    for level in LEVELS:
        for n, m in [(50, 50), (50, 33), (33, 70)]:
            source, target, label = random_pair(n + m, level, n, m)
            whole = dense(level, source, target, label, 0.5)
            gradients = torch.autograd.grad(whole.total, (source, target))
            for tile in (16, 48, n):
                cycles = streamed(level, source, target, label, 0.5, tile)
                assert cycles.total.item() == pytest.approx(whole.total.item(), rel=1e-12)
                assert all(torch.equal(one, two) for one, two in zip(cycles[1:], whole[1:], strict=True))
                twins = torch.autograd.grad(cycles.total, (source, target))
                torch.testing.assert_close(twins, gradients, rtol=1e-12, atol=1e-12)
        swapped = streamed(level, target, source, torch.zeros(m, dtype=torch.int64))
        straight = streamed(level, source, target, torch.zeros(n, dtype=torch.int64))
        assert straight.kept.all() and swapped.kept.all()  # one class: all kept
        assert mean(swapped).item() != pytest.approx(mean(straight).item(), rel=1e-3)
    source, target, label = random_pair(7, "cosine", 20, 30)
    before = streamed("cosine", source, target, label)
    scale = torch.rand(30, 1, dtype=torch.float64) * 9 + 0.1
    after = streamed("cosine", source * scale[:20], target * scale, label)
    assert after.total.item() == pytest.approx(before.total.item(), rel=1e-12)
    assert streamed("cosine", source, target, label.clamp(max=2)).kept.any()
    # a constant on a row of D alone: the way back keeps operands of its own
    starts, ends = [source[None], source[None]], [target[None], target[None]]
    moved = [torch.cat([source, scale[:20]], dim=1)[None], torch.cat([target, torch.ones_like(scale)], dim=1)[None]]
    total, kept, *_ = match(starts, ends, label[None], TINY, 6, False)
    shifted, same, *_ = match([moved[0], starts[1]], [moved[1], ends[1]], label[None], TINY, 6, False)
    assert torch.equal(kept, same) and shifted.item() == pytest.approx(total.item(), rel=1e-12)


def test_ties_of_lovasz_are_broken_as_by_a_stable_sort() -> None:
    errors = torch.rand(5000, generator=torch.Generator().manual_seed(0)).mul(40).round().div(40)
    errors[::7], errors[::11] = -1.0, 0.0
    for values in (errors, errors.double()):
        assert torch.equal(_descending(values), values.argsort(descending=True, stable=True))


def test_lovasz_holds_few_maps_at_a_time() -> None:
    """Released code: 5.9 maps of all classes (118 MiB at 512x512)."""
    p = torch.rand(1, 19, 64, 64).softmax(dim=1).requires_grad_()
    label = torch.randint(0, 19, (1, 64, 64))
    maps = peak_memory(lambda: lovasz_softmax(p, label).backward(), torch.device("cpu")) / (4 * p.numel())
    assert maps < 4


# Loops and properties


def naive_lovasz(p: Tensor, label: Tensor) -> tuple[Tensor, list[float]]:
    """Mean, and the value of every class that occurs."""
    pixels = [(b, y, x) for b in range(len(p)) for y in range(p.shape[2]) for x in range(p.shape[3])]
    pixels = [n for n in pixels if label[n] != 255]
    losses = []
    for c in range(p.shape[1]):
        size = sum(int(label[n] == c) for n in pixels)
        if not size:
            continue
        errors = [
            ((1 - p[b, c, y, x] if label[b, y, x] == c else p[b, c, y, x]), int(label[b, y, x] == c))
            for b, y, x in pixels
        ]
        errors.sort(key=lambda pair: -pair[0].item())
        loss, last, hits, others = 0 * p.sum(), 0.0, 0, 0
        for error, hit in errors:
            hits, others = hits + hit, others + 1 - hit
            jaccard = 1 - (size - hits) / (size + others)
            loss, last = loss + error * (jaccard - last), jaccard
        losses.append(loss)
    total = torch.stack(losses).mean() if losses else 0 * p.sum()
    return total, [loss.item() for loss in losses]


def naive_smoothing(logits: Tensor, limit: float) -> Tensor:
    total, number = 0 * logits.sum(), 0
    for z in logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1]):
        flatness = sum((z.exp().sum().log() - z[c] for c in range(len(z))), torch.zeros_like(z[0])) / len(z)
        total = total + (flatness.item() / limit - 1) * flatness
        number += 1
    return total / number


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(LEVELS), st.integers(2, 12), st.integers(2, 12), st.sampled_from([0.0, 0.5])
)
def test_cycles_equal_the_dense_form(seed: int, level: str, n: int, m: int, alpha: float) -> None:
    source, target, label = random_pair(seed, level, n, m, batch=2)
    cycles = streamed(level, source, target, label, alpha, tile=5)
    twin = dense(level, source, target, label, alpha).total
    assert cycles.total.item() == pytest.approx(twin.item(), rel=1e-6, abs=1e-6)
    gradients = torch.autograd.grad(cycles.total, (source, target))
    torch.testing.assert_close(gradients, torch.autograd.grad(twin, (source, target)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("floor", [None, TINY, 0.3])
def test_attention_gradient(floor: float | None) -> None:
    """Against autograd of the whole matrix; a floor above some deviations is a constant temperature there."""
    g = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(2, n, d, generator=g, dtype=torch.float64) / 3 for n, d in [(7, 4), (9, 4), (9, 3)]
    )
    operands = [x.requires_grad_() for x in (query, key, value)]
    scores = query @ key.mT
    deviation = scores.detach().std(dim=2, keepdim=True)
    assert floor is None or floor == TINY or 0 < (deviation < floor).sum() < deviation.numel()
    expected = (scores / (1 if floor is None else deviation.clamp(min=floor))).softmax(dim=2) @ value
    found = attention(query, key, value, floor, 4)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(expected.shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found, operands, upstream), torch.autograd.grad(expected, operands, upstream)
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(LEVELS))
def test_order_of_pixels_and_names_of_classes_do_not_matter(seed: int, level: str) -> None:
    source, target, label = random_pair(seed, level, 11, 9)
    before = streamed(level, source, target, label, 0.5)
    g = torch.Generator().manual_seed(seed)
    at, to = torch.randperm(11, generator=g), torch.randperm(9, generator=g)
    names = torch.arange(256)
    names[:3] = torch.tensor([7, 0, 1])
    after = streamed(level, source[at], target[to], names[label][at], 0.5)
    assert after.total.item() == pytest.approx(before.total.item(), rel=1e-9)
    assert torch.equal(after.kept[0], before.kept[0][at])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(1, 30))
def test_a_cosine_cycle_is_always_kept(seed: int, n: int, m: int) -> None:
    """The two positions of the largest similarity of all are each other's nearest."""
    source, target, _ = random_pair(seed, "cosine", n, m)
    assert streamed("cosine", source, target, torch.arange(n)).kept.any()


def test_cycles_that_end_where_they_start_can_be_dropped() -> None:
    source, target, label = random_pair(2, "cosine", 12, 15)
    all_of_them = streamed("cosine", source, target, label)
    others = streamed("cosine", source, target, label, exclude_self=True)
    itself = all_of_them.back == torch.arange(12)
    assert (all_of_them.kept & itself).any()
    assert torch.equal(others.kept, all_of_them.kept & ~itself)


def test_pairs_are_pooled() -> None:
    """One mean over the cycles of all pairs, no association across pairs."""
    source, target, label = random_pair(4, "cosine", 9, 8, batch=3)
    each = [streamed("cosine", source[b], target[b], label[b]) for b in range(3)]
    together = streamed("cosine", source, target, label)
    assert together.total.item() == pytest.approx(sum(c.total.item() for c in each), rel=1e-12)
    assert torch.equal(together.kept, torch.cat([c.kept for c in each]))


def test_of_equals_the_first_is_chosen() -> None:
    source = torch.ones(1, 9, 3, dtype=torch.float64)
    target = torch.ones(1, 7, 3, dtype=torch.float64)
    for tile in (1, 2, 4, 9):
        for level in LEVELS:
            cycles = streamed(
                level, source / 3, target / 3, torch.zeros(1, 9, dtype=torch.int64), tile=tile, floor=1e-4
            )
            assert not cycles.there.any() and not cycles.back.any()
            assert mean(cycles).item() == pytest.approx(math.log(7) + math.log(9), rel=1e-9)


def test_a_row_without_information_is_uniform() -> None:
    """One entry an ulp above equal ones must not win; the released floor lets it."""
    query = torch.ones(1, 1, 1)
    key = torch.tensor([0.9, math.nextafter(0.9, 1.0) + 6e-8, 0.9, 0.9, 0.9]).view(1, 5, 1)
    value = torch.eye(5)[None]
    assert attention(query, key, value, 1e-4, 1)[0, 0, 1].item() == pytest.approx(0.2, abs=1e-3)
    assert attention(query, key, value, 1e-10, 1)[0, 0, 1].item() > 0.5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (4, 1)])
def test_one_position(level: str, n: int, m: int) -> None:
    source, target, _ = random_pair(0, level, n, m)
    cycles = streamed(level, source, target, torch.zeros(n, dtype=torch.int64), 0.5, floor=1e-4)
    gradients = torch.autograd.grad(cycles.total, (source, target))
    assert cycles.kept.all() and cycles.total.isfinite() and all(g.isfinite().all() for g in gradients)
    if n == m == 1:
        assert cycles.total.item() == 0


@pytest.mark.parametrize("level", LEVELS)
def test_all_ignored_is_a_zero_with_graph(level: str) -> None:
    source, target, label = random_pair(1, level, 6, 5)
    cycles = streamed(level, source, target, torch.full_like(label, 255), 0.5)
    assert cycles.total.item() == 0 and not cycles.kept.any()
    for gradient in torch.autograd.grad(cycles.total, (source, target)):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    p = torch.rand(1, 3, 2, 2, requires_grad=True)
    loss = lovasz_softmax(p, torch.full((1, 2, 2), 255))
    (by_p,) = torch.autograd.grad(loss, p)
    assert loss.item() == 0 and torch.equal(by_p, torch.zeros_like(by_p))


@pytest.mark.parametrize("level", LEVELS)
def test_half_precision(level: str) -> None:
    """bf16 maps: the loss of the rounded values. Single precision stays single under autocast."""
    source, target, label = random_pair(5, level, 40, 30, batch=2)
    rounded = [x.detach().bfloat16().requires_grad_() for x in (source, target)]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    low, high = streamed(level, *rounded, label, 0.5, 16, 1e-4), streamed(level, *exact, label, 0.5, 16, 1e-4)
    assert low.total.dtype == torch.float32
    assert mean(low).item() == pytest.approx(mean(high).item(), rel=2e-2)
    gradients = torch.autograd.grad(mean(low), rounded), torch.autograd.grad(mean(high), exact)
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == torch.bfloat16 and F.cosine_similarity(a.double().flatten(), b.flatten(), dim=0) > 0.98
    single = [x.detach().float() for x in (source, target)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = streamed(level, *single, label, 0.5, 16, 1e-4)
    assert torch.equal(inside.total, streamed(level, *single, label, 0.5, 16, 1e-4).total)


def test_bf16_products_change_little_where_features_cluster() -> None:
    """The loss within 5e-4, and the same classes reached."""
    g = torch.Generator().manual_seed(0)
    centres = torch.rand(8, 512, generator=g)
    kind = torch.randint(0, 8, (2, 512), generator=g)
    maps = [(centres[k] + 0.5 * torch.randn(512, 512, generator=g)).relu()[None] for k in kind]
    low = feature_cycles(*(x.bfloat16() for x in maps), kind[:1], floor=1e-4, tile=128)
    high = feature_cycles(*(x.bfloat16().double() for x in maps), kind[:1], floor=1e-4, tile=128)
    assert mean(low).item() == pytest.approx(mean(high).item(), abs=5e-4)
    assert (low.kept == high.kept).double().mean() > 0.99


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_lovasz_equals_loop(seed: int, classes: int, height: int, width: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, height, width, generator=g, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, classes + 1, (2, height, width), generator=g)
    label[label == classes] = 255
    found, expected = lovasz_softmax(logits.softmax(1), label), naive_lovasz(logits.softmax(1), label)[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.floats(0.5, 20.0))
def test_smoothing_equals_loop(seed: int, classes: int, limit: float) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(2, classes, 2, 3, generator=g, dtype=torch.float64)).requires_grad_()
    found, expected = adaptive_smoothing(logits, limit), naive_smoothing(logits, limit)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))
    with torch.autocast("cpu", torch.bfloat16):
        low = adaptive_smoothing(logits.bfloat16(), limit)
    assert low.dtype == torch.float32 and low.item() == pytest.approx(expected.item(), rel=0.05, abs=0.05)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 80), st.integers(2, 80), st.integers(1, 20))
def test_temperatures_by_covariance(seed: int, n: int, m: int, width: int) -> None:
    """Both ways of computing them; wide maps on small grids take the product, narrow ones the covariance."""
    g = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randn(2, k, width, generator=g, dtype=torch.float64) for k in (n, m))
    torch.testing.assert_close(temperatures(rows, columns, TINY, 5), (rows @ columns.mT).std(dim=2).clamp(min=TINY))
    assert temperatures(rows, columns, 5.0, 7).min() >= 5.0


def test_descent_closes_the_cycles() -> None:
    """Source and target clusters a linear map apart: following the loss, more pixels find a target pixel of their class."""
    g = torch.Generator().manual_seed(0)
    centres, turn = torch.randn(4, 16, generator=g), torch.linalg.qr(torch.randn(16, 16, generator=g))[0]
    label = torch.arange(60) % 4
    hidden = torch.randint(0, 4, (60,), generator=g)  # classes of the target: nothing in the loss sees them
    source, target = (centres[y] + 0.6 * torch.randn(60, 16, generator=g) for y in (label, hidden))
    target = target @ (torch.eye(16) + 0.9 * turn)
    weight = torch.eye(16).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.02)
    losses, right = [], []
    for _ in range(60):
        cycles = streamed("cosine", source, target @ weight, label, 0.5, tile=32, floor=1e-4)
        losses.append(mean(cycles).item())
        right.append((hidden[cycles.there[0]] == label).float().mean().item())
        optimizer.zero_grad()
        mean(cycles).backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    assert cycles.kept.all() and right[-1] > 0.98 and right[-1] > right[0]


@pytest.mark.parametrize("level", LEVELS)
def test_memory_of_a_few_tiles(level: str) -> None:
    """Aggregation, association and their gradients; the dense form holds several whole matrices."""
    n, m, tile = 500, 400, 10
    source, target, label = random_pair(0, level, n, m)

    def step() -> None:
        torch.autograd.grad(streamed(level, source, target, label, 0.5, tile, 1e-4).total, (source, target))

    step()
    matrix = 8 * n * m
    assert peak_memory(step, source.device) < matrix / 3
    assert peak_memory(lambda: dense(level, source, target, label, 0.5), source.device) > 3 * matrix


def test_compile_and_operators() -> None:
    """The operators keep their promises to torch.compile, and a whole step is one graph."""
    source, target, label = random_pair(0, "cosine", 9, 7, batch=2)
    unit = target.detach().clone().requires_grad_()
    torch.library.opcheck(attention, (unit, unit.detach().clone().requires_grad_(), unit.detach().clone(), 1e-4, 4))
    for count in (1, 2):
        operands = [[x.detach().clone().requires_grad_() for _ in range(count)] for x in (source, target)]
        torch.library.opcheck(match, (*operands, label, 1e-4, 4, False))

    image_label = label[:, :6].reshape(2, 2, 3)

    def step(source: Tensor, target: Tensor) -> Tensor:
        logits = source[:, :6].mT.reshape(2, 5, 2, 3)
        feature, prediction = (
            mean(streamed(level, f(source), f(target), label, 0.5, 4, 1e-4))
            for level, f in (("cosine", torch.clone), ("kl", lambda x: x.softmax(2)))
        )
        return feature + prediction + adaptive_smoothing(logits, 10.0) + lovasz_softmax(logits.softmax(1), image_label)

    eager, compiled = (f(source, target) for f in (step, torch.compile(step, fullgraph=True, backend="aot_eager")))
    torch.testing.assert_close(compiled, eager)
    by_eager, by_compiled = (torch.autograd.grad(loss, (source, target)) for loss in (eager, compiled))
    torch.testing.assert_close(by_compiled, by_eager)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for CUDA")
@pytest.mark.parametrize("level", LEVELS)
def test_cuda(level: str) -> None:
    """The same as on the CPU, with fp32 results of bf16 products, and equal bits twice."""
    source, target, label = random_pair(5, level, 200, 150, batch=2)
    kind = torch.bfloat16 if level == "cosine" else torch.float32
    low = [x.detach().to(kind) for x in (source, target)]
    here = mean(streamed(level, *low, label, 0.5, 64, 1e-4))
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            leaves = [x.cuda().requires_grad_() for x in low]
            loss = mean(streamed(level, *leaves, label.cuda(), 0.5, 64, 1e-4))
            found.append([loss, *torch.autograd.grad(loss, leaves)])
        p = torch.rand(2, 5, 8, 8, device="cuda", requires_grad=True)
        lovasz_softmax(p, torch.zeros(2, 8, 8, dtype=torch.int64, device="cuda")).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[0][0].item() == pytest.approx(here.item(), rel=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
