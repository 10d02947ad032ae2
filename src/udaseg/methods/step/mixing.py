"""Pseudo-labels, their weights, and ClassMix (Olsson et al., WACV 2021; Tranheden et al., DACS, WACV 2021).

B images, K classes, H W pixels. (T4) to (T6), oracles o6 and o7 of docs/methods/self_training.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udaseg import ranks
from udaseg.classes import IGNORE


def pseudo_labels(probability: Tensor, threshold: float, *, per_image: bool) -> tuple[Tensor, Tensor]:
    """Hard labels (B, H, W) of probabilities (B, K, H, W), and the weight q (B,): the share of pixels with p >= threshold.

    `per_image`: one q for each image, as the papers define it; otherwise one for the global batch, as the released code has it.
    """
    confidence, label = probability.max(dim=1)
    return label, confident_share(confidence, threshold, per_image=per_image)


def confident_share(confidence: Tensor, threshold: float, *, per_image: bool) -> Tensor:
    """q (B,) from (B, H, W) confidences; the comparison is inclusive: (T5), oracle o6."""
    share = (confidence >= threshold).float().mean(dim=(1, 2))
    if per_image:
        return share
    return (ranks.total(share.mean()) / ranks.world()).expand(len(share))


def without_border(weight: Tensor, top: float, bottom: float, left: float = 0.0, right: float = 0.0) -> Tensor:
    """(B, H, W) weights with 0 on the first and last rows and columns, given as fractions of H and W."""
    height, width = weight.shape[1:]
    row, column = (torch.arange(side, device=weight.device) for side in (height, width))
    down = (row >= round(top * height)) & (row < height - round(bottom * height))
    across = (column >= round(left * width)) & (column < width - round(right * width))
    return weight * (down[:, None] & across)


def class_mask(label: Tensor, keys: Tensor, *, per_image: bool) -> Tensor:
    """Which pixels to paste (B, H, W): those of half of the classes, rounded up, chosen by the smallest `keys`.

    Args:
        label: (B, H, W), 255 = ignore, which counts as one class more (it is pasted and gives no loss).
        keys: (B, K + 1) random numbers, the last one for ignore.
        per_image: choose among the classes of that image (ClassMix); otherwise among those of the global batch (released
            code), so that an image may have few or none of its own classes pasted. Oracle o7.
    """
    classes = keys.shape[1] - 1
    index = torch.where(label == IGNORE, classes, label).long()
    present = torch.zeros_like(keys).scatter_(1, index.flatten(1), 1.0)
    if not per_image:
        present = ranks.total(present.sum(dim=0)).expand_as(present)
    order = torch.where(present > 0, keys, torch.inf).argsort(dim=1).argsort(dim=1)
    chosen = order < ((present > 0).sum(dim=1, keepdim=True) + 1) // 2
    return chosen.gather(1, index.flatten(1)).view_as(label)


def paste(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """source where mask (B, H, W), else target; for (B, 3, H, W) images, (B, H, W) labels and weights alike."""
    return torch.where(mask[:, None] if source.ndim == 4 else mask, source, target)
