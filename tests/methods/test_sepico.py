"""SePiCo as a term of the self-training step, on the tiny project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import steps
import torch
from steps import BLOCKS, built_with_term, content, from_scratch, train, train_on_ranks, with_head
from torch import Tensor

from tiny_project import Project
from udaseg.errors import UserError
from udaseg.losses.segmentation import cell_labels
from udaseg.methods.base import Batch
from udaseg.methods.self_training import SelfTrainingMethod
from udaseg.methods.sepico import SepicoTerm

LOSSES = {f"sepico_{domain}{name}" for domain in ("source", "target") for name in ("", "_regulariser")}


@pytest.fixture
def sepico(make_project: Callable[[str], Project]) -> Callable[..., Project]:
    """A project whose method `sepico` is the block of params.yaml, small and from its second step on."""

    def make(name: str = "project", block: str = "sepico", **changes: Any) -> Project:
        project = from_scratch(make_project(name), steps=6, log_every=1)
        term = BLOCKS[block]["sepico"] | {"width": 1.0, "start": 0.34} | changes
        project.set("methods/sepico", BLOCKS[block] | {"sepico": term})
        return project

    return make


def built(project: Project) -> tuple[SelfTrainingMethod, SepicoTerm]:
    return built_with_term(project, "sepico", SepicoTerm)


def batch(seed: int = 0) -> Batch:
    """Targets are whole images, with ten crops to choose from."""
    g = torch.Generator().manual_seed(seed)
    corners = torch.stack([torch.zeros(2, 10, dtype=torch.long), torch.randint(0, 49, (2, 10), generator=g)], dim=2)
    b = steps.batch(seed, classes=3)
    return Batch([2 * seed, 2 * seed + 1], b.image, b.label, torch.rand(2, 3, 32, 96, generator=g), corners=corners)


def passes(method: SelfTrainingMethod, b: Batch, step: int) -> dict[str, Tensor]:
    return {name: loss for losses in method.losses(b, step) for name, loss in losses.items()}


@pytest.mark.parametrize(
    ("head", "dilations"), [("segformer", []), ("daformer", [6, 12]), ("deeplabv2", [6, 12])]
)  # fmt: skip
@pytest.mark.parametrize("prototype", ["proto", "bank", "dist"])
def test_contrast_teaches_encoder_and_projection_only(
    sepico: Callable[..., Project], head: str, dilations: list[int], prototype: str
) -> None:
    project = sepico(prototype=prototype, temperature=0.1)
    with_head(project, head, dilations)
    method, term = built(project)
    assert term.head.levels == (1 if head == "deeplabv2" else 4)
    losses = passes(method, batch(), 3)
    assert set(losses) == {"source", "mixed"} | LOSSES
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack([losses[name] for name in losses if name.startswith("sepico")]).sum().backward()
    for part, taught in ((method.student.encoder, True), (term.head, True), (method.student.head, False)):
        found = [p.grad is not None and bool(p.grad.any()) for p in part.parameters()]
        assert any(found) == taught
    assert all(p.grad is None for p in term.teacher_head.parameters())


def test_statistics_come_from_the_teacher_and_start_before_the_loss(sepico: Callable[..., Project]) -> None:
    method, term = built(sepico(prototype="bank", bank={"length": 200, "span": 1.0, "zero": False}))
    keys, labels, centroids = [], [], []
    for step in range(2):
        b = batch(step)
        losses = passes(method, b, step)
        assert set(losses) == {"source", "mixed"}  # the first loss is in step 2
        with torch.no_grad():
            stages = method.teacher_network.encoder(method.student.normalise(b.image))
            q = term.teacher_head.module(stages)
        norm = q.norm(dim=3)  # 0 where the last ReLU lets nothing through
        assert (q >= 0).all() and (norm * (norm - 1)).abs().max() < 1e-5 and norm.mean() > 0.5
        keys.append(q.flatten(0, 2).double())
        labels.append(cell_labels(b.label, (q.shape[1], q.shape[2]), 19, 0.75).flatten())
        centroids.append([keys[-1][labels[-1] == c].mean(dim=0) for c in range(3)])
    key, label = torch.cat(keys), torch.cat(labels)
    assert term.number.tolist() == [(label == c).sum() for c in range(19)]
    for c in range(3):
        torch.testing.assert_close(term.mean[c], key[label == c].mean(dim=0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(term.variance[c], key[label == c].var(dim=0, correction=0), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(
            term.bank[c, :2].double(), torch.stack([some[c] for some in centroids]), rtol=1e-5, atol=1e-7
        )
    assert term.pushed.tolist() == [2, 2, 2, *[0] * 16]
    assert set(passes(method, batch(2), 2)) == {"source", "mixed"} | LOSSES


def test_target_anchors_are_cells_with_weight(sepico: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pseudo-labels count without regard to their confidence, but not where their weight is 0."""
    project = sepico(domains=["target"])
    project.set("benchmarks/streets/train/border", {"top": 0.5, "bottom": 0.0})
    project.set("methods/sepico/threshold", 0.0)
    method, term = built(project)
    seen: dict[str, Tensor] = {}

    def contrast(domain: str, q: Tensor, label: Tensor) -> dict[str, Tensor]:
        seen[domain] = label
        return {}

    monkeypatch.setattr(term, "contrast", contrast)
    b = batch()
    passes(method, b, 3)
    assert set(seen) == {"target"} and b.pseudo is not None
    assert (seen["target"][:, :16] == 255).all() and torch.equal(seen["target"][:, 16:], b.pseudo[:, 16:])
    assert b.target is not None and b.target.shape == (2, 3, 32, 48)  # the chosen crop


