"""Every method on a network of two resolutions: what is shown to it, what it compares, over ranks, resumed, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from steps import BLOCKS, CPU, batch, built, content, from_scratch, history, launch, run_of, train
from torch import Tensor

from tiny_project import Project
from udaseg import params, ranks
from udaseg.data.sampling import inside
from udaseg.engine import trainer
from udaseg.errors import UserError
from udaseg.losses.cluda import detail_on_grid, on_grid, rows
from udaseg.losses.segmentation import nearest_labels
from udaseg.methods import create
from udaseg.methods.base import Batch, Method
from udaseg.methods.cluda import CludaTerm
from udaseg.methods.pipa import PipaTerm, to_grid
from udaseg.methods.self_training import SelfTrainingMethod
from udaseg.methods.step.imagenet import distance_to
from udaseg.models import Output, build_model
from udaseg.models.hrda import HrdaSegmenter

METHODS = [
    *("source_only", "oracle", "self_training", "self_training-dacs", "sepico", "sepico-bank", "bcl", "bcl-released", "plca"),
    *("plca-released", "pipa-hrda", "pipa-hrda_released", "cluda-hrda", "cluda-hrda_released"),
    *("mic", "mic-night", "mic-pipa", "mic-sepico"),
]  # fmt: skip


def on_hrda(
    project: Project, method: str = "self_training", hrda: dict[str, Any] | None = None, **train: Any
) -> Project:
    """The tiny project with two resolutions and a block of the real params.yaml; native recipes stay away."""
    project.raw["methods"][method] = copy.deepcopy({**BLOCKS[method], "native": {}})
    from_scratch(project, **train)
    project.set("benchmarks/streets/model/hrda", {"detail": "32x16", **(hrda or {})})
    if (block := project.raw["methods"][method].get("mic")) is not None:
        project.set(f"methods/{method}/mic", {**block, "block": 8})
    if method.startswith("bcl"):
        project.set(f"methods/{method}/rounds", 1)
    return project


def method_of(project: Project, name: str = "self_training", **values: Any) -> Any:
    return built(on_hrda(project, name, **values), name, Method)  # type: ignore[type-abstract]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_it(project: Project, name: str) -> None:
    """Three steps, so that what starts late has started."""
    folder = train(on_hrda(project, name, steps=3, log_every=3), name)
    last = history(folder)[-1]
    assert all(np.isfinite(value) for value in last.values())
    for term in BLOCKS[name]["terms"]:
        assert any(key.startswith(term) for key in last), term


@pytest.mark.parametrize("head", ["daformer", "deeplabv2"])
@pytest.mark.parametrize("name", ["self_training", "pipa-hrda", "cluda-hrda", "bcl", "plca", "mic-sepico"])
def test_with_every_head(project: Project, name: str, head: str) -> None:
    on_hrda(project, name, hrda={"box_step": 16}, crop="64x32", log_every=2)
    project.set("benchmarks/streets/model/head", head)
    project.set("benchmarks/streets/model/dilations", [2, 3])
    project.set("benchmarks/streets/model/hrda/detail", "32x32")
    project.set("benchmarks/streets/model/backbone_args", {"output_stride": 8})
    assert all(np.isfinite(value) for value in history(train(project, name))[-1].values())


def passes(method: SelfTrainingMethod, step: int, b: Batch | None = None) -> list[Output]:
    """What the student saw in a step."""
    seen: list[Output] = []
    hook = method.student.register_forward_hook(lambda _, args, output: seen.append(output))
    for losses in method.losses(b or batch(), step):
        torch.stack(list(losses.values())).sum().backward()
    hook.remove()
    return seen


def test_every_pass_has_a_box_of_its_own_that_step_and_seed_decide(project: Project) -> None:
    project.set("benchmarks/streets/train/batch", 2)
    method = method_of(project, "mic", hrda={"box_step": 8})
    wide = batch()
    wide.image, wide.target = (torch.rand(2, 3, 64, 96) for _ in range(2))
    wide.label = torch.randint(0, 4, (2, 64, 96))
    found = []
    for step in range(6):
        outputs = passes(method, step, wide)
        boxes = [output.detail.boxes for output in outputs if output.detail is not None]
        assert len(boxes) == 3  # source, masked, mixed
        assert all((box == box[0]).all() for box in boxes)  # one for the batch
        assert all((box[0, 2:] - box[0, :2]).tolist() == [16, 32] for box in boxes)
        found.append([tuple(box[0].tolist()) for box in boxes])
    assert any(len(set(step)) == 3 for step in found) and len({step[0] for step in found}) > 3
    again = [tuple(method.box(purpose, wide.image, 3).tolist()) for purpose in ("source", "masked", "mixed")]
    assert again == found[3]
    other = create(method.run.params.resolve("streets", "mic", 1), method.student)
    assert isinstance(other, SelfTrainingMethod)
    assert any(tuple(other.box("source", wide.image, n).tolist()) != found[n][0] for n in range(6))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["self_training", "mic-pipa", "cluda-hrda"])
def test_trains_and_resumes_with_the_same_bits(
    make_project: Callable[[str], Project], train_until: Callable[[Project, str, int], None], name: str
) -> None:
    found = []
    for stopped in (False, True):
        project = on_hrda(make_project(f"stopped{stopped}"), name, steps=4)
        if stopped:
            train_until(project, name, 2)
        found.append(content(train(project, name)))
    assert found[0] == found[1]


def test_feature_distance_is_that_of_the_context(project: Project) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet").state_dict(), "test_resnet.safetensors")
    on_hrda(project)
    project.set("benchmarks/streets/init", {"default": "imagenet"})
    project.set("benchmarks/streets/model/weights", "test_resnet.safetensors")
    method = built(project, "self_training", SelfTrainingMethod)
    b = batch()
    b.label[:] = 13
    source = method.student.normalise(b.image)
    halved = torch.nn.functional.avg_pool2d(source, 2)
    expected = method.frozen[0].encoder(halved)[-1]  # type: ignore[operator]
    seen = replace(method.frozen[0](source, boxes=method.box("source", source, 0)), stages=[expected])
    ratio = method.p.feature_distance_ratio
    assert distance_to(method.frozen[0], source, seen, b.label, method.is_thing, ratio).item() == 0
    assert next(iter(method.losses(b, 0)))["feature_distance"].item() > 0


# --- the border of whole images --------------------------------------------------------------------------------------


def test_border_travels_with_the_image(project: Project) -> None:
    border = {"top": 0.25, "bottom": 0.125, "left": 0.25, "right": 0.0625, "of": "image"}
    on_hrda(project, border=border, crop="48x32")
    method = built(project, "self_training", SelfTrainingMethod)
    mask = inside(method.run.train.border, 32, 64)
    assert mask.sum() == (32 - 8 - 4) * (64 - 16 - 4) and mask[8, 16] == 1 and mask[7, 16] == mask[8, 15] == 0
    loop = trainer.Loop(method.run, method, torch.optim.SGD(method.parameters()), CPU, project.folder / "r", {})
    data = loop.loader().dataset
    images = [data.target.image(sample) for sample in data.target_samples]  # type: ignore[attr-defined]
    flips = 0
    for n in range(12):
        item = data[n]
        crop, shown = item["target"].permute(1, 2, 0).numpy(), item["inside"].numpy()
        places = [
            (picture, x, flipped)
            for picture in images
            for x in range(64 - 48 + 1)
            for flipped in (False, True)
            if (picture[:, x : x + 48][:, :: -1 if flipped else 1] == crop).all()
        ]
        (_, x, flipped), *_ = places
        flips += flipped
        assert (shown == mask[:, x : x + 48][:, :: -1 if flipped else 1]).all()
    assert 0 < flips < 12
    b = Batch.of({key: torch.stack([data[n][key] for n in (0, 1)]) for key in data[0]}, CPU)
    _, weight = method.pseudo_labels(b)
    assert b.inside is not None and (weight[~b.inside] == 0).all()
    assert all(len(weight[n][b.inside[n]].unique()) == 1 for n in (0, 1))  # q is over all pixels
    method.p = type(method.p)(**{**vars(method.p), "target_crop": "balanced"})
    b = Batch.of(next(iter(loop.loader())), CPU)
    method.crop_target(b)
    assert b.inside is not None and b.target is not None and b.inside.shape == b.target[:, 0].shape


def test_border_of_crops_has_sides_too(project: Project) -> None:
    method = built(
        on_hrda(project, border={"top": 0.25, "bottom": 0, "left": 0, "right": 0.5}),
        "self_training",
        SelfTrainingMethod,
    )
    weight = method.bordered(torch.ones(2, 32, 48), batch())
    assert weight.sum() == 2 * 24 * 24 and weight[:, 8:, :24].all()


# --- what the terms compare ------------------------------------------------------------------------------------------


def one_pass(method: SelfTrainingMethod, b: Batch, box: list[int]) -> Output:
    with torch.no_grad():
        return method.student(method.student.normalise(b.image), boxes=torch.tensor(box))


@pytest.mark.parametrize("name", ["pipa-hrda", "pipa-hrda_released"])
def test_pipa_takes_the_labels_of_the_detail_crop(project: Project, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """D4: as released the labels are those of the whole image, every so many pixels."""
    method = method_of(project, name)
    term, b = method.terms[name.split("-")[0]], batch()
    assert isinstance(term, PipaTerm)
    output = one_pass(method, b, [8, 16, 24, 48])
    assert output.detail is not None and output.detail.stages[0].shape[-2:] == (4, 8)
    seen: list[Tensor] = []
    from udaseg.losses import pipa as losses

    real = losses.group_sizes
    monkeypatch.setattr(losses, "group_sizes", lambda label, *rest: seen.append(label) or real(label, *rest))
    term.on_source(b, output, 0)
    if name.endswith("released"):
        expected = nearest_labels(b.label, (4, 8))
        expected = torch.where(expected == 255, 19, expected)  # D6
    else:
        expected = b.label[:, 8:24:4, 16:48:4]
    assert torch.equal(seen[0], expected)


def test_pipa_compares_context_features_of_its_views(project: Project) -> None:
    method = method_of(project, "pipa-hrda")
    term = method.terms["pipa"]
    assert isinstance(term, PipaTerm) and term.grid == term.side == 2
    views = torch.rand(4, 3, 16, 16)
    method.eval()
    feature, probability = term.view_maps(views, method)
    torch.testing.assert_close(feature, to_grid(method.student.context(views).feature, 2))
    whole = method.teacher_network(views).logits.softmax(dim=1)
    torch.testing.assert_close(probability, to_grid(whole, 2))


def test_released_pipa_takes_cells_of_two_pixels_for_eight(project: Project) -> None:
    """D5: logits at half the size of the view, indexed in units of 8 pixels: the upper left quarter alone is compared."""
    method = method_of(project, "pipa-hrda_released")
    term = method.terms["pipa"]
    assert isinstance(term, PipaTerm) and term.grid == 4 * term.side == 8
    assert [m.weight.shape[:2] for m in (term.project[0], term.project[2])] == [(19, 19), (128, 19)]
    views = torch.rand(4, 3, 16, 16)
    method.eval()
    feature, _ = term.view_maps(views, method)
    logits = torch.nn.functional.interpolate(method.teacher_network(views).logits, size=(16, 16), mode="bilinear")
    torch.testing.assert_close(feature, torch.nn.functional.avg_pool2d(logits, 2))


@pytest.mark.parametrize("name", ["cluda-hrda", "cluda-hrda_released"])
def test_cluda_has_detail_features_learned_weight_and_chosen_boxes(project: Project, name: str) -> None:
    on_hrda(project, name, steps=10)
    project.set(f"methods/{name}/cluda", {**BLOCKS[name]["cluda"], "stride": 8})
    method = built(project, name, SelfTrainingMethod)
    term, b = method.terms["cluda"], batch()
    assert isinstance(term, CludaTerm) and term.blend_head is not None
    assert term.blend_head.enlarge == 1
    output = one_pass(method, b, [8, 16, 24, 48])
    assert term.blend_head(output.stages)[0].shape[-2:] == output.feature.shape[-2:] == (4, 6)  # stride 8 of the image
    assert output.detail is not None and output.detail.boxes is not None
    high, mask = detail_on_grid(output.detail.feature, output.detail.boxes, (32, 48), (4, 6))
    assert mask[0].nonzero().tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4, 5)]
    assert rows(high)[~mask.flatten()].abs().max() == 0
    torch.testing.assert_close(on_grid(output.feature, (4, 6)), output.feature)
    first = 3 + name.endswith("released")
    assert term.boxes(first - 1) is None and term.boxes(first) is not None
    seen = passes(method, first)
    source, mixed = (output.detail.boxes for output in seen if output.detail is not None)
    assert (source == source[0]).all()
    assert all(tuple(box.tolist()) in {(y, x, y + 16, x + 32) for y in (0, 8, 16) for x in (0, 16)} for box in mixed)
    gradients = [p.grad for p in term.blend_head.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients) and any(
        g.any() for g in gradients if g is not None
    )


def test_sepico_s_statistics_are_those_of_the_context(project: Project) -> None:
    method = method_of(project, "sepico")
    b = batch()
    outputs = method.student(method.student.normalise(b.image))
    assert outputs.stages[0].shape[-2:] == (4, 6)  # stride 8
    assert method.terms["sepico"].head(outputs.stages).shape[:3] == (2, 4, 6)


def test_plca_scores_aggregated_context_features_beside(project: Project) -> None:
    method = method_of(project, "plca").eval()
    images = method.student.normalise(batch().image)
    views = type(method).test_views(method.run, method.student)
    found = views["aggregated"](images, (32, 48))
    assert found.shape == (2, 19, 32, 48) and found.isfinite().all()


# --- ranks, twins, refusals ------------------------------------------------------------------------------------------

ON_RANKS = ["self_training", "pipa-hrda", "cluda-hrda", "mic", "plca"]


@contextmanager
def in_double() -> Iterator[None]:
    """Everything in double precision: near ties (labels, nearest pixels) are then not decided by the order of a sum."""
    single = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float = single  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


def on_all_ranks(project: Project) -> Iterator[dict[str, Tensor]]:
    """Losses and gradients of one step on the same global batch, for each method."""
    for name in ON_RANKS:
        on_hrda(project, name)
        if name.startswith("pipa"):  # its views are no part of this batch
            project.set(f"methods/{name}/pipa/patch", None)
        project.set("benchmarks/streets/model/dropout", 0.0)
        run = run_of(project, name)
        torch.manual_seed(0)
        method = create(run, build_model(run.benchmark.model, len(run.classes)))
        method = ranks.use_global_batch(method.double()).train()  # type: ignore[assignment]
        b, mine = batch(), slice(ranks.rank() * 2 // ranks.world(), (ranks.rank() + 1) * 2 // ranks.world())
        assert b.target is not None
        part = Batch(b.index[mine], b.image[mine].double(), b.label[mine], b.target[mine].double())
        values = {}
        for losses in method.losses(part, 0):
            torch.stack(list(losses.values())).sum().backward()
            values |= {key: ranks.total(value.detach()) / ranks.world() for key, value in losses.items()}
        trained = {key: p for key, p in method.named_parameters() if p.grad is not None}
        ranks.average_gradients(list(trained.values()))
        yield {**values, **{key: p.grad for key, p in trained.items() if p.grad is not None}}


SCRIPT = """
import torch
from dataclasses import replace
from pathlib import Path
from test_two_resolutions import Project, in_double, on_all_ranks
from udaseg import ranks
ranks.join(torch.device("cpu"))
folder = Path(f"rank{ranks.rank()}")
folder.mkdir()
with in_double():
    torch.save(list(on_all_ranks(Project(folder, RAW))), folder / "found.pt")
