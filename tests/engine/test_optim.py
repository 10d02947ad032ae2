"""Parameter groups and optimisers of the DAFormer family (docs/methods/self_training.md)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tiny_project import ROOT
from udaseg import params
from udaseg.engine.optim import build_optimizer, learning_rate, parameter_groups, set_learning_rate
from udaseg.models import build_model
from udaseg.params import Model, Optimizer, Schedule

ADAMW = Optimizer(name="adamw", lr=6e-5, head_factor=10, weight_decay=0.01, momentum=0.9, no_decay=True)


def daformer() -> nn.Module:
    spec = Model(
        "pvt_v2_b0",
        {"mlp_ratios": [4, 4, 4, 4]},
        "daformer",
        32,
        (6, 12, 18),
        0.1,
        "none",
        (0.5,) * 3,
        (0.5,) * 3,
        "train",
    )
    return build_model(spec, 19)


def test_groups_of_daformer() -> None:
    model = daformer()
    model.encoder.requires_grad_(True)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in parameter_groups(model, ADAMW):
        for parameter in group["params"]:  # type: ignore[attr-defined]
            name = names[id(parameter)]
            head = name.startswith("head.")
            assert group["lr"] == pytest.approx(6e-4 if head else 6e-5)
            # layer normalisation of the encoder is free; biases, and the decoder's batch normalisation, decay
            free = not head and "norm" in name
            assert group["weight_decay"] == (0 if free else 0.01), name
    assert sum(len(g["params"]) for g in parameter_groups(model, ADAMW)) == len(names)  # type: ignore[arg-type]


def test_frozen_parameters_stay_out() -> None:
    model = daformer()
    model.encoder.requires_grad_(False)
    assert all(g["lr"] == pytest.approx(6e-4) for g in parameter_groups(model, ADAMW))


def test_rate_reaches_every_group() -> None:
    optimizer = build_optimizer(daformer(), ADAMW, torch.device("cpu"))
    assert isinstance(optimizer, torch.optim.AdamW)
    set_learning_rate(optimizer, 1e-5)
    assert {round(g["lr"], 8) for g in optimizer.param_groups} == {1e-5, 1e-4}


def test_sgd_recipe() -> None:
    p = Optimizer(name="sgd", lr=2.5e-3, head_factor=1, weight_decay=5e-4, momentum=0.9, no_decay=False)
    optimizer = build_optimizer(daformer(), p, torch.device("cpu"))
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.9, 5e-4, 2.5e-3)


def test_schedule_ends_at_zero_and_knows_other_powers() -> None:
    no_warmup = Schedule(warmup=0.0, power=0.9)
    assert learning_rate(0, 10, 1.0, no_warmup) == 1.0
    assert learning_rate(5, 10, 1.0, no_warmup) == pytest.approx(0.5**0.9)
    rates = [learning_rate(t, 10, 1.0, no_warmup) for t in range(11)]
    assert rates[-1] == 0 and rates == sorted(rates, reverse=True)


def test_real_benchmarks_have_the_published_recipe() -> None:
    run = params.load(ROOT / "params.yaml").resolve("gta2cityscapes", "self_training", 0)
    t = run.train
    assert (t.steps, t.batch, str(t.crop)) == (40_000, 2, "512x512")
    assert round(t.schedule.warmup * t.steps) == 1500
    assert (t.optimizer.lr, t.optimizer.head_factor, t.optimizer.weight_decay) == (6e-5, 10, 0.01)
    assert (round(t.border.top * 512), round(t.border.bottom * 512)) == (15, 120)
    assert (t.rare_class.pixels, t.rare_class.crop_pixels) == (3000, 1500)


def test_rounds_begin_the_decay_anew() -> None:
    p = Schedule(warmup=0.0, power=1.0, horizon=2.0, rounds=3, factor=0.1)
    rates = [learning_rate(step, 6, 1.0, p) for step in range(6)]
    assert rates == pytest.approx([1, 0.75, 0.1, 0.075, 0.01, 0.0075])
