"""CLUDA's contrast: oracles c1 to c12 of docs/methods/cluda.md, loop versions, and what must hold on any input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udaseg.losses import cluda
from udaseg.losses.cluda import entropy, multi_resolution_contrast, pixel_contrast, rows, uncertain_boxes

E = torch.eye(4, dtype=torch.float64)
C1 = E[[0, 0, 1, 1]]
LABEL = torch.tensor([1, 1, 2, 2])
ONE = torch.ones(4, dtype=torch.float64)
CROP = torch.tensor([True, False, True, False])
BLEND = torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=torch.float64)
C7 = torch.stack([E[0], 0 * E[0], E[1], 0 * E[1]])
EXACT = 1e-7  # oracles have seven decimals


def test_cluda_c1() -> None:
    assert pixel_contrast(C1, LABEL, ONE).item() == pytest.approx(0.5514447, abs=EXACT)
    assert pixel_contrast(3 * C1, LABEL, ONE).item() == pytest.approx(math.log(1 + 2 / math.e), abs=1e-12)


def test_cluda_c2() -> None:
    assert pixel_contrast(E[[0, 0, 0, 0]], LABEL, ONE).item() == pytest.approx(1.0986123, abs=EXACT)


def test_cluda_c2b() -> None:
    features = torch.stack([E[0], E[0], -E[0], -E[0]])
    assert pixel_contrast(features, LABEL, ONE).item() == pytest.approx(0.2395448, abs=EXACT)


def test_cluda_c3() -> None:
    assert pixel_contrast(E[[0, 0, 1]], LABEL[:3], ONE[:3]).item() == pytest.approx(0.2088411, abs=EXACT)


def test_cluda_c4() -> None:
    weight = torch.tensor([1, 1, 0.5, 0.5], dtype=torch.float64)
    assert pixel_contrast(C1, LABEL, weight).item() == pytest.approx(0.3446529, abs=EXACT)


def test_cluda_c4b() -> None:
    weight = torch.tensor([1, 0.5, 0.5, 0.25], dtype=torch.float64)
    assert pixel_contrast(C1, LABEL, weight).item() == pytest.approx(0.1723265, abs=EXACT)


def test_cluda_c5() -> None:
    """The released filter of thing classes drops no pair (D2), so there is none here: with and without it, the same value."""
    label = torch.tensor([13, 13, 2, 2])
    value = pixel_contrast(C1, label, ONE).item()
    things = {6, 7, *range(11, 19)}
    assert value == pytest.approx(0.5514447, abs=EXACT)
    assert naive(C1, label, ONE).item() == pytest.approx(value, abs=1e-12)
    alike = naive(C1, label, ONE, keep=lambda i, j: (int(label[i]) in things) == (int(label[j]) in things))
    assert alike.item() == pytest.approx(value, abs=1e-12)


def multi(low: Tensor, high: Tensor, label: Tensor, blend: Tensor, inside: Tensor, **more: Any) -> float:
    weight = more.pop("weight", ONE)
    return multi_resolution_contrast(low, high, label, weight, blend, inside, **more).item()


def test_cluda_c6() -> None:
    assert multi(C1, C1, LABEL, ONE, ONE.bool()) == pytest.approx(0.2757224, abs=EXACT)


def test_cluda_c6b() -> None:
    assert multi(C1, E[[2, 2, 3, 3]], LABEL, 0 * ONE, ONE.bool()) == pytest.approx(0.5493061, abs=EXACT)


def test_cluda_c6c() -> None:
    assert multi(C1, E[[2, 2, 3, 3]], LABEL, ONE / 2, ONE.bool()) == pytest.approx(0.4809102, abs=EXACT)


def test_cluda_c7() -> None:
    assert multi(C1, C7, LABEL, BLEND, CROP) == pytest.approx(0.3742125, abs=EXACT)


def test_cluda_c7b() -> None:
    weight = torch.tensor([1, 1, 0.5, 0.5], dtype=torch.float64)
    assert multi(C1, C7, LABEL, BLEND, CROP, weight=weight) == pytest.approx(0.2236234, abs=EXACT)


def test_cluda_c8() -> None:
    label = torch.tensor([0, 0, 2, 2])
    assert multi(C1, C7, label, BLEND, CROP) == pytest.approx(0.3742125, abs=EXACT)
    released = CROP & (label != 0)  # road counted as outside the crop (D3)
    assert multi(C1, C7, label, BLEND, released) == pytest.approx(0.4070426, abs=EXACT)


def test_cluda_c9() -> None:
    maps = C1.T.reshape(1, 4, 2, 2).expand(2, 4, 2, 2)
    label, weight = LABEL.repeat(2), ONE.repeat(2)
    assert pixel_contrast(rows(maps), label, weight).item() == pytest.approx(0.9048324, abs=EXACT)
    released = rows(maps, position_major=True)  # labels stay image-major (D1)
    assert pixel_contrast(released, label, weight).item() == pytest.approx(1.8610337, abs=EXACT)
    assert torch.equal(rows(maps[:1]), rows(maps[:1], position_major=True))  # the defect does not show with one image


def test_cluda_c10() -> None:
    uniform = entropy(torch.zeros(1, 19, 2, 3))
    torch.testing.assert_close(uniform, torch.ones(1, 2, 3))
    # the release divides by K ln K: a constant factor, which changes no window
    assert (uniform / 19).mean().item() == pytest.approx(0.0526316, abs=EXACT)
    certain = torch.full((1, 19, 1, 1), -torch.inf)
    certain[0, 3] = 0
    assert not entropy(certain.clamp(min=-1e4)).isnan().any()


def test_cluda_c11() -> None:
    quadrants = torch.tensor([[[0.1, 0.5], [0.3, 0.2]], [[0.1, 0.2], [0.9, 0.2]]])
    expected = [[0, 512, 512, 1024], [512, 0, 1024, 512]]
    for maps in (quadrants, quadrants.repeat_interleave(128, 1).repeat_interleave(128, 2)):
        assert uncertain_boxes(maps, (1024, 1024), (512, 512)).tolist() == expected


def test_cluda_c12() -> None:
    device = torch.device("cpu")
    picked = torch.tensor([0, 1, 2, 63, 64])
    released = cluda.label_points(65, 1024, device, corners=True)
    assert released[picked].tolist() == [0, 15, 31, 992, 1008]
    stride = 4  # of the feature map, whose sample lies at pixel 15.94 i + 1.5
    drift = (cluda.feature_points(65, 256, device, corners=True) + 0.5) * stride - 0.5 - released
    assert 13 < drift.max() < 14
    for length in (63, 512, 1024):
        points = cluda.feature_points(65, length, device)
        assert (points - cluda.label_points(65, length, device)).abs().max() <= 0.5 + 1e-9  # one grid for both


# --- loop versions ---------------------------------------------------------------------------------------------------------------


def naive(
    features: Tensor,
    label: Tensor,
    weight: Tensor,
    *,
    temperature: float = 1.0,
    keep: Callable[[int, int], bool] = lambda i, j: True,
) -> Tensor:
    """Section 1.3 written out, ignored rows (255) left out; `keep` filters positives."""
    unit = [f / f.norm() if f.norm() > 0 else f for f in features]
    total, valid = 0 * features.sum(), [i for i in range(len(label)) if label[i] != 255]
    for i in valid:
        positives = [j for j in valid if j != i and label[j] == label[i] and keep(i, j)]
        others = [n for n in valid if label[n] != label[i]]
        for j in positives:
            own = (unit[i] @ unit[j] / temperature).exp()
            rest = sum(((unit[i] @ unit[n] / temperature).exp() for n in others), torch.zeros((), dtype=own.dtype))
            total = total - weight[i] * weight[j] * (own / (own + rest)).log() / len(positives) / len(valid)
    return total


def naive_multi(
    low: Tensor,
    high: Tensor,
    label: Tensor,
    weight: Tensor,
    blend: Tensor,
    inside: Tensor,
    *,
    gate: str = "row",
    temperature: float = 1.0,
) -> Tensor:
    """Section 1.4 written out."""
    fl = [f / f.norm() if f.norm() > 0 else f for f in low]
    fh = [f / f.norm() if f.norm() > 0 else f for f in high]
    total, valid = 0 * low.sum() + 0 * high.sum() + 0 * blend.sum(), [i for i in range(len(label)) if label[i] != 255]
    partners = valid if gate == "row" else [j for j in valid if inside[j]]

    def one(f: Tensor, g: list[Tensor], j: int, others: list[int]) -> Tensor:
        own = (f @ g[j] / temperature).exp()
        return -(own / (own + sum(((f @ g[n] / temperature).exp() for n in others), 0 * own))).log()

    for i in valid:
        positives = [j for j in partners if j != i and label[j] == label[i]]
        for j in positives:
            w_ij = blend[i] * blend[j] * inside[i]
            within = one(fl[i], fl, j, [n for n in valid if label[n] != label[i]])
            across = one(fl[i], fh, j, [n for n in partners if label[n] != label[i]])
            pair = w_ij * within + (1 - w_ij) * across
            total = total + weight[i] * weight[j] * pair / len(positives) / len(valid) / 2
    return total


def draw(seed: int, n: int, classes: int, *, ignored: bool = True) -> dict[str, Tensor]:
    """Rows of which some are ignored, some classes absent and some features zero."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes + ignored, (n,), generator=g)
    label[label == classes] = 255
    inside = torch.rand(n, generator=g) < 0.6
    high = torch.randn(n, 3, generator=g, dtype=torch.float64) * inside[:, None]
    return {
        "features": torch.randn(n, 3, generator=g, dtype=torch.float64),
        "high": high,
        "label": label,
        "weight": torch.rand(n, generator=g, dtype=torch.float64),
        "blend": torch.rand(n, generator=g, dtype=torch.float64),
        "inside": inside,
    }


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves)


