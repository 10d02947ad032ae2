"""SePiCo's losses and statistics: the oracles of docs/methods/sepico.md (float64), loop versions and invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from udaseg.data.sampling import rare_class_probabilities
from udaseg.engine.optim import learning_rate
from udaseg.losses import sepico
from udaseg.losses.segmentation import cell_labels
from udaseg.losses.sepico import (
    Statistics,
    anchor_sum,
    anchors,
    bank_contrast,
    class_sums,
    dist_contrast,
    empty_bank,
    merged,
    proto_contrast,
    push,
    regulariser,
)
from udaseg.methods.base import Averaged
from udaseg.methods.step.crops import crop_scores
from udaseg.methods.step.mixing import without_border
from udaseg.params import Schedule

EXACT = 1e-9


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def each(values: list[float]) -> pytest.approx:  # type: ignore[valid-type]
    return pytest.approx(values, rel=1e-9, abs=1e-10)


def empty(classes: int, width: int) -> Statistics:
    return Statistics(f64(*[0] * classes), f64(*[[0] * width] * classes), f64(*[[0] * width] * classes))


def features(g: torch.Generator, cells: int, width: int) -> Tensor:
    """Non-negative unit vectors, as the projection head gives them."""
    return normalize(torch.rand(cells, width, generator=g, dtype=torch.float64) + 1e-3, dim=1)


# --- loop versions -----------------------------------------------------------------------------------------------------


def naive_dist(q: Tensor, label: Tensor, mean: Tensor, variance: Tensor, seen: Tensor, t: float) -> Tensor:
    total, count = 0 * q.sum(), 0
    for i in range(len(q)):
        y = int(label[i])
        if y == 255 or not seen[y]:
            continue
        z = 0 * q.sum()
        for c in range(len(mean)):
            if seen[c]:
                z = z + torch.exp(q[i] @ mean[c] / t + (q[i] ** 2 * variance[c]).sum() / (2 * t**2))
        total, count = total - q[i] @ mean[y] / t + z.log(), count + 1
    return total / max(count, 1)


def naive_bank(q: Tensor, label: Tensor, keys: list[list[Tensor]], t: float) -> Tensor:
    total, count = 0 * q.sum(), 0
    for i in range(len(q)):
        y = int(label[i])
        if y == 255 or not keys[y]:
            continue
        z = 0 * q.sum()
        for c, bank in enumerate(keys):
            if c != y and bank:
                z = z + torch.exp(sum(q[i] @ k for k in bank) / len(bank) / t)
        terms = [-torch.log(torch.exp(q[i] @ k / t) / (torch.exp(q[i] @ k / t) + z)) for k in keys[y]]
        total, count = total + sum(terms) / len(terms), count + 1
    return total / max(count, 1)


def naive_regulariser(q: Tensor, label: Tensor, mean: Tensor, seen: Tensor, t: float) -> Tensor:
    chosen = [i for i in range(len(q)) if label[i] != 255 and seen[label[i]]]
    known = [c for c in range(len(mean)) if seen[c]]
    if not chosen or len(known) < 2:
        return 0 * q.sum()
    centre = torch.stack([q[i] for i in chosen]).mean(dim=0)
    z = torch.stack([(centre @ mean[c] / t).exp() for c in known])
    return (z / z.sum()).log().sum() / (len(known) * math.log(len(known)))


def bank_of(keys: list[list[Tensor]], slots: int, width: int) -> tuple[Tensor, Tensor]:
    bank, pushed = empty_bank(len(keys), slots, width, zero=False)
    bank = bank.double()
    for c, own in enumerate(keys):
        for key in own:
            bank, pushed = push(bank, pushed, key.expand(len(keys), -1), torch.arange(len(keys)) == c)
    return bank, pushed


# --- oracles -----------------------------------------------------------------------------------------------------------

STEP_1 = f64((1, 0), (0, 1), (0.6, 0.8)), torch.tensor([0, 0, 1])
STEP_2 = f64((0.8, 0.6)), torch.tensor([0])


def test_sepico_1() -> None:
    state = empty(3, 2)
    bank, pushed = empty_bank(3, 4, 2, zero=True)
    bank = bank.double()
    for step, (key, label) in enumerate((STEP_1, STEP_2)):
        sums = class_sums(key, label, state.mean)
        state, centroid = merged(state, sums)
        bank, pushed = push(bank, pushed, centroid, sums[:, 0] > 0)
        if step == 0:
            assert state.number.tolist() == [2, 1, 0]
            torch.testing.assert_close(state.mean, f64((0.5, 0.5), (0.6, 0.8), (0, 0)), rtol=EXACT, atol=1e-12)
            torch.testing.assert_close(state.variance, f64((0.25, 0.25), (0, 0), (0, 0)), rtol=EXACT, atol=1e-12)
    assert state.number.tolist() == [3, 1, 0]
    assert state.mean[0].tolist() == pytest.approx([0.6, 0.5333333], abs=1e-7)
    assert state.variance[0].tolist() == pytest.approx([0.1866667, 0.1688889], abs=1e-7)
    torch.testing.assert_close(state.mean[1:], f64((0.6, 0.8), (0, 0)), rtol=EXACT, atol=1e-12)
    assert not state.variance[1:].any()
    expected = f64(
        [(0, 0), (0.5, 0.5), (0.8, 0.6), (0, 0)], [(0, 0), (0.6, 0.8), (0, 0), (0, 0)], [(0, 0)] * 4
    )  # fmt: skip
    torch.testing.assert_close(bank, expected, rtol=EXACT, atol=1e-12)
    assert pushed.tolist() == [3, 2, 1]

    backwards, _ = merged(empty(3, 2), class_sums(*STEP_2, empty(3, 2).mean))
    backwards, _ = merged(backwards, class_sums(*STEP_1, backwards.mean))
    shift = empty(3, 2).mean + 0.3  # any common shift serves; two ranks send the sums of their cells
    ranks = class_sums(STEP_1[0][:1], STEP_1[1][:1], shift) + class_sums(STEP_1[0][1:], STEP_1[1][1:], shift)
    split, _ = merged(empty(3, 2)._replace(mean=shift), ranks)
    split, _ = merged(split, class_sums(*STEP_2, split.mean))
    for other in (backwards, split):
        torch.testing.assert_close(other.mean[:2], state.mean[:2], rtol=EXACT, atol=1e-12)
        torch.testing.assert_close(other.variance[:2], state.variance[:2], rtol=EXACT, atol=1e-12)


@pytest.mark.parametrize(
    ("classes", "temperature", "expected"),
    [(3, 1, 0.551444714), (3, 100, 1.091956745), (19, 1, 2.031016491), (19, 100, 2.934967795), (19, 0.1, 0.000816865)],
)
def test_sepico_2(classes: int, temperature: float, expected: float) -> None:
    mean, seen, label = torch.eye(classes).double(), torch.ones(classes, dtype=torch.bool), torch.tensor([0])
    q = mean[:1].clone().requires_grad_()
    loss = proto_contrast(q, label, mean, seen, temperature)
    assert loss.item() == pytest.approx(expected, abs=5e-10)
    closed = math.log(math.exp(1 / temperature) + classes - 1) - 1 / temperature
    assert loss.item() == pytest.approx(closed, rel=1e-10)
    if (classes, temperature) == (3, 1):
        (gradient,) = torch.autograd.grad(loss, q)
        assert gradient[0].tolist() == pytest.approx([-0.423883115, 0.211941558, 0.211941558], abs=1e-9)
    zero = proto_contrast(torch.rand(4, classes).double(), label.expand(4), 0 * mean, seen, temperature)
    assert zero.item() == pytest.approx(math.log(classes), rel=1e-10)


Q, T = f64((0.6, 0.8)), 0.5
MEAN, VARIANCE = f64((1, 0), (0, 1)), f64((0.1, 0.2), (0.3, 0.05))
BOTH = torch.tensor([True, True])


@pytest.mark.parametrize(
    ("y", "expected", "gradient"),
    [(0, 1.2125558755, [-0.6523957841, 1.5323957841]), (1, 0.8125558755, [1.3476042159, -0.4676042159])],
)
def test_sepico_3(y: int, expected: float, gradient: list[float]) -> None:
    q = Q.clone().requires_grad_()
    loss = dist_contrast(q, torch.tensor([y]), MEAN, VARIANCE, BOTH, T)
    loss.backward()
    assert loss.item() == each(expected)  # type: ignore[arg-type]
    assert q.grad is not None and q.grad[0].tolist() == each(gradient)


@pytest.mark.parametrize(("y", "expected"), [(0, 0.9130152524), (1, 0.5130152524)])
def test_sepico_4(y: int, expected: float) -> None:
    label = torch.tensor([y])
    loss = dist_contrast(Q, label, MEAN, 0 * VARIANCE, BOTH, T).item()
    assert loss == pytest.approx(expected, abs=1e-10)
    assert loss == proto_contrast(Q, label, MEAN, BOTH, T).item()


@pytest.mark.parametrize(("y", "expected", "gap"), [(0, 1.1593760683, 0.05318), (1, 0.7235403378, 0.08902)])
def test_sepico_5(y: int, expected: float, gap: float) -> None:
    """The positive similarity is Gaussian with the class's mean and variance along q; negatives have a closed form."""
    centre = (Q[0] @ MEAN[y] / T).item()
    spread = ((Q[0] ** 2 * VARIANCE[y]).sum().sqrt() / T).item()
    other = 1 - y
    log_z = (Q[0] @ MEAN[other] / T + (Q[0] ** 2 * VARIANCE[other]).sum() / (2 * T**2)).item()
    x, weight = np.polynomial.hermite_e.hermegauss(120)
    expectation = (weight * np.logaddexp(0, log_z - centre - spread * x)).sum() / weight.sum()
    assert expectation == pytest.approx(expected, abs=1e-9)
    bound = dist_contrast(Q, torch.tensor([y]), MEAN, VARIANCE, BOTH, T).item()
    assert bound - expectation == pytest.approx(gap, abs=5e-6)

    rng = np.random.default_rng(y)
    key = MEAN[y].numpy() + np.sqrt(VARIANCE[y].numpy()) * rng.standard_normal((200_000, 2))
    sample = np.logaddexp(0, log_z - key @ Q[0].numpy() / T)
    assert abs(sample.mean() - expected) < 5 * sample.std() / math.sqrt(len(sample))


