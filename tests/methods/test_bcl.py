"""BCL as a whole: the step, its rounds, exact resume, ranks, variants, heads, bad input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import steps
import torch
from steps import BLOCKS, built, content, from_scratch, history, run_of, train, train_on_ranks, with_head
from torch import Tensor

from tiny_project import Project
from udaseg import params
from udaseg.checking import build as checked
from udaseg.engine.optim import learning_rate
from udaseg.errors import UserError
from udaseg.methods.base import Batch
from udaseg.methods.bcl import BclMethod
from udaseg.models import Output, build_model, load_model_file, load_state

VARIANTS = [name for name in BLOCKS if name.split("-")[0] == "bcl"]


@pytest.fixture
def tiny(make_project: Callable[[str], Project]) -> Callable[..., Project]:
    """Make a project that trains the blocks of the real params.yaml from random weights, with three rounds in six steps."""

    def make(name: str = "project", **changes: Any) -> Project:
        project = from_scratch(make_project(name), steps=6, save_every=2, log_every=1)
        for variant in VARIANTS:
            # untrained prototypes are alike: a lower bar of confidence, or there are no dynamic labels at all
            project.set(f"methods/{variant}", BLOCKS[variant] | {"rounds": 3, "confidence": 0.3} | changes)
        return project

    return make


def method_of(project: Project, name: str = "bcl") -> BclMethod:
    return built(project, name, BclMethod)


def batch(seed: int = 0) -> Batch:
    return dataclasses.replace(steps.batch(seed), static=steps.batch(seed + 100).label)


def test_bcl_o13() -> None:
    native = BLOCKS["bcl"]["native"]
    lr = native["optimizer"]["lr"]
    schedule = checked(params.Schedule, native["schedule"], "schedule")
    for step, expected in ((0, 7.5e-5), (2500, 6.077842e-5), (5000, 4.617282e-5)):
        assert learning_rate(step, native["steps"], lr, schedule) == pytest.approx(expected, rel=1e-6)
        second_round = learning_rate(step + 10_000, native["steps"], lr, schedule)
        assert second_round == pytest.approx(expected / 2, rel=1e-6)
    assert learning_rate(90_000, native["steps"], lr, schedule) == pytest.approx(1.464844e-7, rel=1e-6)
    # the released loop runs one step more in each of its two epochs, so that it reaches step 10 000
    released = dataclasses.replace(schedule, horizon=12_000 / 10_002)
    assert learning_rate(10_000, 100_020, lr, released) == pytest.approx(1.495289e-5, rel=1e-6)


def test_bcl_o14(tiny: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(tiny())
    ce, entropies = iter([1.2, 2.0]), iter([0.5, 0.8])
    monkeypatch.setattr(BclMethod, "cross_entropy", lambda *_: torch.tensor(next(ce)))
    monkeypatch.setattr(BclMethod, "entropy", lambda *_: torch.tensor(next(entropies)))
    pairs = torch.tensor([[3.0, 4], [2, 1]])
    monkeypatch.setattr(BclMethod, "contrasts", lambda *_: tuple(pairs.mean(dim=0)))
    (losses,) = method.losses(batch(), 0)
    assert sum(losses.values()).item() == pytest.approx(3.096, abs=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("head", ["deeplabv2", "daformer", "segformer"])
def test_one_step_on_every_head(tiny: Callable[..., Project], name: str, head: str) -> None:
    project = tiny()
    with_head(project, head)
    method = method_of(project, name)
    (losses,) = method.losses(batch(), 0)
    expected = {"source", "target", "source_entropy", "target_entropy", "forward", "backward"}
    assert set(losses) == (expected - {"forward", "backward"} if name == "bcl-off" else expected)
    assert all(value.isfinite() and value > 0 for value in losses.values())
    if name != "bcl-off":
        (losses["forward"] + losses["backward"]).backward()
        first = next(method.student.encoder.parameters())
        assert first.grad is not None and first.grad.any() and first.grad.isfinite().all()
        width = {"deeplabv2": 2 * method.classes, "daformer": 16, "segformer": 16}[head]
        assert method.bias.shape == (method.classes, width)
    method.after_step(0)
    assert bool(method.bias.any()) == (name == "bcl")


def test_finer_maps_are_averaged_to_stride_eight(tiny: Callable[..., Project]) -> None:
    method = method_of(tiny())
    output = method.student(batch().image)
    assert output.decoder is not None and output.decoder.shape[2:] == (8, 12)
    feature = method.feature(output)
    assert feature.shape[2:] == (4, 6)
    torch.testing.assert_close(feature[:, :, 1, 2], output.decoder[:, :, 2:4, 4:6].mean(dim=(2, 3)))
    stage = method_of(tiny("stage", feature="stage"))
    assert torch.equal(stage.feature(output), output.stages[-1])
    unit = method_of(tiny("unit", normalise=True)).feature(output)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2, 4, 6))


def four_clusters(method: BclMethod, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Features (2, D, 4, 6) around four directions, target-like where shifted, and their classes (2, 4, 6)."""
    g = torch.Generator().manual_seed(3)
    label = torch.randint(0, 4, (2, 4, 6), generator=g)
    directions = torch.eye(method.bias.shape[1])[:5]
    features = directions[label] + shift * directions[4] + 0.05 * torch.randn(2, 4, 6, directions.shape[1], generator=g)
    return features.permute(0, 3, 1, 2), label