SEEDS = st.integers(0, 2**31)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 8), st.integers(1, 4), st.sampled_from([1.0, 0.3, 0.05]))
def test_pixel_contrast_equals_loop(seed: int, n: int, classes: int, temperature: float) -> None:
    d = draw(seed, n, classes)
    features = d["features"].requires_grad_()
    fast = pixel_contrast(features, d["label"], d["weight"], temperature=temperature)
    slow = naive(features, d["label"], d["weight"], temperature=temperature)
    torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(gradients(fast, features), gradients(slow, features), rtol=1e-7, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 7), st.integers(1, 3), st.sampled_from(["row", "both"]), st.sampled_from([1.0, 0.2]))
def test_multi_resolution_contrast_equals_loop(seed: int, n: int, classes: int, gate: Any, temperature: float) -> None:
    d = draw(seed, n, classes)
    leaves = (d["features"].requires_grad_(), d["high"].requires_grad_(), d["blend"].requires_grad_())
    values = [
        f(
            leaves[0],
            leaves[1],
            d["label"],
            d["weight"],
            leaves[2],
            d["inside"],
            gate=gate,
            temperature=temperature,
        )
        for f in (multi_resolution_contrast, naive_multi)
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-8, atol=1e-9)
    fast, slow = (gradients(value, *leaves) for value in values)
    fast, slow = ((f[0], f[1] * d["inside"][:, None], f[2]) for f in (fast, slow))  # outside, details are constants
    torch.testing.assert_close(fast, slow, rtol=1e-7, atol=1e-9)


