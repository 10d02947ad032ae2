"""Class-balanced cropping: which part of a whole target image to train on (SePiCo; (S9) of docs/methods/sepico.md).

B images, n candidate crops of each, K classes, H W image size, h w crop size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udaseg.models import windows
from udaseg.params import Size


def best_corner(label: Tensor, corners: Tensor, crop: Size, classes: int, max_ratio: float) -> Tensor:
    """Upper left corner (B, 2) of the candidate with the highest score, the first of equals.

    Args:
        label: (B, H, W) pseudo-labels of the whole image.
        corners: (B, n, 2) top and left of the candidates.
        crop, classes, max_ratio: see `crop_scores`.
    """
    scores = crop_scores(class_counts(label, corners, crop, classes), max_ratio)
    chosen = scores.argmax(dim=1)[:, None, None].expand(-1, 1, 2)
    return corners.gather(1, chosen)[:, 0]


def crop_scores(counts: Tensor, max_ratio: float) -> Tensor:
    """Score (...) of boxes from their class counts (..., K), float64.

    The sum of log n_c over classes with more than one pixel; 0 for a box of a single class, or that one class fills to
    `max_ratio` or more. Ignored pixels are not counted.
    """
    n = counts.double()
    mixed = ((n > 0).sum(dim=-1) > 1) & (n.amax(dim=-1) < max_ratio * n.sum(dim=-1))
    return torch.where(mixed, n.clamp(min=1).log().sum(dim=-1), 0)


def class_counts(label: Tensor, corners: Tensor, crop: Size, classes: int) -> Tensor:
    """Pixels of each class in each candidate, (B, n, K). Single precision counts exactly up to 16 million pixels."""
    one_hot = (label[:, None] == torch.arange(classes, device=label.device)[:, None, None]).float()
    rows = _inside(corners[..., 0], crop.height, label.shape[1])
    columns = _inside(corners[..., 1], crop.width, label.shape[2])
    with torch.autocast(label.device.type, enabled=False):
        by_row = torch.einsum("bkyx,bnx->bnky", one_hot, columns)
    return (by_row * rows[:, :, None]).sum(dim=-1)


def _inside(start: Tensor, length: int, side: int) -> Tensor:
    """(B, n, side): 1 at the positions start .. start + length - 1, else 0."""
    position = torch.arange(side, device=start.device)
    return ((position >= start[..., None]) & (position < start[..., None] + length)).float()


def cut(images: Tensor, corner: Tensor, crop: Size) -> Tensor:
    """The crops (B, C, h, w) of (B, C, H, W) images at (B, 2) corners."""
    return windows.cut(images, corner, (crop.height, crop.width))
