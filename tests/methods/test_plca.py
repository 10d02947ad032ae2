"""PLCA as a whole: the step, exact resume, ranks, variants, heads, aggregation at test time, bad input."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps import BLOCKS, batch, built, content, from_scratch, history, run_of, train, train_on_ranks, with_head

from tiny_project import Project
from udaseg import params
from udaseg.checking import build as checked
from udaseg.engine.optim import learning_rate
from udaseg.errors import UserError
from udaseg.evaluation.evaluate import evaluate_run
from udaseg.losses import plain
from udaseg.losses.plca import adaptive_smoothing, aggregated_features, feature_cycles, lovasz_softmax
from udaseg.methods.plca import PlcaMethod, grid_of, mean_over_cycles, positions, resized

VARIANTS = [name for name in BLOCKS if name.split("-")[0] == "plca"]


@pytest.fixture
def tiny(make_project: Callable[[str], Project]) -> Callable[..., Project]:
    """Make a project that trains the blocks of the real params.yaml from random weights, six steps."""

    def make(name: str = "project", **changes: Any) -> Project:
        project = from_scratch(make_project(name), steps=6, save_every=2, log_every=1)
        for variant in VARIANTS:
            project.set(f"methods/{variant}", BLOCKS[variant] | changes)
        return project

    return make


def method_of(project: Project, name: str = "plca") -> PlcaMethod:
    return built(project, name, PlcaMethod)


def test_native_schedules() -> None:
    """Those of oracle 5.10, as params.yaml writes them."""
    for name, rates in [
        ("plca", {0: 2.5e-4, 5580: 1.3397168e-4, 10415: 2.1876754e-5}),
        ("plca-synthia", {2975: 5.8801988e-5}),
    ]:
        native = BLOCKS[name]["native"]
        schedule = checked(params.Schedule, native["schedule"], "schedule")
        for step, rate in rates.items():
            found = learning_rate(step, native["steps"], native["optimizer"]["lr"], schedule)
            assert found == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "head"), [*((name, "segformer") for name in VARIANTS), ("plca", "deeplabv2"), ("plca", "daformer")]
)
def test_one_step(tiny: Callable[..., Project], name: str, head: str) -> None:
    project = tiny(tile=5)
    with_head(project, head)
    method = method_of(project, name)
    (losses,) = method.losses(batch(), 0)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    for part in (method.student.encoder, method.student.head):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert gradients and all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)


def test_the_step_is_the_sum_of_the_paper(tiny: Callable[..., Project]) -> None:
    """Section 1.2, each term from the networks' outputs; the grid has stride 8, the maps 4."""
    project = tiny()
    project.set("benchmarks/streets/model/dropout", 0.0)
    method, b = method_of(project), batch()
    (losses,) = method.losses(b, 0)
    assert b.target is not None
    student = method.student  # the running statistics have moved, those of the batch are the same
    target, source = student(student.normalise(b.target)), student(student.normalise(b.image))
    assert source.logits.shape[2:] == (8, 12) and grid_of(source, b.image, 8) == (4, 6)
    full = F.interpolate(source.logits, size=(32, 48), mode="bilinear", align_corners=False)
    expected = {
        "source": F.cross_entropy(full, b.label, ignore_index=255),
        "lovasz": 3 * lovasz_softmax(full.softmax(1), b.label),
    }
    for domain, output in (("source", source), ("target", target)):
        coarse = F.avg_pool2d(output.logits, 2)  # what bilinear interpolation to half the size is
        expected[f"smoothing_{domain}"] = 0.01 * adaptive_smoothing(coarse, 10.0)
    maps = [F.avg_pool2d(o.decoder, 2).flatten(2).transpose(1, 2) for o in (source, target)]  # type: ignore[arg-type]
    moved = aggregated_features(maps[1], alpha=0.5, floor=1e-4, tile=7)
    cycles = feature_cycles(maps[0], moved, b.label[:, ::8, ::8].flatten(1), floor=1e-4, tile=7)
    expected["association_feature"] = 0.1 * cycles.total / cycles.kept.sum()
    assert set(losses) == {*expected, "association_prediction"}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)