def test_blocks_of_anchors_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    d = draw(3, 50, 4)
    features = d["features"].requires_grad_()
    whole = pixel_contrast(features, d["label"], d["weight"])
    monkeypatch.setattr(cluda, "CHUNK", 7)
    blocks = pixel_contrast(features, d["label"], d["weight"])
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(blocks, features), gradients(whole, features), rtol=1e-9, atol=1e-14)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 3, 4]))
def test_losses_over_equal_parts_of_the_rows_average_to_the_whole(seed: int, parts: int) -> None:
    """So the mean over ranks, and the expectation over uniform draws, is the loss over all rows."""
    d = draw(seed, 12, 3)
    features = d["features"].requires_grad_()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    pieces = order.chunk(parts)
    single = [pixel_contrast(features, d["label"], d["weight"], anchors=p) for p in pieces]
    whole = pixel_contrast(features, d["label"], d["weight"])
    torch.testing.assert_close(torch.stack(single).mean(), whole)
    torch.testing.assert_close(gradients(torch.stack(single).mean(), features), gradients(whole, features))
    more = (d["label"], d["weight"], d["blend"], d["inside"])
    double = [multi_resolution_contrast(features, d["high"], *more, anchors=p).item() for p in pieces]
    assert sum(double) / parts == pytest.approx(multi_resolution_contrast(features, d["high"], *more).item(), rel=1e-9)