def test_released_lets_unseen_classes_compete(sepico: Callable[..., Project]) -> None:
    found = {}
    for variant in ("paper", "released"):
        project = sepico(variant, prototype="proto")
        project.set("methods/sepico/variant", variant)
        method, _ = built(project)
        found[variant] = passes(method, batch(), 3)["sepico_source"].item()
    assert found["paper"] == pytest.approx(torch.tensor(3.0).log().item(), abs=0.02)  # three classes have cells
    assert found["released"] == pytest.approx(torch.tensor(19.0).log().item(), abs=0.02)


@pytest.mark.parametrize("prototype", ["dist", "bank"])
def test_stopped_and_continued_is_undisturbed(
    sepico: Callable[..., Project], train_until: Callable[[Project, str, int], None], prototype: str
) -> None:
    bank = {"length": 3, "span": 1.0, "zero": True}
    undisturbed = content(train(sepico("whole", prototype=prototype, bank=bank), "sepico"))
    assert set(undisturbed[1].splitlines()[0].split(",")) > LOSSES
    project = sepico("stopped", prototype=prototype, bank=bank)
    train_until(project, "sepico", 4)
    assert content(train(project, "sepico")) == undisturbed


def test_two_ranks_train_like_one(sepico: Callable[..., Project]) -> None:
    """The bank needs the most: global counts, means and centroids."""
    found: dict[int, list[dict[str, float]]] = {}
    for ranks in (1, 2):
        project = sepico(f"ranks{ranks}", prototype="bank", start=0.0, temperature=0.5)
        project.set("benchmarks/streets/train/steps", 3)
        project.set("benchmarks/streets/model/dropout", 0.0)  # drop-out draws differ by rank
        found[ranks] = train_on_ranks(project, "sepico", ranks)
    assert found[1][0] == pytest.approx(found[2][0], rel=1e-5)
    for one, two in zip(found[1], found[2], strict=True):
        assert set(one) > LOSSES and one == pytest.approx(two, rel=2e-3)


def test_published_blocks_train(sepico: Callable[..., Project]) -> None:
    for block in ("sepico-released", "sepico-sharp", "sepico-bank"):
        project = sepico(block, block, start=0.0)
        project.set("benchmarks/streets/train/steps", 2)
        train(project, "sepico")


def test_off_twin_has_the_recipe_without_the_term(sepico: Callable[..., Project]) -> None:
    project = sepico()
    project.set("methods/sepico", BLOCKS["sepico-off"])
    method = steps.built(project, "sepico", SelfTrainingMethod)
    assert not method.terms
    assert set(passes(method, batch(), 3)) == {"source", "mixed"}