def test_all_ignored_trains_the_target_only(tiny: Callable[..., Project]) -> None:
    method, b = method_of(tiny()), batch()
    b.label = torch.full_like(b.label, 255)
    (losses,) = method.losses(b, 0)
    assert all(value.isfinite() for value in losses.values())
    assert {name for name, value in losses.items() if value != 0} == {"smoothing_source", "smoothing_target"}
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_a_coarse_network_keeps_its_grid(tiny: Callable[..., Project]) -> None:
    """DeepLab-V2 without dilated stages: interpolated positions would say nothing new."""
    project = tiny()
    project.set("benchmarks/streets/model/head", "deeplabv2")
    project.set("benchmarks/streets/model/dilations", [6])
    method, b = method_of(project), batch()
    output = method.student(b.image)
    assert grid_of(output, b.image, 8) == tuple(output.logits.shape[2:]) == (1, 2)
    (losses,) = method.losses(b, 0)
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("max_pixels", [None, 9])
def test_stopped_and_continued_is_undisturbed(
    tiny: Callable[..., Project], train_until: Callable[[Project, str, int], None], max_pixels: int | None
) -> None:
    undisturbed = content(train(tiny("undisturbed", max_pixels=max_pixels), "plca"))
    project = tiny("stopped", max_pixels=max_pixels)
    train_until(project, "plca", 3)
    assert content(train(project, "plca")) == undisturbed


def test_two_ranks_train_like_one(tiny: Callable[..., Project]) -> None:
    """The pooled mean over cycles, Lovász-Softmax and batch statistics are those of the global batch."""
    found = []
    for ranks in (1, 2):
        project = tiny(f"ranks{ranks}", max_pixels=20)
        project.set("benchmarks/streets/train/steps", 3)
        project.set("benchmarks/streets/model/dropout", 0.0)  # drop-out draws differ by rank
        # nearest neighbours are decisions: where rounding grows with the steps, one of them falls otherwise
        project.set("benchmarks/streets/train/optimizer/lr", 1e-6)
        found.append(history(train(project, "plca")) if ranks == 1 else train_on_ranks(project, "plca", ranks))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)  # a nearest neighbour may turn at once
    for one, two in zip(*found, strict=True):
        assert one == pytest.approx(two, rel=1e-3), (one, two)
        assert one["association_feature"] > 0 and one["association_prediction"] > 0


def test_cycles_are_pooled_over_ranks(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Project]) -> None:
    """Rank losses average to the mean over all cycles, not to a mean of means."""
    g = torch.Generator().manual_seed(0)
    source, target = torch.randn(4, 9, 3, generator=g), torch.randn(4, 8, 3, generator=g)
    label = torch.randint(0, 3, (4, 9), generator=g)
    label[:2] = 255
    label[0, 0] = 0  # few cycles in the first half
    whole = feature_cycles(source, target, label, floor=1e-4, tile=4)
    halves = [
        feature_cycles(source[i : i + 2], target[i : i + 2], label[i : i + 2], floor=1e-4, tile=4) for i in (0, 2)
    ]
    number = torch.stack([half.kept.sum() for half in halves])
    assert 0 < number[0] < number[1]
    expected = mean_over_cycles(whole)
    monkeypatch.setattr("udaseg.ranks.world", lambda: 2)
    monkeypatch.setattr("udaseg.ranks.total", lambda tensor: number.sum())
    torch.testing.assert_close(torch.stack([mean_over_cycles(half) for half in halves]).mean(), expected)


def test_off_is_the_same_recipe_without_association(tiny: Callable[..., Project]) -> None:
    project = tiny()
    on, off = (dataclasses.asdict(run_of(project, name).method) for name in ("plca", "plca-off"))
    assert {key for key in on if on[key] != off[key]} == {"levels"}
    kept = history(train(project, "plca-off"))[0]
    assert set(kept) == {"step", "learning_rate", "source", "lovasz", "smoothing_source", "smoothing_target"}


