"""PiPa on the self-training step: oracles P12 and P13, what it shows the network, resumption, ranks, bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from steps import BLOCKS, built_with_term, content, from_scratch, launch, train, with_head
from torch import Tensor, nn
from torch.utils.data import default_collate

from tiny_project import Project
from udaseg import params
from udaseg.classes import IGNORE
from udaseg.data.prepared import find_prepared
from udaseg.data.sampling import Pairs
from udaseg.data.two_crops import overlap_cells
from udaseg.engine.optim import parameter_groups
from udaseg.errors import UserError
from udaseg.losses.pipa import directions, pixel_contrast
from udaseg.methods.base import Averaged, Batch, stream
from udaseg.methods.pipa import PipaTerm, augmented, over_stages, running_statistics, to_grid
from udaseg.methods.self_training import SelfTrainingMethod
from udaseg.models import Output


def pipa_project(project: Project, method: str = "pipa", **changes: Any) -> Project:
    """A block of the committed parameters, with what a network that knows nothing of 64x32 images needs."""
    block = copy.deepcopy(BLOCKS[method])
    small = {"start": 0.0, "crop": 0.75, "confidence": 0.05, "eligible": 0.02, "anchors": 64}
    for part in ("pixel", "patch"):
        if block["pipa"][part]:
            block["pipa"][part] |= {k: v for k, v in (small | changes).items() if k in block["pipa"][part]}
    project.set("methods/pipa", block)
    project.set(
        "benchmarks/streets/model/backbone", "resnet10t"
    )  # as sure of something before training as some tests want
    return from_scratch(project, steps=6, save_every=2)


def built() -> tuple[SelfTrainingMethod, PipaTerm]:
    """Of the project whose folder is the working folder."""
    return built_with_term(Path(), "pipa", PipaTerm)


def opinionated(*classifiers: nn.Module, std: float = 1.0) -> None:
    """Fresh classifiers hardly tell classes apart: one class everywhere, hence no negatives."""
    for classifier in classifiers:
        assert isinstance(classifier, nn.Conv2d)
        nn.init.normal_(classifier.weight, std=std, generator=torch.Generator().manual_seed(0))


def batch_of(method: SelfTrainingMethod, *numbers: int) -> Batch:
    run = method.run
    source, target = ((find_prepared("streets", use), use.split) for use in params.uses(run.benchmark)[:2])
    data = Pairs(method.views(), source, target, classes=run.classes, crop=run.train.crop,
                 rare_class=run.train.rare_class, seed=run.seed)  # fmt: skip
    return Batch.of(default_collate([data[n] for n in numbers]), torch.device("cpu"))


def backward(method: SelfTrainingMethod, batch: Batch, step: int = 0) -> dict[str, Tensor]:
    """All losses of a step; gradients stay in the parameters."""
    found: dict[str, Tensor] = {}
    for losses in method.losses(batch, step):
        torch.stack(list(losses.values())).sum().backward()
        found |= {name: value.detach() for name, value in losses.items()}
    return found


def gradient(parameters: Any) -> list[float | None]:
    return [None if p.grad is None else p.grad.abs().sum().item() for p in parameters]


def test_pipa_p12(make_project: Callable[[str], Project]) -> None:
    """The patch loss trains the network; as released, nothing but the throw-away projection, and that where `confidence` lets it."""
    for name, trains in [("pipa", True), ("pipa-released", False)]:
        pipa_project(make_project(name), name, confidence=0.0)
        method, term = built()
        opinionated(method.teacher_network.head.classify if trains else term.untrained_patch)
        batch = batch_of(method, 0, 1)
        (losses,) = term.own_passes(batch, 0, method)
        assert list(losses) == ["pipa_patch"] and losses["pipa_patch"] > 0
        losses["pipa_patch"].backward()
        encoder = gradient(method.student.parameters())
        assert any(encoder) if trains else encoder == [None] * len(encoder)
        assert all(gradient(term.project.parameters()))


def test_released_patch_loss_is_zero_at_the_published_confidence(make_project: Callable[[str], Project]) -> None:
    """The random classifier is never that sure, however sure the teacher is, whose confidence counts in `paper`."""
    for name, active in [("pipa", True), ("pipa-released", False)]:
        published = BLOCKS[name]["pipa"]["patch"]["confidence"]
        pipa_project(make_project(name), name, confidence=published)
        method, term = built()
        opinionated(method.teacher_network.head.classify, std=10.0)
        (losses,) = term.own_passes(batch_of(method, 0, 1), 0, method)
        assert published == 0.9 and (losses["pipa_patch"] > 0) == active


def test_pipa_p13() -> None:
    averaged = Averaged(nn.Linear(1, 1), 0.025, 40_000)
    assert [averaged.decay(t) for t in (0, 1, 9, 999, 1000)] == pytest.approx([0, 0.5, 0.9, 0.999, 0.999])


@pytest.mark.parametrize("block", ["pipa", "pipa-released", "pipa-pixel", "pipa-patch", "pipa-figure"])
@pytest.mark.parametrize(
    "head", [("segformer", []), ("daformer", [2, 4]), ("deeplabv2", [2, 4])], ids=["segformer", "daformer", "deeplabv2"]
)
def test_one_step_of_each_block_with_each_head(project: Project, block: str, head: tuple[str, list[int]]) -> None:
    pipa_project(project, block)
    with_head(project, *head)
    method, term = built()
    losses = backward(method, batch_of(method, 0, 1))
    expected = {"pipa_pixel"} if block != "pipa-patch" else set()
    expected |= {"pipa_patch"} if block != "pipa-pixel" else set()
    assert {name for name in losses if name.startswith("pipa")} == expected
    assert all(value.isfinite() for value in losses.values())
    if term.pixel:
        assert losses["pipa_pixel"] > 0 and all(gradient([term.head.first.weight, term.head.last.weight]))
    assert all(g is not None for g in gradient(p for p in method.student.parameters() if p.requires_grad))
    trained = {name.split(".")[0] for name, p in term.named_parameters() if p.requires_grad}
    assert trained == ({"head"} if term.pixel else set()) | ({"project"} if term.patch else set())


def test_learning_rates(project: Project) -> None:
    """The pixel head learns at the heads' rate, the patch projection at the base rate, untrained classifiers not at all."""
    pipa_project(project, "pipa-released")
    method, term = built()
    groups = parameter_groups(method, method.run.train.optimizer)
    rates = {id(p): group["factor"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert {rates.get(id(p)) for p in term.head.parameters()} == {2.0}
    assert {rates.get(id(p)) for p in term.project.parameters()} == {1.0}
    untrained = [*term.untrained_pixel.parameters(), *term.untrained_patch.parameters()]
    assert {rates.get(id(p)) for p in untrained} == {None}


def test_patch_contrast_starts_late(project: Project) -> None:
    pipa_project(project, start=0.5)
    method, _ = built()
    names = [set(backward(method, batch_of(method, 2 * step, 2 * step + 1), step)) for step in (2, 3)]
    assert names == [{"source", "mixed"}, {"source", "mixed", "pipa_pixel", "pipa_patch"}]


@pytest.mark.parametrize("anchors", [30, 1000], ids=["few slots", "slots for all"])
@pytest.mark.parametrize("block", ["pipa", "pipa-released"])
def test_pixel_loss_equals_loop(project: Project, block: str, anchors: int) -> None:
    """Labels differ within each cell, some classes are rare, some cells void, a third of the predictions right."""
    pipa_project(project, block, eligible=0.1, anchors=anchors)
    method, term = built()
    assert term.pixel is not None
    term.double()
    if term.released:
        with torch.no_grad():
            assert term.untrained_pixel.bias is not None
            term.untrained_pixel.bias[:3] += 10
    g = torch.Generator().manual_seed(0)
    batch = batch_of(method, 4, 5)
    batch.label = torch.tensor([0, 1, 2, 3, IGNORE])[
        torch.tensor([0.25, 0.25, 0.25, 0.02, 0.23]).multinomial(2 * 24 * 32, replacement=True, generator=g)
    ].view(2, 24, 32)
    sizes = [(6, 8), (3, 4), (2, 2), (1, 1)]
    stages = [
        torch.randn(2, c, *size, generator=g, dtype=torch.float64)
        for c, size in zip(method.student.stage_channels, sizes, strict=True)
    ]
    logits = torch.randn(2, 19, 12, 16, generator=g, dtype=torch.float64)
    logits[:, :3] += 5
    output = Output(logits, stages, decoder=None)
    loss, expected = term.pixel_loss(term.pixel, batch, output), naive_pixel_loss(term, batch, output)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def naive_pixel_loss(term: PipaTerm, batch: Batch, output: Output) -> Tensor:
    """Anchors looked for cell by cell; the contrast of them has a loop in tests/losses/test_pipa_losses.py."""
    p = term.pixel
    assert p is not None
    height, width = output.stages[0].shape[-2:]
    maps = [F.interpolate(s, (height, width), mode="bilinear", align_corners=True) for s in output.stages]
    hidden = F.relu(term.head.bn(term.head.first(torch.cat(maps, dim=1))))
    embedding = F.normalize(term.head.last(hidden.movedim(1, -1)), dim=-1)
    guess = (term.untrained_pixel(torch.cat(maps, dim=1)) if term.released else output.logits).argmax(dim=1)
    groups: dict[tuple[int, int], tuple[list[Any], list[Any]]] = {}  # image and class: cells guessed rightly, wrongly
    for b, number in enumerate(batch.index):
        keys = stream(0, "pipa_anchors", number).random((height, width), dtype=np.float32)
        for i in range(height):
            for j in range(width):
                true, guessed = (
                    int(x[b, i * x.shape[1] // height, j * x.shape[2] // width]) for x in (batch.label, guess)
                )
                if true != IGNORE or term.released:
                    groups.setdefault((b, true), ([], []))[true != guessed].append((keys[i, j], b, i, j))
    fewest = round(p.eligible * height * width)
    groups = {group: cells for group, cells in groups.items() if len(cells[0]) + len(cells[1]) > fewest}
    assert len(groups) == (8 if term.released else 6)  # two images of the three frequent classes, and void
    most = min(p.anchors // len(groups), fewest)
    anchors, classes = [], []
    for (_, true), (easy, hard) in groups.items():
        kept = min(max(most // 2, most - len(easy)), len(hard))
        for _, b, i, j in sorted(hard)[:kept] + sorted(easy)[: most - kept]:
            anchors.append(embedding[b, i, j])
            classes.append(true)
    label = torch.tensor(classes)
    return pixel_contrast(torch.stack(anchors), label, torch.ones_like(label).bool(), p.temperature, p.base_temperature)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("negatives", ["bank", "other_view"])
def test_patch_loss_equals_loop(project: Project, negatives: str, masked: bool) -> None:
    """Five steps, so that the bank fills and forgets; predicted classes of the two views mostly differ."""
    project.set("benchmarks/streets/train/batch", 4)
    pipa_project(project, negatives=negatives, mask=masked, confidence=0.6, bank_share=0.3)
    method, term = built()
    assert term.patch is not None
    term.double()
    g = torch.Generator().manual_seed(0)
    bank: list[list[tuple[Tensor, int]]] = []
    for step in range(5):
        batch = batch_of(method, *range(4 * step, 4 * step + 4))
        batch.overlap = torch.stack([overlap_cells(8 * y, 8 * x, 24) for y, x in ((0, 1), (1, -1), (-1, 0), (0, 0))])
        batch.flipped = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
        e = F.normalize(torch.randn(4, 2, 9, 128, generator=g, dtype=torch.float64), dim=-1).requires_grad_()
        s = (2 * torch.randn(4, 2, 9, 3, generator=g, dtype=torch.float64)).softmax(dim=-1)
        bank = [*bank, drawn(term, batch, e, s)][-3:]
        loss = term.patch_loss(term.patch, batch, e, s)
        expected = naive_patch_loss(term, batch, e, s, bank if negatives == "bank" else None, masked)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(x, e)[0] for x in (loss, expected)), rtol=1e-6, atol=1e-9)


def drawn(term: PipaTerm, batch: Batch, e: Tensor, s: Tensor) -> list[tuple[Tensor, int]]:
    """What a step brings to the bank: embeddings and classes of three cells of each view."""
    cells = []
    for b, number in enumerate(batch.index):
        rng = stream(0, "pipa_bank", number)
        cells += [(b, v, n) for v in (0, 1) for n in rng.choice(9, 3, replace=False)]
    return [(e[cell].detach(), int(s[cell].argmax())) for cell in cells]


def naive_patch_loss(
    term: PipaTerm, batch: Batch, e: Tensor, s: Tensor, bank: list[list[tuple[Tensor, int]]] | None, masked: bool
) -> Tensor:
    """L1 + L2, cell by cell, on unmirrored maps; without a bank the negatives are those of the paper's figure."""
    p, side = term.patch, term.side
    assert p is not None and batch.overlap is not None and batch.flipped is not None
    sums, counts = [torch.zeros((), dtype=e.dtype), torch.zeros((), dtype=e.dtype)], [0, 0]
    for b in range(len(e)):
        maps = []
        for v in (0, 1):
            m, q = e[b, v].view(side, side, -1), s[b, v].view(side, side, -1)
            maps.append((m.flip(1), q.flip(1)) if batch.flipped[b, v] else (m, q))
        (t1, l1, rows, columns), (t2, l2, _, _) = batch.overlap[b].tolist()
        for i in range(rows):
            for j in range(columns):
                places = [(t1 + i, l1 + j), (t2 + i, l2 + j)]
                at = [maps[v][0][places[v]] for v in (0, 1)]
                sure, seen = ([f(maps[v][1][places[v]]) for v in (0, 1)] for f in (torch.max, torch.argmax))
                wanted = [bool(m) for m in directions(sure[0], sure[1], p.confidence)] if masked else [True, True]
                for v in (0, 1):
                    if wanted[v]:
                        if bank is None:
                            there = places[1 - v][0] * side + places[1 - v][1]
                            keys = [k for n, k in enumerate(maps[1 - v][0].flatten(0, 1)) if n != there]
                        else:
                            keys = [k for step in bank for k, known in step if known != seen[v]]
                        logits = torch.stack([at[1 - v], *keys]).detach() @ at[v] / p.temperature
                        sums[v] = sums[v] - logits.log_softmax(0)[0]
                        counts[v] += 1
    return torch.stack([total / max(count, 1) for total, count in zip(sums, counts, strict=True)]).sum()


def test_bank_holds_cells_of_three_steps_with_their_classes(project: Project) -> None:
    pipa_project(project, bank_share=0.3)
    method, term = built()
    assert term.patch is not None and term.bank.shape == (3, 2 * 3 * 2, 128)
    assert (term.bank_label == -1).all()
    batch = batch_of(method, 0, 1)
    for step in range(4):
        e = torch.full((2, 2, 9, 128), float(step))
        e += torch.arange(36).view(2, 2, 9, 1) / 100
        term.remember(batch, e, torch.arange(36).view(2, 2, 9))
    for step, (cells, labels) in enumerate(zip(term.bank, term.bank_label, strict=True), start=1):
        torch.testing.assert_close(cells[:, 0], step + labels / 100)
        per_view = labels.view(4, 3)  # pair and view
        assert (per_view // 9 == torch.arange(4)[:, None]).all()
        assert all(len(row.unique()) == 3 for row in per_view)


def test_views_are_augmented_apart_and_alike_each_time(project: Project) -> None:
    pipa_project(project)
    method, term = built()
    batch = batch_of(method, *range(12))
    assert term.patch is not None and batch.pair is not None and batch.pair.shape == (12, 2, 3, 24, 24)
    views = augmented(batch, term.patch, 0)
    assert torch.equal(views, augmented(batch, term.patch, 0)) and not torch.equal(
        views, augmented(batch, term.patch, 1)
    )
    assert views.min() >= 0 and views.max() <= 1
    plain = batch.pair.flatten(0, 1)
    untouched = (views == plain).flatten(1).all(dim=1)
    grey = (views == views[:, :1]).flatten(1).all(dim=1)
    assert 0 < untouched.sum() < 8 and 0 < grey.sum() < 14  # of 24: expected 1.9 and 4.8


def test_teacher_keeps_its_running_statistics(project: Project) -> None:
    pipa_project(project)
    method, term = built()
    batch = batch_of(method, 0, 1)
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    modes = {name: m.training for name, m in method.teacher.named_modules()}
    student = {k: v.clone() for k, v in method.student.state_dict().items() if "running_mean" in k}
    list(term.own_passes(batch, 0, method))
    assert all(torch.equal(v, before[k]) for k, v in method.teacher.state_dict().items())
    assert modes == {name: m.training for name, m in method.teacher.named_modules()}
    assert any(not torch.equal(v, method.student.state_dict()[k]) for k, v in student.items())
    norm = nn.BatchNorm2d(2).train()
    with pytest.raises(RuntimeError), running_statistics(norm):
        raise RuntimeError
    assert norm.training


def test_convolution_of_resized_stages() -> None:
    g = torch.Generator().manual_seed(0)
    stages = [torch.randn(2, c, s, s + 2, generator=g) for c, s in ((3, 8), (5, 4), (7, 2))]
    convolution = nn.Conv2d(15, 4, 1)
    resized = [F.interpolate(s, (8, 10), mode="bilinear", align_corners=True) for s in stages]
    torch.testing.assert_close(
        over_stages(convolution, stages, align_corners=True), convolution(torch.cat(resized, dim=1))
    )


def test_to_grid() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8)
    assert torch.equal(to_grid(x, 8), x)
    assert to_grid(x, 4)[0, 0, 0].tolist() == [4.5, 6.5, 8.5, 10.5]
    assert to_grid(x, 3).shape == (1, 1, 3, 3) and to_grid(x[:, :, :6], 4).shape == (1, 1, 4, 4)


def test_ignored_crops_and_unsure_views_give_zero(project: Project) -> None:
    pipa_project(project, confidence=1.0)
    method, term = built()
    batch = batch_of(method, 0, 1)
    batch.label[:] = 255
    losses = backward(method, batch)
    assert losses["pipa_pixel"] == 0 and losses["pipa_patch"] == 0
    assert gradient(term.parameters()) == [0.0] * len(list(term.parameters()))


# The loop


def test_stopped_and_continued_is_undisturbed(
    make_project: Callable[[str], Project], train_until: Callable[[Project, str, int], None]
) -> None:
    """Stopped with a bank half full."""
    expected = content(train(pipa_project(make_project("whole")), "pipa"))
    project = pipa_project(make_project("stopped"))
    train_until(project, "pipa", 3)
    assert content(train(project, "pipa")) == expected


SCRIPT = """
import sys, torch
from udaseg import ranks
from test_pipa import backward, batch_of, built, opinionated
ranks.join(torch.device("cpu"))
method, term = built()
opinionated(method.student.head.classify, method.teacher_network.head.classify)
found = []
for step in range(3):
    mine = range(4 * step, 4 * step + 4)[ranks.rank() * 4 // ranks.world() : (ranks.rank() + 1) * 4 // ranks.world()]
    method.zero_grad()
    losses = backward(method, batch_of(method, *mine), step)
    ranks.average_gradients([p for p in method.parameters() if p.requires_grad])
    found += [torch.stack([ranks.total(losses[k]) / ranks.world() for k in ("pipa_pixel", "pipa_patch")])]
gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
if ranks.rank() == 0:
    torch.save({"losses": torch.stack(found), "gradients": gradients, "bank": term.bank, "label": term.bank_label}, sys.argv[1])
ranks.leave()
"""


def test_two_ranks_train_like_one(make_project: Callable[[str], Project]) -> None:
    """Same global batch, so the same anchors, bank, losses and gradients, to rounding."""
    project = pipa_project(make_project("ranks"))
    project.set("benchmarks/streets/train/batch", 4)
    project.set("benchmarks/streets/model/dropout", 0.0)  # drop-out draws differ by rank
    (project.folder / "script.py").write_text(SCRIPT)
    found = []
    for ranks in (1, 2):
        launch(project, ranks, "script.py", f"{ranks}.pt")
        found.append(torch.load(project.folder / f"{ranks}.pt", weights_only=True))
    one, two = found
    assert (one["losses"] > 0).all()
    assert torch.equal(one["label"], two["label"]) and (one["label"] >= 0).all()
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(one["losses"][0], two["losses"][0], rtol=1e-5, atol=0)


# Bad input


def test_nothing_to_contrast(project: Project) -> None:
    pipa_project(project)
    project.set("methods/pipa/pipa", {"pixel": None, "patch": None})
    with pytest.raises(UserError, match=r"methods\.pipa\.pipa: found neither pixel nor patch"):
        built()


def test_images_smaller_than_the_crops(project: Project) -> None:
    pipa_project(project, crop=0.2)
    with pytest.raises(UserError, match=r"found crops of 0x0 .* 64x32, expected .*pipa\.patch\.crop"):
        train(project, "pipa")
    pipa_project(project, crop=1.3)
    with pytest.raises(UserError, match=r"patch\.crop: found 1\.3, expected a number above 0 and at most 1"):
        train(project, "pipa")
