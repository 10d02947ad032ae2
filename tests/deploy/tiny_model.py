"""Model files with random weights, written as a finished training writes them; and a damaged EXIF block."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from tiny_project import RAW
from udaseg import params
from udaseg.methods import create
from udaseg.models import build_model, trained

# big-endian TIFF of two entries: a quarter turn, and a horizontal resolution that is a text
DAMAGED_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x1a\0\x02\0\0\0\x04abc\0\0\0\0\0"


def write_model(
    folder: Path, *, method: str = "source_only", classes: str | list[str] = "cityscapes19", **model: Any
) -> Path:
    """The path of `<folder>/model.safetensors`; `model` changes the test parameters' block."""
    raw = copy.deepcopy(RAW)
    raw["benchmarks"]["streets"] |= {"classes": classes, "init": {"default": "none"}}
    raw["benchmarks"]["streets"]["model"] |= model
    run = params.parse(raw).resolve("streets", method, 0)
    torch.manual_seed(0)
    student = build_model(run.benchmark.model, len(run.classes))
    for weight in student.head.parameters():
        torch.nn.init.normal_(weight)  # else one class wins everywhere
    trained.save(folder / "model.safetensors", run, create(run, student).scored())
    return folder / "model.safetensors"