def test_sepico_6() -> None:
    g = torch.Generator().manual_seed(6)
    for temperature in (0.3, 1.0, 100.0):
        q = features(g, 6, 5).requires_grad_()
        mean, variance = features(g, 4, 5), 0.1 * torch.rand(4, 5, generator=g, dtype=torch.float64)
        label, seen = torch.randint(0, 4, (6,), generator=g), torch.ones(4, dtype=torch.bool)
        (gradient,) = torch.autograd.grad(dist_contrast(q, label, mean, variance, seen, temperature), q)
        q = q.detach()
        p = (q @ mean.T / temperature + q**2 @ variance.T / (2 * temperature**2)).softmax(dim=1)
        formula = (p @ mean - mean[label]) / temperature + q * (p @ variance) / temperature**2
        assert (gradient * 6 - formula).abs().max() < 1e-14

    classes, width = 19, 512
    centre = torch.rand(classes, width, generator=g, dtype=torch.float64).pow(4)
    label = torch.arange(classes).repeat_interleave(40)
    keys = normalize((centre[label] + 0.3 * torch.randn(len(label), width, generator=g).double()).relu(), dim=1)
    state, _ = merged(empty(classes, width), class_sums(keys, label, empty(classes, width).mean))
    q, seen = keys.clone().requires_grad_(), torch.ones(classes, dtype=torch.bool)
    (dist,) = torch.autograd.grad(dist_contrast(q, label, state.mean, state.variance, seen, 100.0), q)
    (proto,) = torch.autograd.grad(proto_contrast(q, label, state.mean, seen, 100.0), q)
    assert 0 < (dist - proto).norm() / proto.norm() < 5e-3


