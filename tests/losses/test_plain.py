"""The losses that train against their plain forms, value and gradient, in float64.

Every case has ignored cells and a class that does not occur. What the plain forms leave out (variants, zero features, nothing
to contrast) is in the tests of each paper's losses.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg import identity
from udaseg.classes import IGNORE
from udaseg.losses import bcl, cluda, pipa, plain, plca, segmentation, sepico

CLASSES, ABSENT = 5, 3
TINY = 1e-10  # a floor of the temperatures that is never reached
Form = Callable[..., Tensor]
Case = tuple[Form, Form, tuple[Tensor, ...]]  # the loss that trains, its plain form, the leaves that both take


def randn(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def rand(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=g, dtype=torch.float64)


def unit(g: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(randn(g, *shape), dim=-1)


def labels(g: torch.Generator, *shape: int) -> Tensor:
    """Four of the five classes, and a sixth of the cells ignored."""
    return torch.tensor([0, 1, 2, 4, 4, IGNORE])[torch.randint(0, 6, shape, generator=g)]


def bcl_contrast(g: torch.Generator) -> Case:
    """Pixels of one domain and prototypes of the other, which is how the gradient reaches both."""
    own, other = randn(g, 2, 4, 3, 5), randn(g, 2, 4, 3, 5)
    label, other_label = labels(g, 2, 7, 11), labels(g, 2, 7, 11)
    own_cells, other_cells = (segmentation.nearest_labels(y, (3, 5)) for y in (label, other_label))

    def fast(own: Tensor, other: Tensor) -> Tensor:
        here, there = (
            bcl.prototypes(*bcl.class_sums(f, y, CLASSES)) for f, y in ((own, own_cells), (other, other_cells))
        )
        counts = bcl.label_counts(label, (3, 5), CLASSES) * (here.present & there.present)[..., None, None]
        return bcl.contrast(bcl.cosine(own, there.vectors), there.present, counts, 0.1)

    def dense(own: Tensor, other: Tensor) -> Tensor:
        _, here = plain.bcl_prototypes(own, own_cells, CLASSES)
        vectors, there = plain.bcl_prototypes(other, other_cells, CLASSES)
        shared = torch.cat([here & there, torch.zeros(2, IGNORE + 1 - CLASSES, dtype=torch.bool)], dim=1)
        anchors = torch.stack([torch.where(o[y], y, IGNORE) for o, y in zip(shared, label, strict=True)])
        return plain.bcl_contrast(own, anchors, vectors, there, 0.1)

    return fast, dense, (own, other)


def plca_features(g: torch.Generator) -> Case:
    label = labels(g, 2, 13)

    def fast(source: Tensor, target: Tensor) -> Tensor:
        target = plca.aggregated_features(target, alpha=0.5, floor=TINY, tile=4)
        cycles = plca.feature_cycles(source, target, label, floor=TINY, tile=4)
        return cycles.total / cycles.kept.sum()

    def dense(source: Tensor, target: Tensor) -> Tensor:
        target = plain.plca_aggregation(target, plain.plca_standardised(plain.plca_cosine(target, target)), 0.5)
        similarity = plain.plca_cosine(source, target)
        return plain.plca_association(similarity, similarity.mT, label)[0]

    return fast, dense, (randn(g, 2, 13, 4), randn(g, 2, 9, 4))


def plca_predictions(g: torch.Generator) -> Case:
    label = labels(g, 2, 13)

    def fast(source: Tensor, target: Tensor) -> Tensor:
        p, q = source.softmax(dim=2), plca.aggregated_probabilities(target.softmax(dim=2), alpha=0.5, tile=4)
        cycles = plca.probability_cycles(p, q, label, floor=TINY, tile=4)
        return cycles.total / cycles.kept.sum()

    def dense(source: Tensor, target: Tensor) -> Tensor:
        p, q = source.softmax(dim=2), target.softmax(dim=2)
        q = plain.plca_aggregation(q, plain.plca_divergence(q, q), 0.5)
        return plain.plca_association(plain.plca_divergence(p, q), plain.plca_divergence(q, p), label)[0]

    return fast, dense, (randn(g, 2, 13, CLASSES), randn(g, 2, 9, CLASSES))


def plca_smoothing(g: torch.Generator) -> Case:
    return (
        lambda z: plca.adaptive_smoothing(z, 10.0),
        lambda z: plain.plca_smoothing(z, 10.0),
        (3 * randn(g, 2, CLASSES, 3, 4),),
    )


def plca_lovasz(g: torch.Generator) -> Case:
    label = labels(g, 2, 4, 5)
    return (
        lambda z: plca.lovasz_softmax(z.softmax(dim=1), label),
        lambda z: plain.plca_lovasz(z.softmax(dim=1), label),
        (randn(g, 2, CLASSES, 4, 5),),
    )


def sepico_statistics(g: torch.Generator) -> Case:
    """Class 1 is new, class 3 does not occur; the gradient stands for the dependence on every cell."""
    label = labels(g, 30)
    number = torch.tensor([7, 0, 3, 5, 2]).double()
    mean, variance = rand(g, CLASSES, 4), rand(g, CLASSES, 4)
    mean[1], variance[1] = 0, 0
    by = randn(g, 2, CLASSES, 4)

    def fast(key: Tensor) -> Tensor:
        old = sepico.Statistics(number, mean, variance)
        new, _ = sepico.merged(old, sepico.class_sums(key, label, mean))
        return new.number.sum() + (by * torch.stack(new[1:])).sum()

    def dense(key: Tensor) -> Tensor:
        new = plain.sepico_statistics(key, label, number, mean, variance)
        return new[0].sum() + (by * torch.stack(new[1:])).sum()

    return fast, dense, (rand(g, 30, 4),)


def sepico_operands(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, its labels, means, and seen classes: not the absent one, and one whose cells are no anchors therefore."""
    seen = torch.tensor([True, False, True, False, True])
    assert not seen[ABSENT]
    return unit(g, 30, 6), labels(g, 30), unit(g, CLASSES, 6), seen