def test_dynamic_labels_fill_the_holes_and_move_the_bias(tiny: Callable[..., Project]) -> None:
    method = method_of(tiny(confidence=0.8))
    f_s, y_s = four_clusters(method)
    f_t, truth = four_clusters(method, shift=1.0)
    holes = torch.full_like(truth, 255)
    for step in range(400):
        method.contrasts(f_s, y_s, f_t, holes)
        assert not method.bias.any() or step
        method.after_step(step)
    rho_s, rho_t = method.prototypes(f_s, y_s), method.prototypes(f_t, truth)
    assert (method.dynamic_labels(f_t, rho_s) == truth).all()
    gap = (rho_t.vectors - rho_s.vectors).mean(dim=0)[:4]
    torch.testing.assert_close(method.bias[:4], gap * (1 - 0.99**400), rtol=1e-3, atol=1e-4)
    assert not method.bias[4:].any()  # classes never seen


def test_the_bias_decides_dynamic_labels(tiny: Callable[..., Project]) -> None:
    method = method_of(tiny(confidence=0.8))
    f_s, y_s = four_clusters(method)
    rho_s = method.prototypes(f_s, y_s)
    f_t = f_s.roll(1, dims=1)  # every class now lies where its neighbour was
    for labelled, expected in ((False, (y_s + 1) % 4), (True, y_s)):
        if labelled:
            method.bias[:4] = rho_s.vectors[:, :4].mean(dim=0).roll(1, dims=1) - rho_s.vectors[:, :4].mean(dim=0)
        found = method.dynamic_labels(f_t, rho_s)
        known = found != 255
        assert known.float().mean() > 0.7 and (found[known] == expected[known]).all()


@pytest.mark.parametrize("labels", ["hybrid", "static"])
def test_by_which_labels_the_bias_is_measured(tiny: Callable[..., Project], labels: str) -> None:
    method = method_of(tiny(calibration=labels, confidence=0.8, momentum=0.0))
    f_s, y_s = four_clusters(method)
    f_t, truth = four_clusters(method, shift=1.0)
    holes = torch.where(truth < 2, truth, 255)
    method.contrasts(f_s, y_s, f_t, holes)
    method.after_step(0)
    assert method.bias.any(dim=1)[:4].tolist() == [True, True, labels == "hybrid", labels == "hybrid"]


@pytest.mark.parametrize("labels", ["static", "dynamic", "hybrid"])
def test_which_labels_are_contrasted(tiny: Callable[..., Project], labels: str) -> None:
    method = method_of(tiny(labels=labels, confidence=0.8))
    f_s, y_s = four_clusters(method)
    f_t, truth = four_clusters(method)
    wrong = torch.full_like(truth, 255)
    wrong[:, 0] = (truth[:, 0] + 1) % 4
    merged = {"static": wrong, "dynamic": truth, "hybrid": torch.where(wrong == 255, truth, wrong)}[labels]
    found = method.contrasts(f_s, y_s, f_t, wrong)
    fixed = method_of(tiny("fixed", labels="static"))
    torch.testing.assert_close(found, fixed.contrasts(f_s, y_s, f_t, merged))


