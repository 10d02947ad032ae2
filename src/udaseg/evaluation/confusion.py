"""Confusion matrix on the device: counts first, every score from the counts (scores.py).

shapes: K classes, B images, H W label size. A matrix is (K + 2, K) int64: row = label, column = prediction. Row K takes
pixels of other classes, which the network does not know: errors of whatever it predicts there. The last row takes the pixels that
are not scored, so that none has to be filtered out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def empty(classes: int, device: torch.device | str = "cpu") -> Tensor:
    """(K + 2, K) int64 zeros."""
    return torch.zeros(classes + 2, classes, dtype=torch.int64, device=device)


def update(matrix: Tensor, prediction: Tensor, label: Tensor) -> None:
    """Adds pixels to `matrix`, in place.

    Args:
        matrix: (K + 2, K) int64.
        prediction: (B, H, W), integers below K.
        label: (B, H, W), integers; K is any other class, all above (255 = ignore) are not scored.
    """
    matrix += by_image(prediction, label, matrix.shape[1]).sum(0)


def by_image(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """(B, K + 2, K) int64: one matrix for each image. See `update`."""
    images, cells = len(label), (classes + 2) * classes
    # 32 bits hold the largest index (255 * 254 for an image) and are counted several times faster than 64; counts are int64.
    index = label.clamp(max=classes + 1).int().mul_(classes).add_(prediction)
    index += torch.arange(0, images * cells, cells, dtype=torch.int32, device=index.device).view(-1, 1, 1)
    return torch.bincount(index.flatten(), minlength=images * cells).view(images, classes + 2, classes)


def most_likely(logits: Tensor) -> Tensor:
    """(B, H, W) class of the largest of (B, K, H, W); the first of equals."""
    return logits.max(dim=1).indices  # on a CPU a third of argmax's time


def without_others(matrix: Tensor) -> Tensor:
    """The matrix of an easier test, in which pixels of other classes are not scored."""
    easier = matrix.clone()
    easier[-1] += easier[-2]
    easier[-2] = 0
    return easier
