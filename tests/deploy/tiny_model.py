"""Model files with random weights, written as a finished training writes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from tiny_project import RAW
from udaseg import params
from udaseg.engine.results import write_results
from udaseg.methods import create
from udaseg.models import build_model


def write_model(
    folder: Path, *, method: str = "source_only", classes: str | list[str] = "cityscapes19", **model: Any
) -> Path:
    """The path of `<folder>/model.safetensors`; `model` changes the test parameters' block."""
    raw = copy.deepcopy(RAW)
    raw["benchmarks"]["streets"] |= {"classes": classes, "init": {"default": "none"}}
    raw["benchmarks"]["streets"]["model"] |= model
    run = params.check(raw).resolve("streets", method, 0)
    torch.manual_seed(0)
    student = build_model(run.benchmark.model, len(run.classes))
    for weight in student.head.parameters():
        torch.nn.init.normal_(weight)  # else one class wins everywhere
    write_results(
        run,
        create(run, student),
        folder,
        fingerprint={"params": run.hash, "code": "code", "data": "data", "start": "none"},
        history=[{"step": 1, "learning_rate": 0.1}],
        seconds=1.0,
        device=torch.device("cpu"),
    )
    return folder / "model.safetensors"