def test_anchors_may_stay_static(tiny: Callable[..., Project]) -> None:
    method = method_of(tiny(hybrid_in="prototypes", confidence=0.8))
    f_s, y_s = four_clusters(method)
    f_t, _ = four_clusters(method)
    forward, backward = method.contrasts(f_s, y_s, f_t, torch.full_like(y_s, 255))
    assert forward == 0 and backward > 0  # no static label, so no anchor in the target; yet prototypes


def test_accumulated_steps_calibrate_once(tiny: Callable[..., Project]) -> None:
    one, two = method_of(tiny(momentum=0.5)), method_of(tiny("two", momentum=0.5))
    f_s, y_s = four_clusters(one)
    f_t, y_t = four_clusters(one, shift=1.0)
    one.contrasts(f_s, y_s, f_t, y_t)
    for i in range(2):
        two.contrasts(f_s[i : i + 1], y_s[i : i + 1], f_t[i : i + 1], y_t[i : i + 1])
    for method in (one, two):
        method.after_step(0)
        assert not method.bias_sums.any() and not method.bias_sets.any()
    assert one.bias.any()
    torch.testing.assert_close(one.bias, two.bias)


def test_cross_entropy_is_over_labelled_pixels(tiny: Callable[..., Project]) -> None:
    method, b = method_of(tiny()), batch()
    output = Output(torch.randn(2, method.classes, 8, 12, generator=torch.Generator().manual_seed(0)), [], None)
    logits = torch.nn.functional.interpolate(output.logits, size=(32, 48), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(logits, b.label, ignore_index=255)
    torch.testing.assert_close(method.cross_entropy(output, b.label), expected)
    assert method.cross_entropy(output, torch.full_like(b.label, 255)) == 0


def test_all_ignored_target_trains_on(tiny: Callable[..., Project]) -> None:
    for name in ("bcl", "bcl-released"):
        method, b = method_of(tiny(name), name), batch()
        b.static = torch.full_like(b.label, 255)
        (losses,) = method.losses(b, 0)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert total.isfinite() and losses["target"] == 0
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_split_stem(tiny: Callable[..., Project]) -> None:
    method = method_of(tiny(), "bcl-released")
    source = method.source_network
    assert source is not None
    own = dict(method.student.named_parameters())
    twins = dict(source.named_parameters())
    split = {name.split(".")[2] for name in own if own[name] is not twins[name]}
    assert split == {"conv1", "bn1", "layer1"}
    assert all(torch.equal(own[name], twins[name]) for name in own)  # both begin as the start model's stem
    (losses,) = method.losses(batch(), 0)
    losses["source"].backward()  # from the source pass only
    stem = "encoder.body.conv1.0.weight"
    assert own[stem].grad is None and twins[stem].grad is not None
    assert own["encoder.body.layer2.0.conv1.weight"].grad is not None
    count = sum(p.numel() for p in method.parameters())
    assert count == sum(p.numel() for p in {id(p): p for p in (*own.values(), *twins.values())}.values())


def test_split_stem_is_scored_with_the_target_stem(tiny: Callable[..., Project]) -> None:
    project = tiny()
    folder = train(project, "bcl-released")
    run = run_of(project, "bcl-released")
    state, _ = load_model_file(folder / "model.safetensors")
    load_state(build_model(run.benchmark.model, len(run.classes)), state, folder)  # a plain network, nothing left over


def test_released_and_paper_differ(tiny: Callable[..., Project]) -> None:
    paper = method_of(tiny(labels="static", temperature=1.0))
    released = method_of(tiny("released", variant="released", labels="static", temperature=1.0))
    f_s, y_s = four_clusters(paper)
    f_t, y_t = four_clusters(paper, shift=0.5)
    one, two = paper.contrasts(f_s, y_s, f_t, y_t), released.contrasts(f_s, y_s, f_t, y_t)
    assert all(b > a for a, b in zip(one, two, strict=True))  # 15 absent classes more in each denominator


@pytest.mark.parametrize("name", ["bcl", "bcl-released"])
def test_stopped_and_continued_is_undisturbed(
    tiny: Callable[..., Project], train_until: Callable[[Project, str, int], None], name: str
) -> None:
    undisturbed = content(train(tiny("undisturbed"), name))
    for step in (2, 3):  # at the seam of two rounds, and inside one
        project = tiny(f"stopped{step}")
        train_until(project, name, step)
        assert content(train(project, name)) == undisturbed


@pytest.mark.parametrize("prototypes", ["pair", "batch"])
def test_two_ranks_train_like_one(tiny: Callable[..., Project], prototypes: str) -> None:
    found = []
    for ranks in (1, 2):
        project = tiny(f"ranks{ranks}", prototypes=prototypes, momentum=0.0)
        project.set("benchmarks/streets/train/steps", 3)
        project.set("benchmarks/streets/model/dropout", 0.0)  # drop-out draws differ by rank
        project.set("benchmarks/streets/train/optimizer/lr", 1e-6)  # keeps rounding from growing with the steps
        found.append(history(train(project, "bcl")) if ranks == 1 else train_on_ranks(project, "bcl", ranks))
    for row, (one, two) in enumerate(zip(*found, strict=True)):
        # labels are decisions: later, by rounding, a few pixels may fall otherwise
        assert one == pytest.approx(two, rel=2e-2 if row else 1e-5), (row, one, two)
        assert one["forward"] > 0 and one["backward"] > 0


def test_rounds_label_the_target_anew(tiny: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> None:
    project, made = tiny(), []
    label_target = BclMethod.label_target

    def noted(self: BclMethod, images: Any, labels: Any) -> None:
        assert self.student.training
        label_target(self, images, labels)
        assert self.student.training
        made.append(torch.from_numpy(labels.copy()))

    monkeypatch.setattr(BclMethod, "label_target", noted)
    folder = train(project, "bcl")
    assert len(made) == 3 and not torch.equal(made[0], made[1])
    for labels in made:
        share = (labels != 255).double().mean()
        assert 0.09 < share <= 0.21  # a tenth of each class, a tenth of each image
    assert all(row["target"] > 0 for row in history(folder))


@pytest.mark.parametrize(("variant", "times"), [("paper", 1), ("released", 2)])
def test_a_round_looks_at_each_image_once(tiny: Callable[..., Project], variant: str, times: int) -> None:
    method = method_of(tiny(variant=variant))
    seen: list[int] = []

    def images() -> Iterator[tuple[int, Tensor]]:
        for n in range(2):
            seen.append(n)
            yield n, batch(n).image[0]

    method.label_target(images, np.full((2, 32, 48), 255, np.uint8))
    assert seen == [0, 1] * times  # the released rule needs all probabilities again


def test_off_is_the_same_recipe_without_contrast(tiny: Callable[..., Project]) -> None:
    project = tiny()
    on, off = (dataclasses.asdict(run_of(project, name).method) for name in ("bcl", "bcl-off"))
    assert {key for key in on if on[key] != off[key]} == {"forward", "backward"}
    assert "forward" not in history(train(project, "bcl-off"))[0]


def bad() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"feature": "branches"}, "methods.bcl.feature: found 'branches', which head segformer does not give"
    yield {"rounds": 0}, "methods.bcl.rounds: found 0, expected an integer from 1"
    yield {"portion": 1.5}, "methods.bcl.portion: found 1.5, expected a number from 0 to 1"
    yield {"temperature": 0.0}, "methods.bcl.temperature: found 0.0, expected a number above 0"
    yield {"terms": ["sepico"]}, r"methods.bcl.terms: found \['sepico'\], but bcl takes none"
    yield {"variant": "paperr"}, "variant.*paperr"
    yield {"mometum": 0.9}, "momentum"


@pytest.mark.parametrize(("change", "message"), list(bad()))
def test_bad_blocks_are_refused_before_training(
    tiny: Callable[..., Project], change: dict[str, Any], message: str
) -> None:
    project = tiny()
    project.set("methods/bcl", BLOCKS["bcl"] | change)
    with pytest.raises(UserError, match=message):
        method_of(project)


def test_backbone_without_a_stem_of_its_own(tiny: Callable[..., Project]) -> None:
    project = tiny()
    project.set("benchmarks/streets/model/backbone", "vit_tiny_patch16_224")
    with pytest.raises(UserError, match="has no stem to split"):
        method_of(project, "bcl-released")
