"""Losses that every method shares. Equations (T1) .. and oracles o1 ..: docs/methods/self_training.md.

B images, K classes, H W label size, h w feature size, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.classes import IGNORE

SMALL = 64  # side up to which two products are faster than interpolation and its gradient (measured on a CPU, 11 to 960 channels)


def fp32(tensor: Tensor) -> Tensor:
    """At least single precision, for exponentials and norms of bf16 maps; float64 stays as it is.

    No island by itself: under autocast a product of two fp32 tensors is cast back; a loss that multiplies
    matrices switches autocast off.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def resized(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """(B, C, h, w) at `size` = (H, W): bilinear, half-pixel centres unless the corners are to stay corners. Of its size: itself.

    Small maps of a graph are multiplied from both sides by the (H, h) and (w, W) matrices of the two interpolations: the same
    values to rounding, and the gradient is two products as well, deterministic everywhere and several times faster on a CPU.
    """
    if tuple(maps.shape[-2:]) == size:
        return maps
    if not (maps.requires_grad and max(maps.shape[-2:]) <= SMALL):
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)
    wide = fp32(maps)
    with torch.autocast(maps.device.type, enabled=False):
        rows, columns = (
            interpolation(before, after, align_corners, wide)
            for before, after in zip(maps.shape[-2:], size, strict=True)
        )
        return (rows @ (wide @ columns.mT)).to(maps.dtype)


def interpolation(before: int, after: int, align_corners: bool, like: Tensor) -> Tensor:
    """(after, before) matrix that interpolates linearly along one side, of the type and on the device of `like`."""
    unit = torch.eye(before, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(unit, size=after, mode="linear", align_corners=align_corners)[0].mT.contiguous()


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None, pixels: Tensor | None = None) -> Tensor:
    """Cross-entropy of (B, K, H, W) logits and (B, H, W) labels, averaged over ALL pixels, ignored ones included: (T1).

    Ignored pixels (255) give 0 but stay in the denominator, as in the DAFormer family; `reduction="mean"` with
    `ignore_index` divides by the valid pixels only and is another loss (oracle o8). `weight` (B, H, W) multiplies each
    pixel; `pixels` is what to divide by instead (PLCA, BCL: the valid pixels per rank). All pixels ignored: a finite
    zero that keeps the graph.
    """
    log_p = fp32(logits).log_softmax(
        dim=1
    )  # before any flattening: with the classes last it takes up to ten times as long on a CPU
    if log_p.is_cuda:  # where the loss of maps is not deterministic
        log_p, label = log_p.permute(0, 2, 3, 1).reshape(-1, logits.shape[1]), label.reshape(-1)
    number = label.numel() if pixels is None else pixels.clamp(min=1 / 64)
    if weight is None:
        return F.nll_loss(log_p, label.long(), ignore_index=IGNORE, reduction="sum") / number
    per_pixel = F.nll_loss(log_p, label.long(), ignore_index=IGNORE, reduction="none")
    return (per_pixel * weight.reshape(label.shape)).sum() / number


def cell_labels(label: Tensor, size: tuple[int, int], classes: int, ratio: float) -> Tensor:
    """The class of each feature cell (T3): (B, H, W) labels to (B, h, w), `size` = (h, w).

    A cell takes its most frequent class, ignore counted as a class of its own; it becomes 255 when that share is below
    `ratio` or the class is ignore (share exactly `ratio` is kept). Oracle o9.
    """
    index = torch.where(label == IGNORE, classes, label).long()
    shares = F.adaptive_avg_pool2d(F.one_hot(index, classes + 1).permute(0, 3, 1, 2).float(), size)
    share, winner = shares.max(dim=1)
    # shares are sums of equal fractions: a share that is exactly `ratio` may come out one rounding step lower
    pure = (share >= ratio - 1e-6) & (winner != classes)
    return torch.where(pure, winner, IGNORE)


def nearest_labels(label: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) labels at `size` = (h, w): row k of the result is row floor(k H / h), no vote.

    In integers: a floating-point factor is off by one for some sizes. Oracles 5_10 of docs/methods/plca.md and p6 of
    pipa.md.
    """
    rows, columns = (
        torch.arange(after, device=label.device) * before // after
        for after, before in zip(size, label.shape[-2:], strict=True)
    )
    return label[:, rows[:, None], columns]


def feature_distance(student: Tensor, reference: Tensor, mask: Tensor, cells: Tensor | None = None) -> Tensor:
    """Mean distance of (B, C, h, w) features over the cells where `mask` (B, h, w) is true; no cell: zero with graph.

    DAFormer's feature distance (FD), (T2): the Euclidean norm over channels to the frozen ImageNet features; oracle
    o10. `cells` is what to divide by where it is not the number in `mask`: the mean per rank, so that ranks average to
    the mean over the global batch.
    """
    difference = fp32(student) - fp32(reference)
    # where(): the gradient of sqrt at 0 is infinite, and masked cells must not bring it in
    squared = difference.square().sum(dim=1)
    distance = torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)
    return (distance * mask).sum() / torch.clamp(mask.sum() if cells is None else cells, min=1 / 64)
