"""Scores of the networks while they train: for the eye alone. Nothing is chosen by them, and no number of the training moves."""

from __future__ import annotations

import typing

import torch

from udaseg import ranks
from udaseg.classes import IGNORE
from udaseg.data.prepared import find_prepared
from udaseg.evaluation import scores
from udaseg.evaluation.evaluate import score_images
from udaseg.evaluation.loading import batches, samples_of
from udaseg.methods.base import Method
from udaseg.models import Segmenter
from udaseg.params import Run, uses
from udaseg.recipes.self_training import SelfTraining

NAMES = {"": "student", "teacher.": "teacher"}
LABELLED = 64  # target images on which the teacher's labels are compared with the truth


def validate(run: Run, method: Method, device: torch.device) -> dict[str, float]:
    """What is asked of the networks of a method every `train.validate_every` steps, in percent.

    All ranks call it together. The method is in training mode again when it returns.

    Returns:
        `validation/student`, `validation/teacher`: mIoU on the first evaluation set. With a teacher, and where the target's training
        images have labels, also of these `labels/right`: how many of its labels are; `labels/sure`: how many reach the recipe's
        threshold; `labels/sure_right`: how many of those are right.
    """
    use = next(use for use in uses(run.benchmark) if use.role == "evaluate")
    prepared = find_prepared(run.benchmark_name, use)
    mine = samples_of(prepared, use)[ranks.rank() :: ranks.world()]
    found = {}
    for prefix, network in method.scored().items():
        student = typing.cast(Segmenter, network).eval()
        matrix = ranks.total(score_images(run, student, prepared, mine, device)[""]).cpu()
        found[f"validation/{NAMES.get(prefix, prefix)}"] = scores.means(matrix, run.classes)["miou"]
        if prefix == "teacher." and isinstance(run.method, SelfTraining):
            found |= right_labels(run, student, run.method.threshold, device)
    method.train()
    return found


@torch.inference_mode()
def right_labels(run: Run, teacher: Segmenter, threshold: float, device: torch.device) -> dict[str, float]:
    """The three `labels/` of `validate`, over the pixels that have a class; nothing where the target's images have none."""
    use = next(use for use in uses(run.benchmark) if use.role == "target")
    prepared = find_prepared(run.benchmark_name, use)
    known = [sample for sample in prepared.samples(use.split) if sample.label is not None]
    mine = known[:: max(1, len(known) // LABELLED)][ranks.rank() :: ranks.world()]
    count = torch.zeros(4, dtype=torch.int64, device=device)  # pixels, right, sure, both
    for images, label in batches(prepared, mine, run.classes):
        images, label = teacher.normalise(images.to(device)), label.to(device)
        confidence, found = teacher.predict(images, (label.shape[-2], label.shape[-1])).softmax(dim=1).max(dim=1)
        valid, right, sure = label != IGNORE, found == label, confidence >= threshold
        count += torch.stack([(valid & m).sum() for m in (valid, right, sure, sure & right)])
    pixels, right, sure, both = ranks.total(count).tolist()
    if not pixels:
        return {}
    shares = {"right": right / pixels, "sure": sure / pixels, "sure_right": both / max(sure, 1)}
    return {f"labels/{name}": 100 * share for name, share in shares.items()}
