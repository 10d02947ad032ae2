"""Pixel and patch contrast of PiPa (Chen et al., ACM MM 2023).

Equations (P1) .., oracles p1 .., departures from paper and released code: docs/methods/pipa.md.

B images, h w grid of features, K classes, D embedding width, A anchor slots, V anchors per group (a group is one class in one
image), N cells of the first crop, M keys (negatives). Embeddings have unit length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.classes import IGNORE
from udaseg.losses.segmentation import fp32

ROWS = 1024  # queries whose similarities to all keys are held at once


def group_sizes(label: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Cells of each group, (B, K, 2): those predicted correctly ("easy") and wrongly ("hard"). Both maps are (B, h, w)."""
    member = label[..., None] == torch.arange(classes, device=label.device)
    hard = member & (label != predicted)[..., None]
    return torch.stack([(member & ~hard).sum(dim=(1, 2)), hard.sum(dim=(1, 2))], dim=-1)


def anchors_per_group(groups: Tensor, slots: int, most: int) -> Tensor:
    """V = min(slots // G, most) for a number G of groups over the global batch: (P1), oracle p5b."""
    return (slots // groups.clamp(min=1)).clamp(max=most)


def anchor_quotas(sizes: Tensor, per_group: Tensor) -> Tensor:
    """How many easy and hard cells (..., 2) of each group become anchors: halves, and the other kind where one falls short.

    For groups of at least V cells: (P2), oracle p5.
    """
    easy, hard = sizes.unbind(-1)
    keep_hard = torch.minimum(torch.maximum(per_group // 2, per_group - easy), hard)
    return torch.stack([per_group - keep_hard, keep_hard], dim=-1)


def choose_anchors(label: Tensor, predicted: Tensor, keys: Tensor, quota: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """A random choice of `quota` cells from each group, in a fixed number of slots, so that no shape depends on the data.

    Args:
        label, predicted: (B, h, w).
        keys: (B, h, w) random numbers in [0, 1); the smallest are chosen.
        quota: (B, K, 2), easy and hard; the sum must not exceed `slots`.
        slots: A.

    Returns:
        (A,) indices into the B*h*w cells, sorted by image, class and hardness, and (A,) whether the slot is filled.
    """
    bins, last = quota.numel(), quota.flatten().cumsum(0)
    image = torch.arange(len(label), device=label.device)[:, None, None]
    group = ((image * quota.shape[1] + label) * 2 + (predicted != label)).flatten()
    group = torch.where(label.flatten() == IGNORE, bins, group)
    order = (group + keys.flatten().double()).argsort(stable=True)  # by group, then by key; exact for fp32 keys
    start = torch.searchsorted(group[order], torch.arange(bins, device=label.device))
    slot = torch.arange(slots, device=label.device)
    valid = slot < last[-1]
    of = torch.searchsorted(last, slot, right=True).clamp(max=bins - 1)
    cell = start[of] + slot - (last - quota.flatten())[of]
    # An empty slot takes any cell: different ones, since gradients that meet in one cell are added one after another.
    return order[torch.where(valid, cell, slot % len(order))], valid


def pixel_contrast(
    embedding: Tensor, label: Tensor, valid: Tensor, temperature: float, base_temperature: float
) -> Tensor:
    """InfoNCE among anchors, whatever their image: same class attracts, other classes repel: (P3).

    The denominator of a pair holds that one positive and all negatives, not the other positives. Anchors without positive
    drop out of the mean; without any: a zero with graph.

    Args:
        embedding: (A, D), unit length. Gradients flow through both sides of a pair.
        label: (A,) class of each anchor.
        valid: (A,) whether the slot is filled.
        temperature, base_temperature: tau and tau_b; the loss is scaled by tau / tau_b.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        e = fp32(embedding)
        logits = e @ e.T / temperature
    same = label[:, None] == label
    negatives = logits.masked_fill(same | ~valid, -torch.inf).logsumexp(dim=1, keepdim=True)
    positive = same & valid & valid[:, None] & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
    per_pair = F.softplus(negatives - logits) * positive
    count = positive.sum(dim=1)
    per_anchor = per_pair.sum(dim=1) / count.clamp(min=1)
    return temperature / base_temperature * per_anchor.sum() / (count > 0).sum().clamp(min=1)


def matching_cells(overlap: Tensor, flipped: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """For every cell of the first view, as the network sees it, the cell of the second that shows the same place: (P6).

    Args:
        overlap: (B, 2, 4) shared cells in each view before its flip: top, left, height, width.
        flipped: (B, 2) whether the network sees the view mirrored.
        size: (h, w) of both views in cells.

    Returns:
        (B, h*w) cell index in the second view and whether there is one; where there is none the index is the cell's own
        (not one for all: gradients that meet in one cell are added one after another).
    """
    height, width = size
    row = torch.arange(height, device=overlap.device)[:, None].expand(size)
    column = torch.arange(width, device=overlap.device).expand(size)
    first, second = overlap[..., None, None].unbind(1)
    mirrored = flipped[..., None, None]
    down = row - first[:, 0]  # from the overlap's corner
    right = torch.where(mirrored[:, 0], width - 1 - column, column) - first[:, 1]
    inside = (down >= 0) & (down < first[:, 2]) & (right >= 0) & (right < first[:, 3])
    there = right + second[:, 1]
    there = torch.where(mirrored[:, 1], width - 1 - there, there)
    match = torch.where(inside, (down + second[:, 0]) * width + there, row * width + column)
    return match.flatten(1), inside.flatten(1)


def directions(first: Tensor, second: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """M1 and M2 (P7) from the confidences of both views: the less confident learns from a confident one. Oracle p10."""
    return (second > threshold) & (first < second), (first > threshold) & (second < first)


class _LogSumExp(torch.autograd.Function):
    """log sum_m exp(<q, k_m> / tau) over the keys whose tag differs, with gradient for the queries only.

    That gradient is the softmax-weighted mean of the keys, so it is formed in the forward pass while the similarities of
    `ROWS` queries are at hand: nothing of size N x M is kept.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, tag: Tensor, keys: Tensor, key_tag: Tensor, temperature: float) -> Tensor:
        total, mean = [], []
        for q, t in zip(query.split(ROWS, dim=1), tag.split(ROWS, dim=1), strict=True):
            logits = q @ keys.mT / temperature
            blocked = (t[..., None] == key_tag[:, None]) | (key_tag < 0)[:, None]
            logits = logits.masked_fill(blocked, -torch.inf)
            lse = logits.logsumexp(dim=2)
            total.append(lse)
            share = (logits - lse.clamp(min=torch.finfo(lse.dtype).min)[..., None]).exp()  # no key at all: 0, not NaN
            mean.append(share @ keys / temperature)
        ctx.save_for_backward(torch.cat(mean, dim=1))
        return torch.cat(total, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (mean,) = ctx.saved_tensors
        return gradients[0][..., None] * mean, None, None, None, None


def patch_contrast(
    query: Tensor,
    positive: Tensor,
    tag: Tensor,
    weight: Tensor,
    keys: Tensor,
    key_tag: Tensor,
    temperature: float,
    epsilon: float = 0.0,
) -> Tensor:
    """One direction of the patch loss: sum of weight * -log(p + epsilon), p the softmax of the positive among the negatives.

    (P8), oracle p8. A key is a negative unless its tag equals the query's or is below 0 (an empty place). Tags are
    predicted classes for the bank of all images, cell indices for the other view's map (whose own positive is then left
    out).

    Args:
        query: (B, N, D); the only side with gradient.
        positive: (B, N, D), behind a stop-gradient as the keys are.
        tag: (B, N).
        weight: (B, N), e.g. mask / number in the mask over the global batch. All 0: a zero with graph.
        keys: (1 or B, M, D).
        key_tag: (1 or B, M).
        temperature: tau.
        epsilon: the released code has 1e-8, at which the loss saturates; 0 is exact.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, p, k = fp32(query), fp32(positive.detach()), fp32(keys.detach())
        negatives: Tensor = _LogSumExp.apply(q, tag, k, key_tag, temperature)
        loss = F.softplus(negatives - (q * p).sum(dim=2) / temperature)
        if epsilon:
            loss = -(torch.exp(-loss) + epsilon).log()
        return (loss * weight).sum()


def pushed(bank: Tensor, new: Tensor) -> Tensor:
    """The memory bank (steps, n, ...) with the newest step (n, ...) at its end; the oldest falls out. Oracle p11."""
    return torch.cat([bank[1:], new[None]])
