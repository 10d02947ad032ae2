"""Scores from confusion matrices; pure functions. A class found neither in labels nor in predictions has no score (NaN).

IoU_c = TP / (TP + FP + FN) over all scored pixels of a set, mean over the classes that have one: the convention of the
Cityscapes script and of mmsegmentation. Pixels of other classes are false positives of what is predicted there.
shapes: matrices (K + 2, K) int64 as in confusion.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udaseg.classes import ClassSpace


def iou(matrix: Tensor) -> Tensor:
    """(K,) float64 in 0..1; NaN for a class absent from labels and predictions."""
    scored = matrix[:-1].double()
    hit = scored.diagonal()
    return hit / (scored.sum(0) + scored[:-1].sum(1) - hit)


def miou(matrix: Tensor, subset: Sequence[int] | None = None) -> float:
    """Mean IoU in 0..1 over the classes of `subset` (all by default) that have one; NaN if none has."""
    values = iou(matrix)
    return float((values if subset is None else values[list(subset)]).nanmean())


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of scored pixels with the right class, in 0..1; NaN without pixels."""
    scored = matrix[:-1].double()
    return float(scored.diagonal().sum() / scored.sum())


def by_image(matrices: Tensor) -> Tensor:
    """(B, 2) float64 in 0..1 of (B, K + 2, K): mean IoU over the classes in that image's truth, and pixel accuracy.

    NaN for an image without a scored pixel. A class that only the prediction holds counts through the classes it hides, so
    that one stray pixel does not move the mean by a whole class.
    """
    scored = matrices[:, :-1].double()
    hit, truth = scored.diagonal(dim1=1, dim2=2), scored[:, :-1].sum(2)
    values = (hit / (truth + scored.sum(1) - hit)).masked_fill(truth == 0, math.nan)
    return torch.stack([values.nanmean(1), hit.sum(1) / scored.sum((1, 2))], dim=1)


def report(matrix: Tensor, space: ClassSpace) -> dict[str, Any]:
    """Scores for metrics.json, in percent with 4 decimals: miou, the space's subsets (miou13, ...), iou by class, pixels.

    What has no value is left out, never 0; `absent` lists the classes without a score.
    """
    matrix = matrix.cpu()
    by_class = dict(zip(space.names, iou(matrix).tolist(), strict=True))
    flat = {
        "miou": miou(matrix),
        "pixel_accuracy": pixel_accuracy(matrix),
        **{key: miou(matrix, subset) for key, subset in space.subsets.items()},
    }
    return {
        **percent(flat),
        "iou": percent(by_class),
        "absent": [name for name, value in by_class.items() if math.isnan(value)],
        "pixels": int(matrix[:-1].sum()),
    }


def percent(values: dict[str, float]) -> dict[str, float]:
    """0..1 as percent with 4 decimals, NaN left out."""
    return {key: round(100 * value, 4) for key, value in values.items() if not math.isnan(value)}


def means(matrix: Tensor, space: ClassSpace) -> dict[str, float]:
    """Only the mean scores (miou, miou13, ...), in percent: for what stands beside the headline."""
    keys = {"miou", *space.subsets}
    return {key: value for key, value in report(matrix, space).items() if key in keys}