def test_sepico_7() -> None:
    one = torch.tensor(1)
    flat, peak = f64(0.5, 0.5).requires_grad_(), f64(1, 0).requires_grad_()
    loss = regulariser(flat, one, MEAN, BOTH, 1.0)
    assert loss.item() == pytest.approx(-1, abs=1e-12)
    assert not torch.autograd.grad(loss, flat)[0].any()
    loss = regulariser(peak, one, MEAN, BOTH, 1.0)
    assert loss.item() == pytest.approx(-1.1732886035, abs=1e-10)
    assert torch.autograd.grad(loss, peak)[0].tolist() == pytest.approx([-0.3333470655, 0.3333470655], abs=1e-10)
    assert regulariser(peak, one, MEAN, BOTH, 1.0, sign=-1.0).item() == pytest.approx(1.1732886035, abs=1e-10)
    assert regulariser(peak, one, MEAN, BOTH, 100.0).item() == pytest.approx(-1.0000180336, abs=1e-10)


K = f64((1, 0), (0, 1), (0.8, 0.6), (0.6, 0.8), (0, 0))
ANCHORS, YS = f64((1, 0), (0.6, 0.8)), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("keys", "temperature", "expected", "mean"),
    [
        ([[K[0]], [K[1]]], 1.0, [0.3132616875, 0.5981388694], None),
        ([[K[0], K[2]], [K[1], K[3]]], 1.0, [0.4386315165, 0.6361910993], 0.5374113079),
        ([[K[0], K[2]], [K[1], K[3]]], 0.1, [0.0038134074, 0.3516110946], 0.1777122510),
        ([[K[0], K[2]], [K[1], K[3]]], 100.0, None, 0.6913496456),
        (
            [[K[4], K[0]], [K[4], K[1]]],
            1.0,
            [0.5032044340, 0.6642161143],
            0.5837102742,
        ),  # the mean of the two; the table's last digits, 782, are not
    ],
)
def test_sepico_8(
    keys: list[list[Tensor]], temperature: float, expected: list[float] | None, mean: float | None
) -> None:
    bank, pushed = bank_of(keys, 4, 2)
    each_alone = [
        bank_contrast(ANCHORS[i : i + 1], YS[i : i + 1], bank, pushed, temperature).item() for i in range(2)
    ]  # fmt: skip
    together = bank_contrast(ANCHORS, YS, bank, pushed, temperature).item()
    assert together == pytest.approx(sum(each_alone) / 2, rel=1e-12)
    if expected is not None:
        assert each_alone == pytest.approx(expected, abs=1e-10)
    if mean is not None:
        assert together == pytest.approx(mean, abs=1e-10)
    centre = torch.stack([torch.stack(own).mean(dim=0) for own in keys])
    proto = [proto_contrast(ANCHORS[i : i + 1], YS[i : i + 1], centre, BOTH, temperature).item() for i in range(2)]
    if len(keys[0]) == 1:
        assert each_alone == pytest.approx(proto, rel=1e-12)
    else:
        assert all(b >= p for b, p in zip(each_alone, proto, strict=True))
    if (temperature, mean) == (1.0, 0.5374113079):
        assert proto == pytest.approx([0.4374879505, 0.6349461016], abs=1e-10)


