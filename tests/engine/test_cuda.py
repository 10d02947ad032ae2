"""What only a GPU can show: equal bits twice, mixed precision, no host wait in the step, a sticky stop on non-finite losses."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from tiny_project import Project
from udaseg import params
from udaseg.artifacts import file_hash
from udaseg.bench.step import host_waits
from udaseg.engine import runtime, trainer, training
from udaseg.engine.optim import build_optimizer
from udaseg.errors import UserError

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for CUDA")]


def run_of(project: Project, precision: str = "fp32") -> params.Run:
    project.set("run/device", "cuda")
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("benchmarks/streets/train/steps", 6)
    project.set("benchmarks/streets/train/precision", precision)
    project.set("methods/self_training/jitter", {"p": 1.0, "strength": 0.2})  # every branch of the step, every time
    project.set("methods/self_training/blur", {"p": 1.0, "sigma": [0.15, 1.15]})
    return params.load("params.yaml").resolve("streets", "self_training", 0)


def loop_of(project: Project) -> trainer.Loop:
    run = run_of(project)
    device = runtime.setup(run.params.run)
    method = trainer.build(run, device)
    return trainer.Loop(
        run, method, build_optimizer(method, run.train.optimizer, device), device, project.folder / "r", {}
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_bits_twice(make_project: Callable[[str], Project], precision: str) -> None:
    hashes = set()
    for name in ("one", "two"):
        run = run_of(make_project(name), precision)
        training.train(run, run.folder)
        hashes.add(file_hash(run.folder / "model.safetensors"))
    assert len(hashes) == 1


def test_a_step_never_waits_for_the_device(project: Project) -> None:
    loop = loop_of(project)
    batches = itertools.cycle([next(iter(loop.loader()))])
    for _ in range(2):
        loop.advance(batches)
    assert host_waits(lambda: loop.advance(batches)) == 0


def test_not_finite_moves_nothing_and_stops_at_the_next_look(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_of(project)
    batches = itertools.cycle([next(iter(loop.loader()))])
    loop.advance(batches)
    before = [p.detach().clone() for p in loop.parameters]
    original = loop.method.losses

    def broken(batch, step):  # type: ignore[no-untyped-def]
        for named in original(batch, step):
            yield {name: value * float("nan") for name, value in named.items()}

    monkeypatch.setattr(loop.method, "losses", broken)
    loop.advance(batches)
    assert all(torch.equal(a, b) for a, b in zip(before, loop.parameters, strict=True))
    with pytest.raises(UserError, match="not finite"):
        loop.stop_if_broken()
