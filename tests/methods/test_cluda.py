"""The CLUDA term in training: what it compares, on which networks, resumed, over ranks, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from steps import batch, built_with_term, content, from_scratch, history, launch, run_of, train
from torch import Tensor

from tiny_project import RAW, Project
from udaseg import params, ranks
from udaseg.errors import UserError
from udaseg.losses.cluda import detail_on_grid, multi_resolution_contrast, on_grid, pixel_contrast, rows
from udaseg.methods import create
from udaseg.methods.base import Batch
from udaseg.methods.cluda import CludaTerm
from udaseg.methods.self_training import SelfTrainingMethod
from udaseg.models import Output, Segmenter, build_model

BLOCK: dict[str, Any] = {
    "source": 1.0,
    "mixed": 0.5,
    "temperature": 1.0,
    "stride": 8,
    "anchors": None,
    "gate": "row",
    "detail_crop": "random",
    "detail_start": 0.3,
    "width": 8,
}


def with_cluda(project: Project, steps: int = 4, **block: Any) -> Project:
    variant = block.pop("variant", "paper")
    recipe = {**RAW["methods"]["self_training"], "variant": variant, "terms": ["cluda"], "cluda": {**BLOCK, **block}}
    project.raw["methods"]["cluda"] = recipe
    project.raw["methods"]["cluda-off"] = {**recipe, "terms": []}
    return from_scratch(project, steps=steps)


def term_of(project: Project) -> tuple[SelfTrainingMethod, CludaTerm]:
    return built_with_term(project, "cluda", CludaTerm)


@pytest.mark.parametrize(
    ("head", "backbone", "dilations"),
    [
        ("segformer", "resnet10t", []),
        ("daformer", "mobilenetv3_small_050", [2, 3]),
        ("deeplabv2", "resnet10t", [6, 12]),
    ],
)
def test_every_network_learns_from_it(project: Project, head: str, backbone: str, dilations: list[int]) -> None:
    with_cluda(project, stride=4)
    for key, value in (("head", head), ("backbone", backbone), ("dilations", dilations)):
        project.set(f"benchmarks/streets/model/{key}", value)
    method, term = term_of(project)
    seen = []
    for losses in method.losses(batch(), 0):
        seen.append(sorted(losses))
        method.zero_grad()
        torch.stack([value for name, value in losses.items() if name.startswith("cluda")]).sum().backward()
        assert all(value.isfinite() for value in losses.values())
        for module in (method.student.encoder, method.student.head if head != "deeplabv2" else term.embed_head):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            assert gradients and any(g.any() for g in gradients) and all(g.isfinite().all() for g in gradients)
        classifier = method.student.head.classify if head != "deeplabv2" else method.student.head.branches
        assert all(p.grad is None for p in classifier.parameters())  # type: ignore[union-attr]
    assert seen == [["cluda_source", "source"], ["cluda_mixed", "mixed"]]


def test_source_and_mixed_loss_are_those_of_the_paper(project: Project) -> None:
    _, term = term_of(with_cluda(project))
    b, g = batch(), torch.Generator().manual_seed(1)
    feature, weight = torch.randn(2, 5, 8, 12, generator=g), torch.rand(2, 32, 48, generator=g)
    output = Output(torch.zeros(2, 19, 8, 12), [], feature)
    cells = rows(on_grid(feature, (4, 6)))
    label = b.label[:, 4::8, 4::8].flatten()  # the pixel below and right of the middle of each cell of 8
    source = term.on_source(b, output, 0)["cluda_source"]
    torch.testing.assert_close(source, pixel_contrast(cells, label, torch.ones(48)))
    mixed = term.on_mixed(b, output, b.label, weight, 0)["cluda_mixed"]
    middle = torch.nn.functional.avg_pool2d(weight[:, 3:-3, 3:-3], 2, stride=8).flatten()
    torch.testing.assert_close(mixed, 0.5 * pixel_contrast(cells, label, middle))


def test_released_variant_has_the_released_defects(project: Project) -> None:
    _, term = term_of(with_cluda(project, variant="released"))
    b = batch()
    feature = torch.randn(2, 5, 8, 12, generator=torch.Generator().manual_seed(1))
    found = term.on_source(b, Output(torch.zeros(2, 19, 8, 12), [], feature), 0)["cluda_source"]
    # 5 x 7 positions from corner to corner; labels of the pixel where the cell of 32/5 x 48/7 begins
    cells = torch.nn.functional.interpolate(feature, (5, 7), mode="bilinear", align_corners=True)
    label = torch.nn.functional.interpolate(b.label[:, None].double(), (5, 7), mode="nearest").long().flatten()
    assert (label == 255).any()
    label[label == 255] = 19  # D4
    features = torch.cat([cells[:, :, y, x] for y in range(5) for x in range(7)])  # D1: position after position
    torch.testing.assert_close(found, pixel_contrast(features, label, torch.ones(70)))


class WithDetail(Segmenter):
    """A network with a detail branch: the same network once more, on a crop of the image. Stands in for HRDA."""

    detail_window = (16, 24)

    def forward(self, images: Tensor, *, domain: str = "source", boxes: Any = None) -> Output:
        context = super().forward(images)
        where = torch.tensor([[0, 24, 16, 48], [8, 8, 24, 32]])[ranks.rank() * len(images) :][: len(images)]
        where = where if boxes is None else boxes(context.logits)
        crops = [image[:, t:b, left:r] for image, (t, left, b, r) in zip(images, where.tolist(), strict=True)]
        context.detail = SimpleNamespace(feature=super().forward(torch.stack(crops)).decoder, boxes=where)
        return context


def detail_network(run: params.Run) -> WithDetail:
    torch.manual_seed(0)
    student = build_model(run.benchmark.model, len(run.classes))
    student.__class__ = WithDetail
    assert isinstance(student, WithDetail)
    return student


def with_detail(project: Project, **block: Any) -> tuple[WithDetail, CludaTerm]:
    project.set("benchmarks/streets/model/backbone", "resnet10t")
    run = run_of(with_cluda(project, **block), "cluda")
    student = detail_network(run)
    return student, CludaTerm(student, run)


def test_detail_features_are_contrasted_with_a_learned_weight(project: Project) -> None:
    student, term = with_detail(project)
    b = batch()
    output = student(student.normalise(b.image))
    loss = term.on_source(b, output, 0)["cluda_source"]
    assert term.blend_head is not None and output.detail is not None
    low = rows(on_grid(output.decoder, (4, 6)))
    high, inside = detail_on_grid(output.detail.feature, output.detail.boxes, (32, 48), (4, 6))
    blend = rows(on_grid(term.blend_head.eval()(output.stages)[0].sigmoid(), (4, 6)))[:, 0]
    label = b.label[:, 4::8, 4::8].flatten()
    assert inside[0].sum() == inside[1].sum() == 6 and label[inside.flatten()].unique().numel() > 2
    term.blend_head.train()
    torch.manual_seed(0)  # the head drops channels, as the decoder does
    again = term.on_source(b, output, 0)["cluda_source"]
    torch.manual_seed(0)
    blend = rows(on_grid(term.blend_head(output.stages)[0].sigmoid(), (4, 6)))[:, 0]
    expected = multi_resolution_contrast(low, rows(high), label, torch.ones(48), blend, inside.flatten())
    torch.testing.assert_close(again, expected)
    loss.backward()
    for module in (student.encoder, term.blend_head):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_released_variant_takes_road_for_the_outside_of_the_crop(project: Project) -> None:
    student, term = with_detail(project, variant="released")
    b = batch()
    b.label[b.label == 255] = 3
    output = student(student.normalise(b.image))
    torch.manual_seed(0)
    found = term.on_source(b, output, 0)["cluda_source"]
    torch.manual_seed(0)
    assert term.blend_head is not None and output.detail is not None
    blend = rows(on_grid(term.blend_head(output.stages)[0].sigmoid(), (5, 7), corners=True))[:, 0]
    label = b.label[:, torch.arange(5) * 32 // 5][:, :, torch.arange(7) * 48 // 7].flatten()
    low = rows(on_grid(output.decoder, (5, 7), corners=True), position_major=True)
    high, inside = detail_on_grid(output.detail.feature, output.detail.boxes, (32, 48), (5, 7), corners=True)
    high, m = rows(high, position_major=True), inside.flatten()
    assert (label[m] == 0).any()
    values = [multi_resolution_contrast(low, high, label, torch.ones(70), blend, k) for k in (m & (label != 0), m)]
    torch.testing.assert_close(found, values[0])
    assert (values[0] - values[1]).abs() > 1e-4


def test_uncertain_crops_are_chosen_after_their_start(project: Project) -> None:
    student, term = with_detail(project, steps=10, detail_crop="entropy", detail_start=0.3)
    assert term.boxes(2) is None
    choose = term.boxes(3)
    assert choose is not None
    logits = torch.zeros(2, 19, 8, 12)
    logits[:, 0] = 5  # certain
    logits[0, :, 4:, :6] = 0
    logits[1, :, 2:6, 6:] = 0
    assert choose(logits).tolist() == [[16, 0, 32, 24], [8, 24, 24, 48]]
    output = student(student.normalise(batch().image), boxes=choose)
    assert output.detail is not None and output.detail.boxes.shape == (2, 4)
    assert with_detail(project, detail_crop="random")[1].boxes(3) is None


def test_anchors_are_a_draw_of_each_image_s_own(project: Project) -> None:
    _, term = term_of(with_cluda(project, anchors=5))
    drawn = term.anchors(batch(), 24, "source", torch.device("cpu"))
    assert drawn is not None and len(drawn) == 10 and len(drawn.unique()) == 10
    assert (drawn[:5] < 24).all() and (drawn[5:] >= 24).all()
    swapped = Batch([7, 6], *(getattr(batch(), name) for name in ("image", "label")))
    other = term.anchors(swapped, 24, "source", torch.device("cpu"))
    assert other is not None and torch.equal(other[:5] + 24, drawn[5:])  # by pair, wherever it lies in the batch
    _, every = term_of(with_cluda(project, anchors=1000))
    whole = every.anchors(batch(), 24, "source", torch.device("cpu"))
    assert whole is not None and whole.sort().values.tolist() == list(range(48))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_trains_and_resumes_with_the_same_bits(
    make_project: Callable[[str], Project], train_until: Callable[[Project, str, int], None], variant: str
) -> None:
    found = []
    for stopped in (False, True):
        project = with_cluda(make_project(f"stopped{stopped}"), variant=variant, anchors=7)
        if stopped:
            train_until(project, "cluda", 2)
        folder = train(project, "cluda")
        found.append(content(folder))
    assert found[0] == found[1]
    assert {"cluda_source", "cluda_mixed"} <= set(history(folder)[0])


CASES: list[dict[str, Any]] = [
    {"variant": "paper"},
    {"variant": "paper", "anchors": 9},
    {"variant": "released"},
    {"variant": "paper", "detail": True},
    {"variant": "released", "detail": True, "gate": "both"},
]


def on_all_ranks(project: Project) -> list[dict[str, Tensor]]:
    """Losses and gradients of one step on the same global batch, one dictionary for each case."""
    found = []
    for case in CASES:
        block = dict(case)
        network = detail_network if block.pop("detail", False) else None
        run = run_of(with_cluda(project, stride=4, **block), "cluda")
        torch.manual_seed(0)
        student = network(run) if network else build_model(run.benchmark.model, len(run.classes))
        method = ranks.use_global_batch(create(run, student)).train()
        b, mine = batch(), slice(ranks.rank() * 2 // ranks.world(), (ranks.rank() + 1) * 2 // ranks.world())
        assert b.target is not None and isinstance(method, SelfTrainingMethod)
        part = Batch(b.index[mine], b.image[mine], b.label[mine], b.target[mine])
        values = {}
        for losses in method.losses(part, 0):
            torch.stack(list(losses.values())).sum().backward()
            values |= {name: ranks.total(value.detach()) / ranks.world() for name, value in losses.items()}
        trained = {name: p for name, p in method.named_parameters() if p.grad is not None}
        ranks.average_gradients(list(trained.values()))
        found.append({**values, **{name: p.grad for name, p in trained.items() if p.grad is not None}})
    return found


SCRIPT = """
import sys, torch
from pathlib import Path
from test_cluda import RAW, Project, on_all_ranks
from udaseg import ranks
ranks.join(torch.device("cpu"))
folder = Path(f"rank{ranks.rank()}")
folder.mkdir()
found = on_all_ranks(Project(folder, RAW))
torch.save(found, folder / "found.pt")
ranks.leave()
"""


def test_two_ranks_have_losses_and_gradients_of_one(project: Project) -> None:
    project.set("benchmarks/streets/model/dropout", 0.0)  # drop-out draws differ by rank
    (project.folder / "script.py").write_text(SCRIPT.replace("RAW)", f"{project.raw!r})"))
    launch(project, 2, "script.py")
    two = torch.load(project.folder / "rank0/found.pt", weights_only=True)
    for one, both in zip(on_all_ranks(project), two, strict=True):
        assert one.keys() == both.keys() >= {"cluda_source", "cluda_mixed"}
        for name, value in one.items():
            torch.testing.assert_close(both[name], value, rtol=1e-3, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}")


def test_off_twin_is_plain_self_training(project: Project) -> None:
    with_cluda(project)
    assert run_of(project, "cluda-off").hash == run_of(project, "self_training").hash != run_of(project, "cluda").hash


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"stride": 33}, ["stride", "found 33", "48x32"]),
        ({"stride": 0}, ["stride", "found 0"]),
        ({"temperature": 0.0}, ["temperature", "expected a number above 0"]),
        ({"anchors": 0}, ["anchors: found 0"]),
        ({"detail_crop": "entropy"}, ["detail_crop", "no detail branch", "say random"]),
        ({"gate": "column"}, ["gate", "column", "row", "both"]),
    ],
)
def test_bad_values_stop_before_training(project: Project, block: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        term_of(with_cluda(project, **block))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