def test_single_precision_losses_under_bf16(sepico: Callable[..., Project]) -> None:
    project = sepico(start=0.0)
    project.set("benchmarks/streets/train/precision", "bf16")
    method, _ = built(project)
    with torch.autocast("cpu", torch.bfloat16):
        half = passes(method, batch(), 3)
    again, _ = built(project)
    for name, loss in passes(again, batch(), 3).items():
        if name.startswith("sepico"):
            assert half[name].dtype == torch.float32
            assert half[name].item() == pytest.approx(loss.item(), abs=1e-3)


def night(project: Project) -> None:
    project.set("methods/sepico", BLOCKS["sepico-night"] | {"sepico": project.raw["methods"]["sepico"]["sepico"]})


def test_night_recipe_weighs_classes_and_asks_the_day(sepico: Callable[..., Project]) -> None:
    project = sepico()
    night(project)
    method, _ = built(project)
    b = batch()
    b.reference = torch.rand(2, 3, 32, 96)
    weight = method.class_balanced(b.label)
    assert weight is not None and weight[b.label == 0].unique().item() == pytest.approx(0.9041, abs=5e-5)
    losses = passes(method, b, 3)
    assert all(loss.isfinite() for loss in losses.values()) and b.reference.shape == (2, 3, 32, 48)
    plain = method.student.loss(method.student(b.image), b.label, weight / weight)
    weighed = method.student.loss(method.student(b.image), b.label, weight)
    assert weighed.item() != plain.item()

    views = SelfTrainingMethod.test_views(method.run, method.student)
    method.student.eval()
    logits = method.student.predict(b.image, (32, 48))
    a = views["class_weighted"](b.image, (32, 48)).exp() / logits.softmax(dim=1)
    assert a[0, :, 0, 0].tolist() == pytest.approx([1 + 0.16 * (w - 1) / 0.05 for w in WEIGHTS], abs=2e-4)
    assert not SelfTrainingMethod.test_views(built(sepico("plain"))[0].run, method.student)


WEIGHTS = [0.9041, 0.9542, 0.9175, 1.0162, 1.0081, 0.9988, 1.0482, 1.0210, 0.9275, 1.0004,
           0.9658, 0.9990, 1.0601, 0.9504, 1.0411, 1.0447, 1.0450, 1.0689, 1.0290]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("source_view", "weak", "source_view: found weak; .* say strong"),
        ("sepico/temperature", 0.0, "temperature: found 0.0, expected a number above 0"),
        ("sepico/statistics", {"start": 0.5, "momentum": None}, "statistics.start must not be later"),
        ("day_reference", BLOCKS["sepico-night"]["day_reference"] | {"frequency": [0.5, 0.5]}, "found 2 values"),
    ],
)
def test_bad_input(sepico: Callable[..., Project], path: str, value: Any, message: str) -> None:
    project = sepico()
    project.set(f"methods/sepico/{path}", value)
    with pytest.raises(UserError, match=message):
        built(project)


def test_day_reference_needs_day_images(sepico: Callable[..., Project]) -> None:
    project = sepico()
    night(project)
    with pytest.raises(UserError, match="no day reference"):
        train(project, "sepico")


def test_whole_images_are_looked_at_once(sepico: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the crop is the image there is nothing to choose from."""
    method, _ = built(sepico())
    looks: list[tuple[int, ...]] = []
    predict = method.teacher_network.predict

    def counted(images: Tensor, size: tuple[int, int]) -> Tensor:
        looks.append(tuple(images.shape[-2:]))
        return predict(images, size)

    monkeypatch.setattr(method.teacher_network, "predict", counted)
    b = batch()
    passes(method, b, 3)
    assert looks == [(32, 96), (32, 48)]
    looks.clear()
    whole = Batch(b.index, b.image, b.label, b.image.clone(), corners=torch.zeros(2, 10, 2, dtype=torch.long))
    passes(method, whole, 3)
    assert looks == [(32, 48)]
