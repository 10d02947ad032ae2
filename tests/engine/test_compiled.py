"""`train.compile` and `train.checkpointing`: other ways to the same numbers."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch import Tensor

from tiny_project import ROOT, Project
from udaseg import params
from udaseg.engine import compiled, trainer
from udaseg.engine.optim import build_optimizer
from udaseg.errors import UserError
from udaseg.models.backbones import Remade, blocks, is_convolutional

CPU = torch.device("cpu")
BLOCKS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]


def loop_of(project: Project, method: str = "self_training", **train: Any) -> trainer.Loop:
    project.set("benchmarks/streets/init", {"default": "none"})
    for key, value in {"steps": 4, **train}.items():
        project.set(f"benchmarks/streets/train/{key}", value)
    run = params.load("params.yaml").resolve("streets", method, 0)
    built = trainer.build(run, CPU)
    return trainer.Loop(run, built, build_optimizer(built, run.train.optimizer, CPU), CPU, Path("restart"), {})


def state_after(loop: trainer.Loop, steps: int = 2) -> dict[str, Tensor]:
    batches = itertools.cycle([next(loop.begin_round())])
    for _ in range(steps):
        loop.advance(batches)
    return {**{name: value.clone() for name, value in loop.method.state_dict().items()}, **loop.sums}


@pytest.mark.parametrize("backbone", ["resnet10t", "pvt_v2_b0"])
def test_checkpointing_keeps_every_bit(project: Project, backbone: str) -> None:
    """Weights, running statistics and their counters, with drop-path in the blocks."""
    project.set("benchmarks/streets/model/backbone", backbone)
    project.set("benchmarks/streets/model/backbone_args", {"drop_path_rate": 0.3})
    plain = loop_of(project)
    again = loop_of(project, checkpointing=True)
    assert blocks(again.method.student.encoder) and not blocks(plain.method.student.head)
    assert all(isinstance(block, Remade) for block in blocks(again.method.student.encoder))
    one, other = state_after(plain), state_after(again)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


PEAKS = """
import itertools, sys, yaml
from pathlib import Path
sys.path[:0] = sys.argv[1:]
from test_compiled import CPU, loop_of
from tiny_project import Project
from udaseg.bench.losses import peak_memory
project = Project(Path("."), yaml.safe_load(Path("params.yaml").read_text()))
for checkpointing in (False, True):
    loop = loop_of(project, "source_only", checkpointing=checkpointing, batch=4)
    batches = itertools.cycle([next(iter(loop.loader()))])
    loop.advance(batches)
    print("peak", peak_memory(lambda: loop.advance(batches), CPU))
"""


def test_checkpointing_takes_less_memory(project: Project) -> None:
    """In a process of its own: what earlier tests have left to the collector counts too."""
    project.set("benchmarks/streets/model/backbone", "resnet18")
    places = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests/engine")]
    done = subprocess.run([sys.executable, "-c", PEAKS, *places], cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, again = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    assert again < 0.9 * plain


@pytest.mark.parametrize("method", ["self_training", "sepico", "bcl"])
def test_compiled_parts_give_the_same_losses(project: Project, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Traced and differentiated as inductor does it, executed operation by operation."""
    project.set(f"methods/{method}", BLOCKS[method])
    graphs = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)  # type: ignore[no-any-return]

    monkeypatch.setattr(compiled, "BACKEND", backend)
    torch._dynamo.reset()
    eager = loop_of(project, method)
    fast = loop_of(project, method, compile="default")
    assert fast.method.state_dict().keys() == eager.method.state_dict().keys()
    one, other = state_after(eager), state_after(fast)
    assert len(graphs) >= 4, "encoder, head, loss and the teacher's"
    for name in eager.sums:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
    with compiled.plain(fast.method):
        assert all(part._compiled_call_impl is None for part in compiled.parts(fast.method))
    assert all(part._compiled_call_impl is not None for part in compiled.parts(fast.method))


def test_inductor_compiles_a_step(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head and loss, whose compilation takes a quarter of a minute; the encoder's takes minutes."""
    monkeypatch.setattr(compiled, "parts", lambda method: [method.student.head])
    if not shutil.which("g++"):  # inductor writes C++
        monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    eager, fast = loop_of(project, "source_only"), loop_of(project, "source_only", compile="default")
    one, other = state_after(eager, 1), state_after(fast, 1)
    torch.testing.assert_close(one["supervised"], other["supervised"], rtol=1e-4, atol=1e-5)


def test_which_encoders_are_convolutional() -> None:
    """On a GPU these have their channels last."""
    found = {name: timm.create_model(name, features_only=True) for name in ("resnet10t", "convnext_atto", "pvt_v2_b0")}
    assert [is_convolutional(encoder) for encoder in found.values()] == [True, True, False]


def test_compiled_and_made_again_are_refused_together(project: Project) -> None:
    with pytest.raises(UserError, match="compile: default and checkpointing: true, expected one of them"):
        loop_of(project, compile="default", checkpointing=True)
