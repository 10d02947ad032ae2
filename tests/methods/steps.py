"""What tests of methods share: blocks of the real params.yaml on the tiny project, a batch, training, several ranks."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from tiny_project import ROOT, Project
from udaseg import params
from udaseg.artifacts import file_hash
from udaseg.engine import trainer, training
from udaseg.methods.base import Batch, Method, Term
from udaseg.methods.self_training import SelfTrainingMethod

CPU = torch.device("cpu")
RAW: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
BLOCKS: dict[str, Any] = RAW["methods"]

M = TypeVar("M", bound=Method)
T = TypeVar("T", bound=Term)


def from_scratch(project: Project, **train: Any) -> Project:
    """The project with random initial weights, and other values in its block `train`."""
    project.set("benchmarks/streets/init", {"default": "none"})
    for key, value in train.items():
        project.set(f"benchmarks/streets/train/{key}", value)
    return project


def with_head(project: Project, head: str, dilations: list[int] | None = None) -> None:
    """Every head on maps that are fine enough for it."""
    usual = [] if head == "segformer" else [6, 12]
    project.set("benchmarks/streets/model/head", head)
    project.set("benchmarks/streets/model/dilations", usual if dilations is None else dilations)
    project.set("benchmarks/streets/model/backbone_args", {"output_stride": 8} if head == "deeplabv2" else {})


def run_of(project: Project | Path, method: str) -> params.Run:
    folder = project if isinstance(project, Path) else project.folder
    return params.load(folder / "params.yaml").resolve("streets", method, 0)


def built(project: Project | Path, method: str, kind: type[M]) -> M:
    found = trainer.build(run_of(project, method), CPU)
    assert isinstance(found, kind)
    return found


def built_with_term(project: Project | Path, name: str, kind: type[T]) -> tuple[SelfTrainingMethod, T]:
    """A self-training method and its term, both called `name`."""
    method = built(project, name, SelfTrainingMethod)
    term = method.terms[name]
    assert isinstance(term, kind)
    return method, term


def batch(seed: int = 0, classes: int = 4) -> Batch:
    """Two pairs of 32x48, labels in blocks of eight pixels, a strip ignored."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (2, 4, 6), generator=g).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    label[:, :5] = 255
    image, target = (torch.rand(2, 3, 32, 48, generator=g) for _ in range(2))
    return Batch([6, 7], image, label, target)


def train(project: Project, method: str) -> Path:
    """Train as the command does; returns the run's folder."""
    run = run_of(project, method)
    training.train(run, run.folder)
    return project.folder / run.folder


def content(folder: Path) -> tuple[str, str]:
    """What two runs with the same bits have in common."""
    return file_hash(folder / "model.safetensors"), (folder / "history.csv").read_text()


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open() as handle:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(handle)]


def launch(project: Project, ranks: int, *words: str) -> None:
    """`python words` on several ranks in the project's folder; scripts can import the tests of this folder."""
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT / "src")])
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*start, *words],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def train_on_ranks(project: Project, method: str, ranks: int) -> list[dict[str, float]]:
    """The history of a training on several ranks."""
    launch(project, ranks, "-m", "udaseg", "train", "--benchmark", "streets", "--method", method)
    return history(project.folder / f"results/streets/{method}/seed0")