# --- properties ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_order_of_rows_names_of_classes_and_rotation_do_not_matter(seed: int) -> None:
    d = draw(seed, 15, 4)
    g = torch.Generator().manual_seed(seed + 1)
    order = torch.randperm(15, generator=g)
    names = torch.cat([torch.randperm(250, generator=g), torch.arange(250, 256)])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64)).Q
    for gate in ("row", "both"):
        value = multi(d["features"], d["high"], d["label"], d["blend"], d["inside"], weight=d["weight"], gate=gate)
        other = multi(
            d["features"][order] @ turn,
            d["high"][order] @ turn,
            names[d["label"][order]],
            d["blend"][order],
            d["inside"][order],
            weight=d["weight"][order],
            gate=gate,
        )
        assert other == pytest.approx(value, rel=1e-9)
    once = pixel_contrast(d["features"], d["label"], d["weight"])
    again = pixel_contrast(d["features"][order] @ turn, names[d["label"][order]], d["weight"][order])
    torch.testing.assert_close(again, once)


def test_images_may_change_places_but_not_in_the_released_order() -> None:
    g = torch.Generator().manual_seed(0)
    maps, label = torch.randn(2, 3, 2, 3, generator=g), torch.randint(0, 3, (2, 2, 3), generator=g)
    for released in (False, True):
        values = [
            pixel_contrast(rows(maps[i], position_major=released), label[i].flatten(), torch.ones(12)).item()
            for i in ([0, 1], [1, 0])
        ]
        assert (values[0] == pytest.approx(values[1], rel=1e-6)) == (not released)


def test_constant_weight_counts_twice() -> None:
    d = draw(1, 12, 3)
    one, third = (pixel_contrast(d["features"], d["label"], torch.full((12,), w)).item() for w in (1.0, 1 / 3))
    assert third == pytest.approx(one / 9, rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(1, 4))
def test_constant_features_give_the_logarithm_of_negatives(seed: int, n: int, classes: int) -> None:
    label = draw(seed, n, classes, ignored=False)["label"]
    value = pixel_contrast(torch.ones(n, 3, dtype=torch.float64), label, torch.ones(n, dtype=torch.float64)).item()
    expected = [math.log(1 + (label != y).sum().item()) for y in label if (label == y).sum() > 1]
    assert value == pytest.approx(sum(expected) / n, rel=1e-9, abs=1e-12)


def both_losses(d: dict[str, Tensor]) -> dict[str, Tensor]:
    pair = (d["features"], d["high"], d["label"], d["weight"], d["blend"], d["inside"])
    return {
        "pixel": pixel_contrast(d["features"], d["label"], d["weight"]),
        "row": multi_resolution_contrast(*pair),
        "both": multi_resolution_contrast(*pair, gate="both"),
    }