def test_released_loses_the_smoothing_with_a_level(tiny: Callable[..., Project]) -> None:
    for levels in (["feature", "prediction"], ["feature"]):
        project = tiny("-".join(levels), levels=levels)
        (paper,) = method_of(project).losses(batch(), 0)
        (released,) = method_of(project, "plca-released").losses(batch(), 0)
        lost = set() if len(levels) == 2 else {"smoothing_source", "smoothing_target"}
        assert set(paper) - set(released) == lost
        assert {f"association_{level}" for level in levels} <= set(released)


def test_drawn_positions_belong_to_the_pair(tiny: Callable[..., Project]) -> None:
    method, b = method_of(tiny(max_pixels=9)), batch()
    here, there = method.drawn("source", b, 24), method.drawn("target", b, 24)
    assert here is not None and there is not None and not torch.equal(here, there)
    assert here.shape == (2, 9) and all(len(set(row)) == 9 for row in here.tolist()) and here.max() < 24
    swapped = method.drawn("source", dataclasses.replace(b, index=[7, 6]), 24)
    assert swapped is not None and torch.equal(swapped, here.flip(0))
    assert method.drawn("source", b, 9) is None
    (losses,) = method.losses(b, 0)
    (whole,) = method_of(tiny("whole")).losses(b, 0)
    for level in ("feature", "prediction"):
        assert losses[f"association_{level}"].isfinite()
        assert losses[f"association_{level}"] < whole[f"association_{level}"]  # fewer candidates


def test_aggregation_at_test_time(tiny: Callable[..., Project]) -> None:
    """Against whole matrices: features, the head on them, its probabilities."""
    project = tiny(aggregation=0.3, tile=3)
    method, b = method_of(project).eval(), batch()
    with torch.no_grad():
        method.student.head.classify.weight.mul_(100)  # type: ignore[union-attr, operator]  # untrained it says nothing
    (predict,) = method.test_views(run_of(project, "plca"), method.student).values()
    with torch.inference_mode():
        found = predict(b.image, (32, 48)).softmax(1)
    student = method.student
    output = student(b.image)
    x = positions(resized(output.feature, (4, 6)))
    x = plain.plca_aggregation(x, plain.plca_standardised(plain.plca_cosine(x, x)), 0.3)
    p = student.classify(x.mT.reshape(2, -1, 4, 6)).softmax(1).flatten(2).mT
    p = plain.plca_aggregation(p, plain.plca_divergence(p, p), 0.3)
    expected = F.interpolate(p.mT.reshape(2, -1, 4, 6), size=(32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - student.predict(b.image, (32, 48)).softmax(1)).abs().max() > 0.01
    assert method.test_views(run_of(tiny("off", aggregation=0.0), "plca"), student) == {}


def test_scored_with_and_without_aggregation(tiny: Callable[..., Project]) -> None:
    project = tiny()
    train(project, "plca")
    assert "aggregated" in evaluate_run(run_of(project, "plca"))
    metrics = json.loads((project.folder / "results/streets/plca/seed0/metrics.json").read_text())
    assert 0 <= metrics["other"]["aggregated"]["miou"] <= 100 and "miou" in metrics


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tile": 0}, "plca.tile: found 0"),
        ({"stride": 0}, "plca.stride: found 0"),
        ({"max_pixels": 0}, "plca.max_pixels: found 0"),
        ({"floor": 0.0}, "plca.floor: found 0.0"),
        ({"lsr_limit": 0.0}, "plca.lsr_limit: found 0.0"),
        ({"aggregation": 1.5}, "plca.aggregation: found 1.5, expected a number from 0 to 1"),
        ({"levels": ["feature", "feature"]}, "methods.plca.levels: found .* expected none twice"),
        ({"levels": ["features"]}, "methods.plca.levels"),
        ({"terms": ["pipa"]}, "plca takes none"),
    ],
)
def test_bad_input(tiny: Callable[..., Project], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        method_of(tiny(**changes))
    assert "\n" not in str(error.value)