def sepico_proto(g: torch.Generator) -> Case:
    q, *rest = sepico_operands(g)
    return lambda q: sepico.proto_contrast(q, *rest, 0.3), lambda q: plain.sepico_proto(q, *rest, 0.3), (q,)


def sepico_dist(g: torch.Generator) -> Case:
    q, label, mean, seen = sepico_operands(g)
    rest = (label, mean, 0.1 * rand(g, CLASSES, 6), seen, 0.3)
    return lambda q: sepico.dist_contrast(q, *rest), lambda q: plain.sepico_dist(q, *rest), (q,)


def sepico_bank(g: torch.Generator) -> Case:
    """Banks of another length each: the longest is full and has forgotten."""
    q, label, _, seen = sepico_operands(g)
    pushed = torch.tensor([2, 0, 9, 0, 1])
    length = pushed.clamp(max=4)
    assert torch.equal(length > 0, seen)
    bank = unit(g, CLASSES, 4, 6) * (torch.arange(4) < length[:, None])[..., None]
    return (
        lambda q: sepico.bank_contrast(q, label, bank, pushed, 0.3),
        lambda q: plain.sepico_bank(q, label, bank, length, 0.3),
        (q,),
    )


def sepico_regulariser(g: torch.Generator) -> Case:
    q, label, mean, seen = sepico_operands(g)

    def fast(q: Tensor) -> Tensor:
        number = sepico.anchors(label, seen)[0].sum()
        return sepico.regulariser(sepico.anchor_sum(q, label, seen), number, mean, seen, 0.3)

    return fast, lambda q: plain.sepico_regulariser(q, label, mean, seen, 0.3), (q,)


