"""The papers' losses for loops of others: their examples run, their defaults are the papers', their values the plain forms'."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tiny_project import ROOT
from udaseg import contrast, params
from udaseg.classes import IGNORE
from udaseg.errors import UserError
from udaseg.losses import plain
from udaseg.losses.segmentation import nearest_labels

CLASSES = 5


@pytest.fixture
def g() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def maps(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


def labels(g: torch.Generator, *shape: int) -> Tensor:
    """Four of the five classes, and a sixth of the pixels ignored."""
    return torch.tensor([0, 1, 2, 4, 4, IGNORE])[torch.randint(0, 6, shape, generator=g)]


def rows(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1).permute(0, 2, 3, 1).flatten(0, 2)


def test_every_example_runs_and_gives_a_gradient() -> None:
    found = doctest.DocTestFinder(exclude_empty=True).find(contrast, globs={**vars(contrast), "torch": torch})
    examples = {test.name.rpartition(".")[2]: test for test in found if test.examples}
    assert set(examples) == {"bcl", "plca", "sepico", "pipa_pixel", "pipa_patch", "cluda"}
    runner = doctest.DocTestRunner()
    for test in examples.values():
        assert len(test.examples) < 10
        torch.manual_seed(0)
        runner.run(test, clear_globs=False)
        leaves = [x for x in test.globs.values() if isinstance(x, Tensor) and x.requires_grad and x.is_leaf]
        assert leaves and all(x.grad is not None and x.grad.isfinite().all() and (x.grad != 0).any() for x in leaves)
    assert runner.failures == 0


def test_defaults_are_those_of_params_yaml() -> None:
    methods = params.load(ROOT / "params.yaml").methods

    def differing(settings: Any, block: Any, *ours: str) -> dict[str, Any]:
        values = {key: value for key, value in settings._asdict().items() if key not in ours}
        return {key: value for key, value in values.items() if getattr(block, key) != value}

    assert not differing(contrast.BclSettings(), methods["bcl"])
    assert not differing(contrast.PlcaSettings(), methods["plca"], "level")
    sepico = methods["sepico"].block("sepico")
    assert not differing(contrast.SepicoSettings(), sepico, "momentum", "bank")
    assert (contrast.SepicoSettings().momentum, contrast.SepicoSettings().bank) == (
        sepico.statistics.momentum,
        sepico.bank.length,
    )
    pipa = methods["pipa"].block("pipa")
    assert not differing(contrast.PipaPixelSettings(), pipa.pixel) and not differing(
        contrast.PipaPatchSettings(), pipa.patch
    )
    assert not differing(contrast.CludaSettings(), methods["cluda"].block("cluda"))


def test_bcl_is_the_plain_form(g: torch.Generator) -> None:
    source, target = maps(g, 2, 6, 4, 4), maps(g, 2, 6, 4, 4)
    y_s, y_t = labels(g, 2, 8, 8), labels(g, 2, 8, 8)
    settings = contrast.BclSettings(labels="static", calibration="static")
    bias = torch.ones(CLASSES, 6, dtype=torch.float64)
    found = contrast.bcl(source, y_s, target, y_t, bias, settings)
    (rho_s, in_s), (rho_t, in_t) = (
        plain.bcl_prototypes(f, nearest_labels(y, (4, 4)), CLASSES) for f, y in ((source, y_s), (target, y_t))
    )
    shared = in_s & in_t

    def only_shared(label: Tensor) -> Tensor:
        kept = torch.stack([shared[b][label[b].clamp(max=CLASSES - 1)] for b in range(2)]) & (label != IGNORE)
        return torch.where(kept, label, IGNORE)

    assert found.forward.item() == pytest.approx(plain.bcl_contrast(target, only_shared(y_t), rho_s, in_s, 0.1).item())
    assert found.backward.item() == pytest.approx(plain.bcl_contrast(source, only_shared(y_s), rho_t, in_t, 0.1).item())
    moved = shared.any(dim=0)
    step = ((rho_t - rho_s) * shared[..., None]).sum(dim=0) / shared.sum(dim=0).clamp(min=1)[:, None]
    assert torch.allclose(found.bias[moved], 0.99 * bias[moved] + 0.01 * step[moved])
    assert torch.equal(found.bias[~moved], bias[~moved]) and not found.bias.requires_grad


def test_bcl_fills_holes_from_the_nearest_prototype() -> None:
    ways = torch.eye(2)[:, :, None, None].repeat(1, 1, 2, 2)  # image 0 all first direction, image 1 all second
    source = torch.cat([ways[:1], ways[1:]], dim=2)  # (1, 2, 4, 2): class 0 above, class 1 below
    label = torch.tensor([0, 0, 1, 1])[:, None].expand(1, 4, 2)
    nothing = torch.full((1, 4, 2), IGNORE)
    zeros = torch.zeros(2, 2)
    settled = contrast.bcl(source, label, source, nothing, zeros, contrast.BclSettings(labels="static"))
    assert settled.forward == 0 and settled.backward == 0
    filled = contrast.bcl(source, label, source, nothing, zeros)
    assert filled.forward.item() == pytest.approx(
        torch.log1p(torch.tensor(-10.0).exp()).item(), rel=1e-3
    )  # cosines 1, 0


@pytest.mark.parametrize("level", ["feature", "prediction"])
def test_plca_is_the_plain_form(g: torch.Generator, level: Any) -> None:
    source, target, label = maps(g, 2, CLASSES, 4, 5), maps(g, 2, CLASSES, 3, 5), labels(g, 2, 8, 10)
    found = contrast.plca(source, target, label, contrast.PlcaSettings(level=level))
    x, y = source.flatten(2).mT, target.flatten(2).mT
    if level == "feature":
        y = plain.plca_aggregation(y, plain.plca_standardised(plain.plca_cosine(y, y)), 0.5)
        there, back = plain.plca_cosine(x, y), plain.plca_cosine(y, x)
    else:
        x, y = x.softmax(dim=2), y.softmax(dim=2)
        y = plain.plca_aggregation(y, plain.plca_divergence(y, y), 0.5)
        there, back = plain.plca_divergence(x, y), plain.plca_divergence(y, x)
    expected = plain.plca_association(there, back, nearest_labels(label, (4, 5)).flatten(1))[0]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6) and found > 0


@pytest.mark.parametrize("prototype", ["proto", "bank", "dist"])
def test_sepico_is_the_plain_form_over_two_steps(g: torch.Generator, prototype: Any) -> None:
    settings = contrast.SepicoSettings(prototype=prototype, temperature=0.5, regulariser=0.1, bank=3)
    state = contrast.sepico_state(CLASSES, 6, settings)
    number, mean, variance = state.number, state.mean, state.variance
    kept: list[list[Tensor]] = [[] for _ in range(CLASSES)]
    for _ in range(2):
        x, y = maps(g, 2, 6, 4, 4), labels(g, 2, 4, 4)
        before = tuple(value.clone() for value in state)
        after = contrast.sepico_update(state, x, y, settings)
        assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))  # given, not altered
        state = after
        number, mean, variance = plain.sepico_statistics(rows(x.detach()), y.flatten(), number, mean, variance)
        for c in range(CLASSES):
            if (y == c).any():
                kept[c].append(rows(x.detach())[y.flatten() == c].mean(dim=0))
    assert torch.allclose(state.mean, mean) and torch.allclose(state.variance, variance)
    q, y = maps(g, 2, 6, 4, 4), labels(g, 2, 4, 4)
    seen, cells, t = number > 0, y.flatten(), 0.5
    if prototype == "proto":
        expected = plain.sepico_proto(rows(q), cells, mean, seen, t)
    elif prototype == "dist":
        expected = plain.sepico_dist(rows(q), cells, mean, variance, seen, t)
    else:
        bank = torch.zeros(CLASSES, 3, 6, dtype=torch.float64)
        for c, keys in enumerate(kept):
            bank[c, : len(keys)] = torch.stack(keys) if keys else 0
        length = torch.tensor([len(keys) for keys in kept])
        expected = plain.sepico_bank(rows(q), cells, bank, length, t)
    expected = expected + 0.1 * plain.sepico_regulariser(rows(q), cells, mean, seen, t)
    assert contrast.sepico(q, y, state, settings).item() == pytest.approx(expected.item(), rel=1e-5)


def test_pipa_pixel_chooses_as_the_paper(g: torch.Generator) -> None:
    """Cells of a class alike, so that only how many are chosen counts: 9 of 16 cells eligible, V = min(40 // 2, 6)."""
    label = torch.tensor([[0, 0, 1, 1]] * 4)[None].clone()
    label[0, 0, 0] = 2  # a class of one cell is not eligible
    ways = torch.randn(3, 5, generator=g, dtype=torch.float64)
    e = ways[label].permute(0, 3, 1, 2).clone().requires_grad_()
    settings = contrast.PipaPixelSettings(anchors=40, eligible=0.375)
    found = contrast.pipa_pixel(e, label, torch.randn(1, 3, 4, 4, generator=g), settings, g)
    classes = torch.tensor([0] * 6 + [1] * 6)
    expected = plain.pipa_pixel(F.normalize(ways[classes], dim=1), classes, torch.ones(12, dtype=torch.bool), 0.1, 0.07)
    assert found.item() == pytest.approx(expected.item())
    found.backward()
    assert e.grad is not None and (e.grad[0, :, 0, 0] == 0).all()


def test_pipa_pixel_takes_halves_of_hard_and_easy_cells(g: torch.Generator) -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    label[:, 4:] = 1
    logits = F.one_hot(label, 2).permute(0, 3, 1, 2).double()
    wrong = torch.zeros(8, 8, dtype=torch.bool)
    wrong[:, 0] = True  # 8 of 64 cells, 4 of each class
    logits = torch.where(wrong, 1 - logits, logits)
    e = maps(g, 1, 4, 8, 8)
    contrast.pipa_pixel(e, label, logits, contrast.PipaPixelSettings(anchors=16, eligible=0.2), generator=g).backward()
    assert e.grad is not None
    used = (e.grad[0] != 0).any(dim=0)
    assert used.sum() == 16 and (used & wrong).sum() == 8


def test_pipa_patch_is_the_plain_form_over_two_steps(g: torch.Generator) -> None:
    overlap = torch.tensor([[[1, 0, 3, 4], [0, 0, 3, 4]]]).expand(2, 2, 4)
    flipped = torch.zeros(2, 2, dtype=torch.bool)
    settings = contrast.PipaPatchSettings(confidence=0.5, bank_share=0.5)
    bank = None
    for _ in range(2):
        e1, e2 = maps(g, 2, 6, 4, 4), maps(g, 2, 6, 4, 4)
        p1, p2 = (maps(g, 2, 3, 4, 4).detach().mul(2).softmax(dim=1) for _ in range(2))
        loss, bank = contrast.pipa_patch((e1, p1), (e2, p2), overlap, flipped, bank, settings, g)
    assert bank is not None and bank.keys.shape == (3, 2 * 2 * 8, 6)
    assert (bank.label[0] == -1).all() and (bank.label[1:] >= 0).all() and not bank.keys.requires_grad
    first = (slice(None), slice(None), slice(1, 4))  # rows 1..3 of the first view are rows 0..2 of the second
    second = (slice(None), slice(None), slice(0, 3))
    (f1, s1), (f2, s2) = (
        (F.normalize(e, dim=1)[where].flatten(2).mT, p[where].flatten(2).mT)
        for e, p, where in ((e1, p1, first), (e2, p2, second))
    )
    (s1, c1), (s2, c2) = s1.max(dim=2), s2.max(dim=2)
    m1, m2 = (s2 > 0.5) & (s1 < s2), (s1 > 0.5) & (s2 < s1)
    keys, tags = bank.keys.flatten(0, 1)[None], bank.label.flatten()[None]
    there = plain.pipa_patch(f1, f2, c1, m1 / m1.sum(), keys, tags, 0.1)
    expected = there + plain.pipa_patch(f2, f1, c2, m2 / m2.sum(), keys, tags, 0.1)
    assert loss.item() == pytest.approx(expected.item()) and m1.any() and m2.any()


def test_cluda_is_the_plain_form(g: torch.Generator) -> None:
    features, label = maps(g, 2, 6, 4, 4), labels(g, 2, 8, 8)
    weight = torch.rand(2, 4, 4, generator=g, dtype=torch.float64).repeat_interleave(2, 1).repeat_interleave(2, 2)
    settings = contrast.CludaSettings(stride=2, temperature=0.5)
    cells = label[:, 1::2, 1::2].flatten()  # the pixel at the cell's centre
    at = weight[:, ::2, ::2].flatten()
    found = contrast.cluda(features, label, weight, settings=settings)
    assert found.item() == pytest.approx(plain.cluda(rows(features), cells, at, 0.5).item())
    unweighted = contrast.cluda(features, label, settings=settings)
    assert unweighted.item() == pytest.approx(plain.cluda(rows(features), cells, torch.ones_like(at), 0.5).item())

    detail = contrast.CludaDetail(maps(g, 2, 6, 2, 2), torch.tensor([[0, 0, 4, 4]] * 2), maps(g, 2, 1, 4, 4).sigmoid())
    inside = torch.zeros(2, 4, 4, dtype=torch.bool)
    inside[:, :2, :2] = True
    whole = F.pad(detail.features, (0, 2, 0, 2))
    expected = plain.cluda_two_resolutions(
        *(features.permute(0, 2, 3, 1).flatten(0, 2), whole.permute(0, 2, 3, 1).flatten(0, 2), cells, at),
        *(detail.blend.flatten(), inside.flatten(), 0.5),
    )
    assert contrast.cluda(features, label, weight, detail, settings).item() == pytest.approx(expected.item())


def test_cluda_with_fewer_anchors_averages_to_all(g: torch.Generator) -> None:
    features, label = maps(g, 2, 6, 4, 4), labels(g, 2, 8, 8)
    all_of_them = contrast.cluda(features, label, settings=contrast.CludaSettings(stride=2)).item()
    some = contrast.CludaSettings(stride=2, anchors=8)
    draws = torch.stack([contrast.cluda(features, label, settings=some, generator=g).detach() for _ in range(400)])
    assert draws.std() > 0 and abs(draws.mean().item() - all_of_them) < 4 * draws.std().item() / 20


Z = torch.zeros


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: contrast.cluda(Z(4, 8, 8), Z(1, 8, 8).long()), r"cluda: found maps of shape \(4, 8, 8\)"),
        (lambda: contrast.cluda(Z(1, 4, 8, 8), Z(1, 8, 8)), r"labels of shape .* torch.float32, expected \(1, height"),
        (lambda: contrast.cluda(Z(1, 4, 8, 8), Z(1, 4, 4).long()), "at least the stride, 8"),
        (
            lambda: contrast.sepico(Z(1, 4, 8, 8), Z(1, 8, 8).long(), contrast.sepico_state(3, 5)),
            "maps of 4 channels, expected 5, as its state",
        ),
        (lambda: contrast.plca(Z(1, 4, 8, 8), Z(1, 5, 8, 8), Z(1, 8, 8).long()), "as many images and channels"),
        (lambda: contrast.pipa_pixel(Z(1, 4, 8, 8), Z(1, 8, 8).long(), Z(1, 8, 8)), "found logits of shape"),
        (
            lambda: contrast.pipa_patch(
                (Z(1, 4, 8, 8), Z(1, 3, 8, 8)), (Z(1, 4, 8, 9), Z(1, 3, 8, 9)), Z(1, 2, 4), Z(1, 2)
            ),
            "the same in both views",
        ),
        (
            lambda: contrast.bcl(
                *(Z(1, 4, 8, 8), Z(1, 8, 8).long(), Z(1, 4, 6, 6), Z(1, 8, 8).long(), Z(3, 4)),
            ),
            "expected pairs of one shape",
        ),
    ],
)
def test_a_wrong_layout_is_said_in_one_line(call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
