"""PiPa on the self-training step: oracles P12 and P13, what it shows the network, resumption, ranks, bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import default_collate

from tiny_project import ROOT, Project
from udaseg import params
from udaseg.artifacts import file_hash
from udaseg.data.pairs import overlap_cells
from udaseg.data.prepared import find
from udaseg.data.sampling import Pairs
from udaseg.engine import runtime, trainer
from udaseg.engine.optim import parameter_groups
from udaseg.errors import Interrupted, UserError
from udaseg.losses.pipa import directions
from udaseg.methods.base import Averaged, Batch
from udaseg.methods.pipa import Pipa, augmented, over_stages, running_statistics, to_grid
from udaseg.methods.self_training import SelfTrainingStep

BLOCKS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]


def pipa_project(project: Project, method: str = "pipa", **changes: Any) -> Project:
    """A block of the committed parameters, with what a network that knows nothing of 64x32 images needs."""
    block = yaml.safe_load(yaml.safe_dump(BLOCKS[method]))
    small = {"start": 0.0, "crop": 0.75, "confidence": 0.05, "eligible": 0.02, "anchors": 64}
    for part in ("pixel", "patch"):
        if block["pipa"][part]:
            block["pipa"][part] |= {k: v for k, v in (small | changes).items() if k in block["pipa"][part]}
    project.set("methods/pipa", block)
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("benchmarks/streets/train/steps", 6)
    project.set("benchmarks/streets/train/save_every", 2)
    return project


def built() -> tuple[SelfTrainingStep, Pipa]:
    run = params.load("params.yaml").resolve("streets", "pipa", 0)
    method = trainer.build(run, torch.device("cpu"))
    assert isinstance(method, SelfTrainingStep)
    term = method.terms["pipa"]
    assert isinstance(term, Pipa)
    return method, term


def opinionated(*classifiers: nn.Module) -> None:
    """Fresh classifiers hardly tell classes apart: one class everywhere, hence no negatives."""
    for classifier in classifiers:
        assert isinstance(classifier, nn.Conv2d)
        nn.init.normal_(classifier.weight, generator=torch.Generator().manual_seed(0))


def batch_of(method: SelfTrainingStep, *numbers: int) -> Batch:
    run = method.run
    source, target = ((find("streets", use), use.split) for use in params.uses(run.benchmark)[:2])
    data = Pairs(method.views(), source, target, classes=run.classes, crop=run.train.crop,
                 rare_class=run.train.rare_class, seed=run.seed)  # fmt: skip
    return Batch.of(default_collate([data[n] for n in numbers]), torch.device("cpu"))


def backward(method: SelfTrainingStep, batch: Batch, step: int = 0) -> dict[str, Tensor]:
    """All losses of a step; gradients stay in the parameters."""
    found: dict[str, Tensor] = {}
    for losses in method.losses(batch, step):
        torch.stack(list(losses.values())).sum().backward()
        found |= {name: value.detach() for name, value in losses.items()}
    return found


def gradient(parameters: Any) -> list[float | None]:
    return [None if p.grad is None else p.grad.abs().sum().item() for p in parameters]


def test_pipa_p12(make_project: Callable[[str], Project]) -> None:
    """The patch loss trains the network; as released, nothing but the throw-away projection."""
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


def test_pipa_p13() -> None:
    averaged = Averaged(nn.Linear(1, 1), 0.025, 40_000)
    assert [averaged.decay(t) for t in (0, 1, 9, 999, 1000)] == pytest.approx([0, 0.5, 0.9, 0.999, 0.999])


@pytest.mark.parametrize("block", ["pipa", "pipa-released", "pipa-pixel", "pipa-patch", "pipa-figure"])
@pytest.mark.parametrize(
    "head", [("segformer", []), ("daformer", [2, 4]), ("deeplabv2", [2, 4])], ids=["segformer", "daformer", "deeplabv2"]
)
def test_one_step_of_each_block_with_each_head(project: Project, block: str, head: tuple[str, list[int]]) -> None:
    pipa_project(project, block)
    project.set("benchmarks/streets/model/head", head[0])
    project.set("benchmarks/streets/model/dilations", head[1])
    project.set("benchmarks/streets/model/backbone_args", {"output_stride": 8} if head[0] == "deeplabv2" else {})
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


def naive_other_view(term: Pipa, batch: Batch, e: Tensor, s: Tensor, masked: bool) -> Tensor:
    """L1 + L2 of the paper's figure, cell by cell, on unmirrored maps."""
    p, side = term.patch, term.side
    assert p is not None and batch.overlap is not None and batch.flipped is not None
    confidence = s.max(dim=-1).values
    sums, counts = [torch.zeros(()), torch.zeros(())], [0, 0]
    for b in range(len(e)):
        maps = []
        for v in (0, 1):
            m, c = e[b, v].view(side, side, -1), confidence[b, v].view(side, side)
            maps.append((m.flip(1), c.flip(1)) if batch.flipped[b, v] else (m, c))
        (t1, l1, rows, columns), (t2, l2, _, _) = batch.overlap[b].tolist()
        for i in range(rows):
            for j in range(columns):
                places = [(t1 + i, l1 + j), (t2 + i, l2 + j)]
                at = [maps[v][0][places[v]] for v in (0, 1)]
                sure = [maps[v][1][places[v]] for v in (0, 1)]
                wanted = [bool(m) for m in directions(sure[0], sure[1], p.confidence)] if masked else [True, True]
                for v in (0, 1):
                    if wanted[v]:
                        logits = maps[1 - v][0].flatten(0, 1).detach() @ at[v] / p.temperature
                        target = places[1 - v][0] * side + places[1 - v][1]
                        sums[v] = sums[v] - logits.log_softmax(0)[target]
                        counts[v] += 1
    return sum(total / max(count, 1) for total, count in zip(sums, counts, strict=True))