@pytest.mark.parametrize(
    ("counts", "expected"), [({0: 12, 1: 4}, 0), ({0: 11, 1: 5}, 255), ({255: 12, 1: 4}, 255), ({7: 12, 255: 4}, 7)]
)
def test_sepico_9(counts: dict[int, int], expected: int) -> None:
    block = torch.tensor([label for label, n in counts.items() for _ in range(n)])
    for order in (torch.arange(16), torch.randperm(16, generator=torch.Generator().manual_seed(0))):
        assert cell_labels(block[order].view(1, 4, 4), (1, 1), 19, 0.75).item() == expected


@pytest.mark.parametrize(("stride", "rows"), [(8, 63), (4, 126)])
def test_sepico_9_row_mask(stride: int, rows: int) -> None:
    weight = without_border(torch.ones(1, 640, 16), 15 / 640, 120 / 640)
    label = torch.where(weight > 0, 5, 255)
    cells = cell_labels(label, (640 // stride, 16 // stride), 19, 0.75)
    assert (cells[0, :, 0] == 5).sum() == rows and ((cells == 5) | (cells == 255)).all()


def test_sepico_10() -> None:
    rows = [(60, 40, 0), (80, 20, 0), (75, 25, 0), (50, 49, 1), (40, 30, 30), (100, 0, 0)]
    expected = [7.783224016, 0, 0, 7.803843304, 10.491274217, 0]
    counts = torch.tensor([rows, rows[::-1]])
    assert crop_scores(counts, 0.75).tolist() == [pytest.approx(expected), pytest.approx(expected[::-1])]
    labels = torch.tensor([0] * 60 + [1] * 40 + [255] * 300)  # ignored pixels are no class: the share of class 0 is 0.6
    in_box = one_hot(labels[labels != 255], 3).sum(dim=0)
    assert crop_scores(in_box, 0.75).item() == pytest.approx(7.783224016)


def test_sepico_11() -> None:
    mean = Averaged(nn.Linear(1, 1), horizon=0.025, steps=40_000)
    decays = {1: 0.5, 2: 0.6666667, 9: 0.9, 998: 0.998998999, 999: 0.999, 1000: 0.999}
    assert {t: mean.decay(t) for t in decays} == pytest.approx(decays, rel=1e-7)
    schedule = Schedule(warmup=1500 / 40_000, power=1.0)
    for t, rate in [(0, 6.0e-11), (750, 2.94375e-5), (1500, 5.775e-5), (20_000, 3.0e-5)]:
        assert learning_rate(t, 40_000, 6e-5, schedule) == pytest.approx(rate, rel=2e-6)
    found = rare_class_probabilities(np.array([90, 9, 1]), 0.01)
    assert found == pytest.approx([2.2e-39, 3.353501e-4, 0.9996646], rel=1e-6, abs=1e-38)
    assert found[0] == pytest.approx(2.2e-39, rel=0.05)


def test_sepico_13() -> None:
    g = torch.Generator().manual_seed(13)
    q = features(g, 300, 64).float()
    mean, variance, seen = features(g, 19, 64).float(), 1e-2 * torch.rand(19, 64), torch.ones(19, dtype=torch.bool)
    bank = features(g, 19 * 7, 64).float().view(19, 7, 64)
    label, pushed = torch.randint(0, 19, (300,), generator=g), torch.full((19,), 7)
    losses = {
        "proto": lambda: proto_contrast(q, label, mean, seen, 100.0),
        "dist": lambda: dist_contrast(q, label, mean, variance, seen, 100.0),
        "bank": lambda: bank_contrast(q, label, bank, pushed, 100.0),
        "regulariser": lambda: regulariser(anchor_sum(q, label, seen), torch.tensor(300), mean, seen, 100.0),
        "statistics": lambda: merged(empty(19, 64), class_sums(q, label, empty(19, 64).mean))[0].variance.sum(),
    }
    for name, loss in losses.items():
        expected = loss().item()
        with torch.autocast("cpu", torch.bfloat16):
            assert (q @ mean.T).dtype == torch.bfloat16
            assert loss().item() == pytest.approx(expected, abs=1e-6), name


# --- loop versions and invariances -------------------------------------------------------------------------------------

cases = given(
    st.integers(0, 2**31),
    st.integers(1, 5),  # classes
    st.sampled_from([1, 2, 13, 40]),  # cells
    st.integers(1, 4),  # slots
    st.sampled_from([0.1, 1.0, 100.0]),
)


def a_case(seed: int, classes: int, cells: int, slots: int):  # type: ignore[no-untyped-def]
    """Embeddings, labels (some 255), statistics of which some classes are unseen, and banks filled to different lengths."""
    g = torch.Generator().manual_seed(seed)
    q, mean = features(g, cells, 6), features(g, classes, 6)
    variance = 0.1 * torch.rand(classes, 6, generator=g, dtype=torch.float64)
    label = torch.randint(0, classes + 1, (cells,), generator=g)
    label[label == classes] = 255
    seen = torch.rand(classes, generator=g) < 0.8
    lengths = torch.randint(0, slots + 1, (classes,), generator=g)
    keys = [list(features(g, max(int(n), 1), 6))[: int(n)] for n in lengths]
    return q, label, mean * seen[:, None], variance * seen[:, None], seen, keys


def agrees(q: Tensor, ours, theirs) -> None:  # type: ignore[no-untyped-def]
    a, b = q.clone().requires_grad_(), q.clone().requires_grad_()
    found, expected = ours(a), theirs(b)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@cases
def test_contrast_equals_loop(seed: int, classes: int, cells: int, slots: int, t: float) -> None:
    q, label, mean, variance, seen, keys = a_case(seed, classes, cells, slots)
    everything = torch.ones_like(seen)  # the released code lets unseen classes compete with a zero mean
    for who in (seen, everything):
        agrees(
            q,
            lambda x, who=who: dist_contrast(x, label, mean, variance, who, t),
            lambda x, who=who: naive_dist(x, label, mean, variance, who, t),
        )
        agrees(
            q,
            lambda x, who=who: proto_contrast(x, label, mean, who, t),
            lambda x, who=who: naive_dist(x, label, mean, 0 * variance, who, t),
        )
        agrees(
            q,
            lambda x, who=who: regulariser(anchor_sum(x, label, who), anchors(label, who)[0].sum(), mean, who, t),
            lambda x, who=who: naive_regulariser(x, label, mean, who, t),
        )
    bank, pushed = bank_of(keys, slots, 6)
    agrees(q, lambda x: bank_contrast(x, label, bank, pushed, t), lambda x: naive_bank(x, label, keys, t))


@settings(max_examples=15, deadline=None)
@cases
def test_order_of_cells_and_names_of_classes_do_not_matter(
    seed: int, classes: int, cells: int, slots: int, t: float
) -> None:
    q, label, mean, variance, seen, keys = a_case(seed, classes, cells, slots)
    g = torch.Generator().manual_seed(seed)
    order, name = torch.randperm(cells, generator=g), torch.randperm(classes, generator=g)
    bank, pushed = bank_of(keys, slots, 6)
    renamed = torch.full((256,), 255)
    renamed[name] = torch.arange(classes)  # the new class c is the old class name[c]

    def losses(
        q: Tensor, y: Tensor, mean: Tensor, variance: Tensor, seen: Tensor, bank: Tensor, pushed: Tensor
    ) -> Tensor:
        total, number = anchor_sum(q, y, seen), anchors(y, seen)[0].sum()
        return torch.stack(
            [
                dist_contrast(q, y, mean, variance, seen, t),
                bank_contrast(q, y, bank, pushed, t),
                regulariser(total, number, mean, seen, t),
            ]
        )

    one = losses(q, label, mean, variance, seen, bank, pushed)
    two = losses(
        q[order], renamed[label[order]], mean[name], variance[name], seen[name], bank[name], pushed[name]
    )  # fmt: skip
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@settings(max_examples=15, deadline=None)
@cases
def test_single_precision_against_double(seed: int, classes: int, cells: int, slots: int, t: float) -> None:
    q, label, mean, variance, seen, keys = a_case(seed, classes, cells, slots)
    bank, pushed = bank_of(keys, slots, 6)
    for loss in (
        lambda x: dist_contrast(x, label, mean, variance, seen, t),
        lambda x: bank_contrast(x, label, bank, pushed, t),
    ):
        torch.testing.assert_close(loss(q.float()).double(), loss(q), rtol=2e-5, atol=1e-6)
        half = q.bfloat16()
        assert loss(half).dtype == torch.float32
        torch.testing.assert_close(loss(half).double(), loss(half.double()), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("label", [[255, 255, 255], [2, 2, 255]])
def test_no_anchor_is_a_zero_with_graph(label: list[int]) -> None:
    """All cells ignored, or of a class that nothing stands for yet."""
    y, seen, pushed = torch.tensor(label), torch.tensor([True, True, False]), torch.tensor([2, 1, 0])
    for nothing in (False, True):
        mean, variance, bank = torch.rand(3, 4), torch.rand(3, 4), torch.rand(3, 2, 4)
        who, keys = (seen & False, pushed * 0) if nothing else (seen, pushed)
        q = torch.rand(3, 4, requires_grad=True)
        losses = [
            proto_contrast(q, y, mean, who, 0.1),
            dist_contrast(q, y, mean, variance, who, 0.1),
            bank_contrast(q, y, bank, keys, 0.1),
            regulariser(anchor_sum(q, y, who), anchors(y, who)[0].sum(), mean, who, 0.1),
        ]
        assert all(loss.item() == 0 for loss in losses)
        torch.stack(losses).sum().backward()
        assert q.grad is not None and not q.grad.any()


def test_one_class_competes_with_nobody() -> None:
    seen, label = torch.tensor([True, False]), torch.tensor([0, 0, 1])
    q = features(torch.Generator().manual_seed(0), 3, 4).requires_grad_()
    mean = features(torch.Generator().manual_seed(1), 2, 4)
    bank, pushed = bank_of([[mean[0]], []], 2, 4)
    losses = [
        proto_contrast(q, label, mean, seen, 0.1),
        bank_contrast(q, label, bank, pushed, 0.1),
        regulariser(anchor_sum(q, label, seen), torch.tensor(2), mean, seen, 0.1),
    ]
    torch.stack(losses).sum().backward()
    assert all(loss.item() == pytest.approx(0, abs=1e-12) for loss in losses)
    assert q.grad is not None and q.grad.abs().max() < 1e-12


def test_portions_of_a_batch_average_to_the_whole() -> None:
    """`cells` is the mean number of anchors per rank: ranks average to the loss of the global batch."""
    q, label, mean, variance, seen, keys = a_case(3, 4, 40, 3)
    bank, pushed = bank_of(keys, 3, 6)
    for who, loss in (
        (seen, lambda x, y, n: dist_contrast(x, y, mean, variance, seen, 1.0, n)),
        (pushed > 0, lambda x, y, n: bank_contrast(x, y, bank, pushed, 1.0, n)),
    ):
        per_rank = anchors(label, who)[0].sum() / 2
        halves = [loss(q[part], label[part], per_rank) for part in (slice(0, 12), slice(12, 40))]
        torch.testing.assert_close(sum(halves) / 2, loss(q, label, None), rtol=1e-12, atol=0)


def test_a_wide_batch_fills_several_tiles() -> None:
    q, label, *_, keys = a_case(5, 3, 700, 3)
    bank, pushed = bank_of(keys, 3, 6)
    assert len(q) // 4 < sepico.TILE < len(q)
    assert bank_contrast(q, label, bank, pushed, 1.0).item() == pytest.approx(
        naive_bank(q, label, keys, 1.0).item(), rel=1e-12
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_statistics_are_those_of_all_cells_so_far(seed: int, sizes: list[int]) -> None:
    g = torch.Generator().manual_seed(seed)
    portions = [(features(g, n, 4), torch.randint(0, 4, (n,), generator=g)) for n in sizes]
    for _, label in portions:
        label[label == 3] = 255
    keys, labels = (torch.cat(parts) for parts in zip(*portions, strict=True))
    for order in itertools.islice(itertools.permutations(portions), 3):
        state = empty(3, 4)
        for key, label in order:
            state, centroid = merged(state, class_sums(key, label, state.mean))
            for c in label.unique().tolist():
                if c != 255:
                    torch.testing.assert_close(centroid[c], key[label == c].mean(dim=0), rtol=1e-10, atol=1e-12)
        for c in range(3):
            own = keys[labels == c]
            assert state.number[c] == len(own)
            if len(own):
                torch.testing.assert_close(state.mean[c], own.mean(dim=0), rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(state.variance[c], own.var(dim=0, correction=0), rtol=1e-9, atol=1e-12)
            else:
                assert not state.mean[c].any() and not state.variance[c].any()


def test_momentum_forgets() -> None:
    state = empty(2, 2)
    for key in ((1.0, 0.0), (0.0, 1.0)):
        state, _ = merged(state, class_sums(f64(key), torch.tensor([0]), state.mean), momentum=0.9)
    torch.testing.assert_close(state.mean, f64((0.9, 0.1), (0, 0)), rtol=EXACT, atol=1e-12)
    torch.testing.assert_close(state.variance, f64((0.09, 0.09), (0, 0)), rtol=EXACT, atol=1e-12)
    assert state.number.tolist() == [2, 0]


def test_bank_is_first_in_first_out() -> None:
    bank, pushed = empty_bank(2, 3, 1, zero=True)
    for step in range(1, 5):
        bank, pushed = push(bank, pushed, torch.full((2, 1), float(step)), torch.tensor([True, step == 1]))
        held = sorted(bank[0, : min(int(pushed[0]), 3), 0].tolist())
        assert held == sorted([0.0, *map(float, range(1, step + 1))][-3:])
    assert bank[1, :, 0].tolist() == [0, 1, 0] and pushed.tolist() == [5, 2]


def test_compiled_losses_have_no_graph_break() -> None:
    q, label, mean, variance, seen, keys = a_case(1, 4, 40, 3)
    bank, pushed = bank_of(keys, 3, 6)
    for loss, rest in (
        (proto_contrast, (label, mean, seen, 1.0)),
        (dist_contrast, (label, mean, variance, seen, 1.0)),
        (bank_contrast, (label, bank, pushed, 1.0)),
        (regulariser, (torch.tensor(9), mean, seen, 1.0)),
    ):
        first = q.sum(dim=0) if loss is regulariser else q
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        agrees(first, lambda x, f=compiled, r=rest: f(x, *r), lambda x, f=loss, r=rest: f(x, *r))
