"""Scores of the networks while they train: for the eye alone. Nothing is chosen by them, and no number of the training moves."""

from __future__ import annotations

import typing

import torch

from udaseg import ranks
from udaseg.data.prepared import find_prepared
from udaseg.evaluation import scores
from udaseg.evaluation.evaluate import score_images
from udaseg.evaluation.loading import samples_of
from udaseg.methods.base import Method
from udaseg.models import Segmenter
from udaseg.params import Run, uses

NAMES = {"": "student", "teacher.": "teacher"}


def validate(run: Run, method: Method, device: torch.device) -> dict[str, float]:
    """mIoU in percent of each network of a method on the first evaluation set: `validation/student`, `validation/teacher`.

    All ranks call it together. The method is in training mode again when it returns.
    """
    use = next(use for use in uses(run.benchmark) if use.role == "evaluate")
    prepared = find_prepared(run.benchmark_name, use)
    mine = samples_of(prepared, use)[ranks.rank() :: ranks.world()]
    found = {}
    for prefix, network in method.scored().items():
        student = typing.cast(Segmenter, network).eval()
        matrix = ranks.total(score_images(run, student, prepared, mine, device)[""]).cpu()
        found[f"validation/{NAMES.get(prefix, prefix)}"] = scores.means(matrix, run.classes)["miou"]
    method.train()
    return found