ranks.leave()
"""


def test_two_ranks_have_losses_and_gradients_of_one(project: Project) -> None:
    (project.folder / "script.py").write_text(SCRIPT.replace("RAW)", f"{project.raw!r})"))
    launch(project, 2, "script.py")
    two = torch.load(project.folder / "rank0/found.pt", weights_only=True)
    with in_double():
        found = list(on_all_ranks(project))
    for one, both in zip(found, two, strict=True):
        assert one.keys() == both.keys()
        for name, value in one.items():
            torch.testing.assert_close(both[name], value, rtol=1e-8, atol=1e-10, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("name", ["pipa-hrda", "cluda-hrda", "pipa-hrda_released", "cluda-hrda_released"])
def test_the_twin_is_hrda_itself(project: Project, name: str) -> None:
    p = params.load(on_hrda(project, name).folder / "params.yaml")
    run, plain = (p.resolve("streets", method, 0) for method in (name, "self_training"))
    twin = {**plain.uncontrasted, "method": {**plain.uncontrasted["method"]}}
    assert run.method.contrasts
    assert run.uncontrasted["method"]["terms"] == [] and run.uncontrasted["benchmark"] == twin["benchmark"]


@pytest.mark.parametrize(
    ("crop", "detail", "words"),
    [
        ("44x32", "32x16", "train.crop: found 44x32, expected multiples of 8"),
        ("32x32", "64x16", "train.crop: found 32x32, which is smaller than model.hrda.detail, 64x16"),
        ("48x32", "24x16", "model.hrda.detail: found 24x16, expected multiples of 16"),
    ],
)
def test_crops_that_do_not_fit_stop_before_training(project: Project, crop: str, detail: str, words: str) -> None:
    on_hrda(project, crop=crop)
    project.set("benchmarks/streets/model/hrda", {"detail": detail})
    with pytest.raises(UserError, match=words) as caught:
        built(project, "self_training", SelfTrainingMethod)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"), [("self_training", ["source", "mixed"]), ("mic", ["mic"]), ("pipa-hrda", ["source"])]
)
def test_a_short_training_learns(project: Project, name: str, expected: list[str]) -> None:
    """The supervised parts of the loss fall on procedural scenes, on the shape of the small HRDA benchmarks."""
    on_hrda(project, name, steps=60, log_every=20, save_every=60)
    project.set("benchmarks/streets/train/optimizer/lr", 0.004)
    rows = history(train(project, name))
    for key in {"source", *expected} - {"mic", "mixed"}:
        assert rows[-1][key] < 0.8 * rows[0][key], (key, rows)
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert isinstance(build_model(run_of(project, name).benchmark.model, 19), HrdaSegmenter)
