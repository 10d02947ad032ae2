"""Pixel-prototype contrast in both directions, dynamic labels, calibration: Lee et al., BCL, ECCV 2022.

Equations (B1) .. and oracles o1 .. are those of docs/methods/bcl.md. All labels use 255 for "no class".
shapes: B images or (source, target) pairs, P prototype sets (B: one per pair; 1: one for the whole batch), K classes,
D feature channels, h w feature map, H W labels
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from udaseg.classes import IGNORE
from udaseg.losses.segmentation import fp32


class Prototypes(NamedTuple):
    """Mean feature of each class: `vectors` (P, K, D), zero for a class that is absent, and `present` (P, K)."""

    vectors: Tensor
    present: Tensor


def class_sums(features: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums (B, K, D) of features (B, D, h, w) over the cells of each class, and the number of cells (B, K).

    `label` is (B, h, w). The gradient reaches the features; they are not normalised (B1).
    """
    flat = fp32(features).flatten(2)
    cells = label.flatten(1)[:, None] == torch.arange(classes, device=label.device)[:, None]
    with torch.autocast(features.device.type, enabled=False):
        return cells.to(flat.dtype) @ flat.transpose(1, 2), cells.sum(dim=2)


def prototypes(sums: Tensor, counts: Tensor) -> Prototypes:
    """The prototypes (B1): masked average pooling of what `class_sums` gives; oracle o1."""
    return Prototypes(sums / counts.clamp(min=1)[..., None], counts > 0)


def label_counts(label: Tensor, size: tuple[int, int], classes: int) -> Tensor:
    """How many pixels of each class fall on each feature cell: (B, H, W) to (B, K, h, w), `size` = (h, w).

    Pixel row r belongs to cell row floor(r * h / H), as when the feature map is upsampled to label size by nearest neighbour.
    """
    batch, height, width = label.shape
    cell = _source(height, size[0], label)[:, None] * size[1] + _source(width, size[1], label)
    row = torch.arange(batch, device=label.device)[:, None, None] * (classes + 1)
    index = (row + torch.where(label == IGNORE, classes, label)) * (size[0] * size[1]) + cell
    counts = bincount(index, batch * (classes + 1) * size[0] * size[1])
    return counts.view(batch, classes + 1, *size)[:, :classes]


def cosine(features: Tensor, vectors: Tensor) -> Tensor:
    """Cosine (B, K, h, w) of features (B, D, h, w) with the vectors (P, K, D) of each class; 0 where one of them is 0."""
    flat = fp32(features).flatten(2)
    with torch.autocast(features.device.type, enabled=False):
        similarity = (vectors / _length(vectors, 2)) @ flat / _length(flat, 1)
    return similarity.unflatten(2, features.shape[2:])


def contrast(
    similarity: Tensor,
    present: Tensor,
    counts: Tensor,
    temperature: float,
    *,
    absent: str = "mask",
    anchors: Tensor | None = None,
) -> Tensor:
    """Contrast of the pixels of one domain with the prototypes of the other: (B2) or (B3); oracles o2 to o6.

    Args:
        similarity: (B, K, h, w) from `cosine`.
        present: (P, K), the classes with a prototype.
        counts: (B, K, h, w) anchors of each class on each cell, from `label_counts`; 0 for classes not in both domains.
        temperature: tau.
        absent: `mask` leaves absent classes out of the denominator; `minus_one` is the released code, which sets every
            similarity of exactly 0, and with that every absent class, to -1.
        anchors: as in `cell_cross_entropy`.
    """
    if absent == "mask":
        scores = similarity / temperature
        scores = scores.masked_fill(
            ~present[..., None, None], torch.finfo(scores.dtype).min
        )  # -inf: NaN if all are absent
    else:
        scores = torch.where(similarity == 0, -1.0, similarity) / temperature
    return cell_cross_entropy(scores, counts, anchors)


def cell_cross_entropy(scores: Tensor, counts: Tensor, anchors: Tensor | None = None) -> Tensor:
    """Mean over images of: cross-entropy of nearest-upsampled scores, mean over the label pixels, without upsampling.

    (B10), oracle o16: all label pixels of a cell share its scores, so that their number in `counts` (B, K, h, w) is all
    that matters. `anchors` is what to divide the sum of each image by: its own number of pixels unless given. An image
    without any gives 0.
    """
    each = -(counts * scores.log_softmax(dim=1)).sum(dim=(1, 2, 3))
    anchors = counts.sum(dim=(1, 2, 3)) if anchors is None else anchors
    return (each / torch.where(anchors > 0, anchors, 1)).mean()


@torch.no_grad()
def dynamic_labels(similarity: Tensor, present: Tensor, temperature: float, threshold: float) -> Tensor:
    """Label (B, h, w) of the most similar prototype; 255 below the confidence `threshold`: (B4); oracles o7, o8."""
    scores = (similarity / temperature).masked_fill(~present[..., None, None], -torch.inf)
    confidence, label = scores.softmax(dim=1).max(dim=1)  # NaN, which is below any threshold, if all are absent
    return torch.where(confidence >= threshold, label, IGNORE)


def fuse(static: Tensor, dynamic: Tensor) -> Tensor:
    """Hybrid labels: the static one, holes filled by the dynamic one (B5)."""
    return torch.where(static != IGNORE, static, dynamic)


@torch.no_grad()
def class_bias(source: Prototypes, target: Prototypes) -> tuple[Tensor, Tensor]:
    """Target minus source prototype (B6): sum over the sets with the class in both (K, D), and their number (K,)."""
    shared = source.present & target.present
    return ((target.vectors - source.vectors) * shared[..., None]).sum(dim=0), shared.sum(dim=0)


def calibrate(bias: Tensor, sums: Tensor, sets: Tensor, momentum: float) -> Tensor:
    """The moving average xi (K, D) after an update from `class_bias`; other classes keep theirs: (B6), oracle o9."""
    moved = momentum * bias + (1 - momentum) * sums / sets.clamp(min=1)[:, None]
    return torch.where(sets[:, None] > 0, moved, bias)


def entropy(logits: Tensor, *, twice: bool = False) -> Tensor:
    """Entropy in nats of the softmax of (B, K, H, W) logits, mean over all pixels: (B7), oracle o12.

    `twice`, as released: the softmax is taken of the probabilities p once more, which gives logsumexp(p) - sum p^2 for each pixel.
    It too is least at certainty, but its gradient is smaller: by 1.7 for logits with a spread of 6, by 4 for a spread of 1.
    """
    log_p = fp32(logits).log_softmax(dim=1)
    p = log_p.exp()
    if twice:
        return (p.logsumexp(dim=1) - p.square().sum(dim=1)).mean()
    return -(p * log_p).sum(dim=1).mean()


def bincount(index: Tensor, length: int) -> Tensor:
    """How often each of 0 .. length - 1 occurs, (length,) int32; unlike torch.bincount without a wait for the device.

    Integers in one dimension are added deterministically on CUDA too.
    """
    index = index.reshape(-1)
    counts = torch.zeros(length, dtype=torch.int32, device=index.device)
    return counts.scatter_add_(0, index, torch.ones_like(index, dtype=torch.int32))


def _source(size: int, of: int, like: Tensor) -> Tensor:
    """Index into `of` rows for each of `size` rows, in integers: a float factor is off by one for some sizes."""
    return torch.arange(size, device=like.device) * of // size


def _length(vectors: Tensor, dim: int) -> Tensor:
    """Euclidean norm, 1 for a zero vector: its cosine is then 0 and its gradient small."""
    norm = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return torch.where(norm > 0, norm, 1)