def pipa_pixel(g: torch.Generator) -> Case:
    """Empty places, and one anchor that is alone in its class."""
    label = labels(g, 24).clamp(max=CLASSES)
    label[0] = ABSENT
    valid = label < CLASSES
    return (
        lambda e: pipa.pixel_contrast(e, label, valid, 0.1, 0.07),
        lambda e: plain.pipa_pixel(e, label, valid, 0.1, 0.07),
        (unit(g, 24, 5),),
    )


def pipa_patch(g: torch.Generator, images: int = 1) -> Case:
    """Some places of the bank are empty, and some cells of the query outside the mask."""
    positive, keys = unit(g, 2, 11, 5), unit(g, images, 17, 5)
    tag, key_tag = torch.randint(0, ABSENT, (2, 11), generator=g), torch.randint(-1, CLASSES, (images, 17), generator=g)
    weight = rand(g, 2, 11) * (rand(g, 2, 11) < 0.8)
    rest = (positive, tag, weight, keys, key_tag, 0.1)
    return lambda q: pipa.patch_contrast(q, *rest), lambda q: plain.pipa_patch(q, *rest), (unit(g, 2, 11, 5),)


def pipa_patch_own_keys(g: torch.Generator) -> Case:
    return pipa_patch(g, images=2)


def cluda_single(g: torch.Generator) -> Case:
    label, weight = labels(g, 24), rand(g, 24)
    return (
        lambda f: cluda.pixel_contrast(f, label, weight, temperature=0.5),
        lambda f: plain.cluda(f, label, weight, 0.5),
        (randn(g, 24, 5),),
    )


def cluda_multi(g: torch.Generator) -> Case:
    label, weight, inside = labels(g, 24), rand(g, 24), rand(g, 24) < 0.6

    def cropped(loss: Form) -> Form:  # outside the crop a detail feature is the constant 0
        return lambda low, high, blend: loss(low, high * inside[:, None], label, weight, blend, inside)

    return (
        cropped(cluda.multi_resolution_contrast),
        cropped(plain.cluda_two_resolutions),
        (randn(g, 24, 5), randn(g, 24, 5), rand(g, 24)),
    )


CASES = (
    bcl_contrast,
    plca_features,
    plca_predictions,
    plca_smoothing,
    plca_lovasz,
    sepico_statistics,
    sepico_proto,
    sepico_dist,
    sepico_bank,
    sepico_regulariser,
    pipa_pixel,
    pipa_patch,
    pipa_patch_own_keys,
    cluda_single,
    cluda_multi,
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_fast_equals_plain(case: Callable[[torch.Generator], Case], seed: int) -> None:
    fast, dense, leaves = case(torch.Generator().manual_seed(seed))
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    found, expected = fast(*leaves), dense(*leaves)
    assert expected.isfinite() and expected != 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    gradients = torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)
    for one, two in zip(*gradients, strict=True):
        assert two.any() and two.isfinite().all()
        # sums of terms that cancel: as exact as the largest of them
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12 * two.abs().max().item())


def test_every_plain_form_has_a_case() -> None:
    tree = ast.parse(Path(__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    forms = {name for name, value in vars(plain).items() if callable(value) and value.__module__ == plain.__name__}
    forms = {name for name in forms if not name.startswith("_")} - {"bcl_cross_entropy"}  # a part of bcl_contrast
    assert forms and forms <= used, forms - used


def test_no_result_depends_on_the_plain_forms() -> None:
    """Only the benchmark imports them, and they import no loss."""
    files = [path.relative_to(identity.HERE).as_posix() for path in identity.HERE.rglob("*.py")]
    imports = {name: set(identity.imports(name, identity.stamp(name))) for name in files}
    assert [name for name, modules in imports.items() if "losses.plain" in modules] == ["bench/losses.py"]
    assert identity.closure("losses.plain") == {"losses/plain.py", "losses/__init__.py", "classes.py", "errors.py"}