@pytest.mark.parametrize("case", ["ignored", "one row", "one class", "all different", "no weight", "zero features"])
def test_nothing_to_contrast_is_a_zero_with_graph(case: str) -> None:
    d = draw(5, 1 if case == "one row" else 6, 3, ignored=False)
    if case == "ignored":
        d["label"][:] = 255
    if case == "one class":
        d["label"][:] = 2
    if case == "all different":
        d["label"] = torch.arange(6)
    if case == "no weight":
        d["weight"] *= 0
    if case == "zero features":
        d["features"], d["high"], d["label"][:] = d["features"] * 0, d["high"] * 0, 1
    leaves = [d[name].requires_grad_() for name in ("features", "high", "blend")]
    for name, loss in both_losses(d).items():
        assert loss.item() == 0 and loss.requires_grad
        found = torch.autograd.grad(loss, leaves[:1] if name == "pixel" else leaves)
        assert all(not gradient.any() for gradient in found)


def test_a_zero_feature_has_a_finite_gradient() -> None:
    features = torch.cat([torch.zeros(2, 3), torch.randn(4, 3)]).requires_grad_()
    (gradient,) = gradients(pixel_contrast(features, torch.tensor([0, 1, 0, 1, 0, 1]), torch.ones(6)), features)
    assert gradient.abs().max() < 10


def test_ignored_rows_change_nothing() -> None:
    d = draw(7, 14, 3)
    kept = {name: value[d["label"] != 255] for name, value in d.items()}
    for with_ignored, without in zip(both_losses(d).values(), both_losses(kept).values(), strict=True):
        torch.testing.assert_close(with_ignored, without)
    counted = torch.where(d["label"] == 255, 3, d["label"])  # the released code takes 255 for a class (D4)
    assert pixel_contrast(d["features"], counted, d["weight"]).item() != pytest.approx(
        pixel_contrast(d["features"], d["label"], d["weight"]).item(), rel=1e-3
    )