@pytest.mark.parametrize("masked", [True, False])
def test_patch_loss_of_the_figure_equals_loop(project: Project, masked: bool) -> None:
    pipa_project(project, "pipa-figure", mask=masked)
    method, term = built()
    assert term.patch is not None
    g = torch.Generator().manual_seed(0)
    batch = batch_of(method, *range(4))
    batch.overlap = torch.stack([overlap_cells(8 * y, 8 * x, 24) for y, x in ((0, 1), (1, -1), (-1, 0), (0, 0))])
    batch.flipped = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    e = F.normalize(torch.randn(4, 2, 9, 5, generator=g, dtype=torch.float64), dim=-1).requires_grad_()
    s = torch.randn(4, 2, 9, 19, generator=g, dtype=torch.float64).softmax(dim=-1)
    loss, expected = term.patch_loss(term.patch, batch, e, s), naive_other_view(term, batch, e, s, masked)
    torch.testing.assert_close(loss.double(), expected, check_dtype=False, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, e)[0] for x in (loss, expected)), rtol=1e-6, atol=1e-9)


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


def train(project: Project) -> Path:
    run = params.load(project.folder / "params.yaml").resolve("streets", "pipa", 0)
    trainer.train(run, run.folder)
    return project.folder / run.folder


def content(folder: Path) -> tuple[str, str]:
    return file_hash(folder / "model.safetensors"), (folder / "history.csv").read_text()


def test_stopped_and_continued_is_undisturbed(
    make_project: Callable[[str], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped with a bank half full."""
    expected = content(train(pipa_project(make_project("whole"))))
    project = pipa_project(make_project("stopped"))
    calls: list[int] = []

    def stop(self: runtime.StopRequest, where: torch.device) -> bool:
        calls.append(1)
        return len(calls) == 3

    with monkeypatch.context() as patch:
        patch.setattr(runtime.StopRequest, "on_any_rank", stop)
        with pytest.raises(Interrupted, match="step 3 of 6"):
            train(project)
    assert content(train(project)) == expected


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
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        path = os.pathsep.join(str(ROOT / "tests" / part) for part in ("methods", "."))
        done = subprocess.run([*start, "script.py", f"{ranks}.pt"], cwd=project.folder, env={**os.environ, "PYTHONPATH": path},
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr
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
    for crop, side in [(1.3, 40), (0.2, 0)]:
        pipa_project(project, crop=crop)
        with pytest.raises(UserError, match=rf"found crops of {side}x{side} .* 64x32, expected .*pipa\.patch\.crop"):
            train(project)