def test_gate_of_columns_keeps_zero_vectors_out() -> None:
    """D5: with `row` a positive outside the crop is a zero vector and costs ln(1 + negatives / e^0)."""
    assert multi(C1, C7, LABEL, 0 * ONE, CROP) > multi(C1, C7, LABEL, 0 * ONE, CROP, gate="both")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_half_precision_give_the_single_precision_value(dtype: torch.dtype) -> None:
    d = draw(11, 40, 3)
    rounded = {name: value.to(dtype) if value.is_floating_point() else value for name, value in d.items()}
    wide = {name: value.double() if value.is_floating_point() else value for name, value in rounded.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = both_losses(rounded)
    for name, value in both_losses(wide).items():
        assert found[name].dtype == torch.float32
        assert found[name].item() == pytest.approx(value.item(), rel=2e-6)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_small_temperature_stays_finite(seed: int) -> None:
    d = draw(seed, 12, 3)
    features = d["features"].float().requires_grad_()
    loss = pixel_contrast(features, d["label"], d["weight"].float(), temperature=1e-3)
    wide = pixel_contrast(features.double(), d["label"], d["weight"], temperature=1e-3)
    assert loss.item() == pytest.approx(wide.item(), rel=1e-3, abs=1e-3)
    assert gradients(loss, features)[0].isfinite().all()


def test_losses_compile_to_one_graph() -> None:
    d = draw(2, 20, 3)
    features = d["features"].float().requires_grad_()
    weight, blend = d["weight"].float(), d["blend"].float()
    arguments = (features, d["high"].float(), d["label"], weight, blend, d["inside"])
    for function, inputs in (
        (pixel_contrast, (features, d["label"], weight)),
        (multi_resolution_contrast, arguments),
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        plain, fused = function(*inputs), compiled(*inputs)  # type: ignore[operator]
        torch.testing.assert_close(fused, plain)
        torch.testing.assert_close(gradients(fused, features), gradients(plain, features))


# --- the sampling grid and the detail crop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [(4, 6), (5, 7), (1, 1), (16, 24)])
def test_features_are_sampled_bilinearly(cells: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centres = F.interpolate(maps, cells, mode="bilinear", align_corners=False)
    corners = F.interpolate(maps, cells, mode="bilinear", align_corners=True)
    torch.testing.assert_close(cluda.on_grid(maps, cells), centres)
    torch.testing.assert_close(cluda.on_grid(maps, cells, corners=True), corners)
    with torch.autocast("cpu", torch.bfloat16):
        assert cluda.on_grid(maps.float(), cells).dtype == torch.float32


@pytest.mark.parametrize("cells", [(4, 6), (5, 7), (16, 24)])
def test_labels_are_sampled_at_the_nearest_pixel(cells: tuple[int, int]) -> None:
    label = torch.randint(0, 19, (2, 31, 52), generator=torch.Generator().manual_seed(0))
    as_map = label[:, None].double()
    assert torch.equal(cluda.labels_on_grid(label, cells), F.interpolate(as_map, cells, mode="nearest-exact")[:, 0])
    released = cluda.labels_on_grid(label, cells, corners=True)
    assert torch.equal(released, F.interpolate(as_map, cells, mode="nearest")[:, 0])


def test_detail_features_lie_where_their_crop_lies() -> None:
    """A map that is linear in the image's coordinates is sampled at the grid's coordinates, from any crop and stride."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    image = torch.stack([y + 0.5, x + 0.5])  # coordinates of pixel centres
    boxes = torch.tensor([[0, 0, 16, 16], [8, 16, 32, 48], [0, 0, 32, 48]])
    for box in boxes:
        top, left, bottom, right = box.tolist()
        crop = F.avg_pool2d(image[:, top:bottom, left:right], 2)[None].requires_grad_()  # stride 2
        found, inside = cluda.detail_on_grid(crop, box[None], (32, 48), (8, 12))
        rows_at, columns_at = torch.arange(8) * 4 + 2, torch.arange(12) * 4 + 2
        expected = (rows_at >= top)[:, None] & (rows_at < bottom)[:, None] & (columns_at >= left) & (columns_at < right)
        assert torch.equal(inside[0], expected)
        wanted = torch.stack(torch.meshgrid(rows_at.float(), columns_at.float(), indexing="ij")) * expected
        torch.testing.assert_close(found[0], wanted)
        assert torch.autograd.grad(found.sum(), crop)[0].sum().item() == pytest.approx(2 * expected.sum().item())


def test_a_crop_of_the_whole_image_is_the_plain_sample() -> None:
    maps = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[0, 0, 32, 48]]).expand(2, 4)
    for corners in (False, True):
        found, inside = cluda.detail_on_grid(maps, whole, (32, 48), (8, 12), corners=corners)
        assert inside.all()
        if not corners:
            torch.testing.assert_close(found, cluda.on_grid(maps, (8, 12)))


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([(32, 48), (30, 50), (16, 16)]), st.sampled_from([(16, 16), (16, 24), (7, 9)]))
def test_uncertain_boxes_equal_loop(seed: int, size: tuple[int, int], window: tuple[int, int]) -> None:
    maps = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    boxes = uncertain_boxes(maps, size, window)
    window = (min(window[0], size[0]), min(window[1], size[1]))
    tops, lefts = (sorted({min(k * (w // 2), s - w) for k in range(2 * s)}) for s, w in zip(size, window, strict=True))
    for image, box in zip(maps, boxes.tolist(), strict=True):
        means = {(y, x): image[y : y + window[0], x : x + window[1]].mean().item() for y in tops for x in lefts}
        top, left = max(means, key=lambda at: means[at])
        assert box == [top, left, top + window[0], left + window[1]]


def test_a_window_larger_than_the_image_is_the_image() -> None:
    assert uncertain_boxes(torch.rand(2, 4, 6), (32, 48), (64, 64)).tolist() == [[0, 0, 32, 48]] * 2
