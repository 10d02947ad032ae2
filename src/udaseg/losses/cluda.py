"""Supervised pixel contrast of CLUDA (Vayyat et al., arXiv 2208.14227), with one or two resolutions. Equations
(C1) .., oracles c1 .., departures D1 ..: docs/methods/cluda.md.

B images, D channels, h w map size, H W image size, g_h g_w cells of the sampling grid, N = B * g_h * g_w rows, R anchor rows.

Row i has a feature f_i (made a unit vector here), a label y_i (255 = takes no part) and a weight w_i:
    P(i) = {j != i : y_j = y_i},  N(i) = {n : y_n != y_i},  s_ij = <f_i, f_j> / temperature
    l_ij = -log(e^s_ij / (e^s_ij + sum over N(i) of e^s_in)) = softplus(logsumexp over N(i) of s_in - s_ij)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.classes import IGNORE
from udaseg.losses.segmentation import fp32

CHUNK = 512  # anchors whose similarities to all rows are in memory at a time


def pixel_contrast(
    features: Tensor, label: Tensor, weight: Tensor, *, anchors: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Mean over anchors i of (1 / |P(i)|) sum over j in P(i) of w_i w_j l_ij: (C2).

    An anchor without positives gives 0 but stays in the mean; rows of label 255 do not. Gradient reaches both members of a pair
    and all negatives.

    Args:
        features: (N, D) of the global batch.
        label, weight: (N,).
        anchors: (R,) which rows are anchors; all others are positives and negatives only. Losses over the parts of any partition
            of the rows into equal parts (ranks, or a draw of R rows without replacement) average to the loss over all rows.
    """
    own = torch.arange(len(label), device=label.device) if anchors is None else anchors
    unit, weight = unit_rows(features), fp32(weight)
    share = weight[own] / pairs_in_mean(label, label, own) * (len(label) / len(own))
    return pair_loss(unit[own], unit, share[:, None], weight[:, None], label[own], label, own, temperature)


def multi_resolution_contrast(
    context: Tensor,
    detail: Tensor,
    label: Tensor,
    weight: Tensor,
    blend: Tensor,
    inside: Tensor,
    *,
    gate: Literal["row", "both"] = "row",
    anchors: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Pairs within the context features and from context to detail, blended by a learned weight: (C4).

    Half the mean over anchors i of (1 / |P(i)|) sum over j in P(i) of w_i w_j [W_ij l_ij + (1 - W_ij) l'_ij], where l' is l
    between context row i and detail rows, and W_ij = a_i a_j m_i. Outside the crop a detail row is the zero vector: a neutral
    partner. `gate: both` asks for m_j = 1 as well: W_ij = a_i a_j m_i m_j, detail rows outside the crop are no partners, and
    P(i) are the rows of the class that lie in the crop.

    Args:
        context, detail: (N, D) features of the global batch; detail rows outside the crop are 0.
        label, weight, anchors: as in `pixel_contrast`.
        blend: (N,) the learned weight a in 0..1; this loss is the only one that trains it.
        inside: (N,) bool, the crop mask m.
    """
    own = torch.arange(len(label), device=label.device) if anchors is None else anchors
    low, high, weight = unit_rows(context), unit_rows(detail), fp32(weight)
    partner = label if gate == "row" else torch.where(inside, label, IGNORE)
    share = weight[own] / pairs_in_mean(label, partner, own) * (len(label) / len(own)) / 2
    row = fp32(blend) * inside
    column = fp32(blend) if gate == "row" else row
    within = pair_loss(
        low[own],
        low,
        (share * row[own])[:, None],
        (weight * column)[:, None],
        label[own],
        label,
        own,
        temperature,
    )
    across = pair_loss(
        low[own],
        high,
        torch.stack([share, -share * row[own]], dim=1),
        torch.stack([weight, weight * column], dim=1),
        label[own],
        partner,
        own,
        temperature,
    )
    return within + across


def pairs_in_mean(label: Tensor, partner: Tensor, own: Tensor) -> Tensor:
    """(R,) |P(i)| times the number of valid rows; `partner` (N,) are the labels among which P(i) is counted.

    With R of N rows as anchors R/N of this is expected in their mean; dividing by the expected number, not by the drawn one, is
    what makes the mean over draws and ranks exact.
    """
    found, wanted = partner.sort().values, label[own]
    same = torch.searchsorted(found, wanted, right=True) - torch.searchsorted(found, wanted)
    positives = (same - (partner[own] == wanted).long()).clamp(min=1)
    return positives * (label != IGNORE).sum().clamp(min=1)


def unit_rows(features: Tensor) -> Tensor:
    """(N, D) rows of length 1 in fp32 at least; a zero row stays zero, with a finite gradient."""
    wide = fp32(features)
    squared = wide.square().sum(dim=1, keepdim=True)
    return wide * torch.where(squared > 0, squared, 1.0).rsqrt()


def pair_loss(
    anchors: Tensor,
    keys: Tensor,
    left: Tensor,
    right: Tensor,
    anchor_label: Tensor,
    key_label: Tensor,
    own: Tensor,
    temperature: float,
) -> Tensor:
    """Sum over anchors i and keys j in P(i) of u_ij l_ij, (C1), with pair weights u_ij = <left_i, right_j>.

    The factors make every M x M weight matrix of the paper a product of columns. Value and gradient are found in one sweep over
    blocks of anchors, so that memory is O(CHUNK * N) and no similarity is computed twice; there is no second derivative.

    Args:
        anchors, keys: (R, D) and (N, D).
        left, right: (R, c) and (N, c), factors of the pair weights.
        anchor_label, key_label: (R,) and (N,); keys of label 255 are neither positives nor negatives.
        own: (R,) the position of each anchor among the keys; a row is not its own positive.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        loss: Tensor = _PairLoss.apply(anchors, keys, left, right, anchor_label, key_label, own, temperature)
    return loss


class _PairLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        keys: Tensor,
        left: Tensor,
        right: Tensor,
        anchor_label: Tensor,
        key_label: Tensor,
        own: Tensor,
        temperature: float,
    ) -> Tensor:
        anchors, left, right = anchors.to(keys.dtype), left.to(keys.dtype), right.to(keys.dtype)
        loss = keys.new_zeros(())
        to_anchors, to_left, to_keys, to_right = [], [], torch.zeros_like(keys), torch.zeros_like(right)
        position, ignored = torch.arange(len(keys), device=keys.device), key_label == IGNORE
        nothing = torch.finfo(keys.dtype).min  # not -inf: an anchor without negatives must not give inf - inf
        for f, u, y, i in zip(*(x.split(CHUNK) for x in (anchors, left, anchor_label, own)), strict=True):
            similarity = (f / temperature) @ keys.T
            same = y[:, None] == key_label
            apart = ~same | ignored | (i[:, None] == position)  # no positive pair
            negative = similarity.masked_fill(same | ignored, nothing)
            negatives = negative.logsumexp(dim=1, keepdim=True)
            gap = negatives - similarity
            pair = F.softplus(gap).masked_fill_(apart, 0)
            to_left.append(pair @ right)
            to_right += pair.T @ u
            loss = loss + (u * to_left[-1]).sum()
            # dl/ds_ij = -sigmoid(gap_ij), and every negative takes its softmax share of what the row's pairs pull
            pull = gap.sigmoid_().mul_(u @ right.T).masked_fill_(apart, 0)
            push = (negative - negatives).exp_().mul_(pull.sum(dim=1, keepdim=True))
            slope = push.sub_(pull)
            to_anchors.append(slope @ keys / temperature)
            to_keys += slope.T @ (f / temperature)
        ctx.save_for_backward(torch.cat(to_anchors), to_keys, torch.cat(to_left), to_right)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradients[0] * saved for saved in ctx.saved_tensors), None, None, None, None


# --- the sampling grid -----------------------------------------------------------------------------------------------------------


def feature_points(cells: int, length: int, device: torch.device, *, corners: bool = False) -> Tensor:
    """(cells,) where a side of `length` pixels is sampled, in units of pixels from the first pixel's centre, float64.

    Cell centres; `corners`: from the first to the last pixel, as the released code (align_corners).
    """
    index = torch.arange(cells, dtype=torch.float64, device=device)
    return index * ((length - 1) / max(cells - 1, 1)) if corners else (index + 0.5) * (length / cells) - 0.5


def label_points(cells: int, length: int, device: torch.device, *, corners: bool = False) -> Tensor:
    """(cells,) index of the pixel that gives a cell its label; the pixel at the feature's point.

    `corners`: that at the first corner of the cell, as the released code, up to 13 pixels off its feature. Oracle c12.
    """
    index = torch.arange(cells, device=device)
    return index * length // cells if corners else (2 * index + 1) * length // (2 * cells)


def labels_on_grid(label: Tensor, cells: tuple[int, int], *, corners: bool = False) -> Tensor:
    """(B, H, W) labels at the grid points: (B, g_h, g_w)."""
    rows, columns = (
        label_points(n, side, label.device, corners=corners) for n, side in zip(cells, label.shape[-2:], strict=True)
    )
    return label[:, rows[:, None], columns]


def on_grid(maps: Tensor, cells: tuple[int, int], *, corners: bool = False) -> Tensor:
    """(B, D, h, w) maps at the grid points, bilinear: (B, D, g_h, g_w).

    Two small matrix products: on CUDA the backward of interpolation adds with atomics, theirs is deterministic.
    """
    across, down = (
        hat(feature_points(n, side, maps.device, corners=corners), side)
        for n, side in zip(cells, maps.shape[-2:], strict=True)
    )
    return _apply(across, maps, down)


def detail_on_grid(
    maps: Tensor, boxes: Tensor, size: tuple[int, int], cells: tuple[int, int], *, corners: bool = False
) -> tuple[Tensor, Tensor]:
    """Detail features at the grid points of the whole image, zero outside the crop, and which points lie inside.

    Args:
        maps: (B, D, h, w) features of one crop of each image, at any stride.
        boxes: (B, 4) top, left, bottom, right of the crops in pixels of the image.
        size: (H, W) of the image.

    Returns:
        (B, D, g_h, g_w) features and (B, g_h, g_w) crop mask.
    """
    taps, masks = [], []
    for n, side, length, first, end in zip(cells, size, maps.shape[-2:], boxes.T[:2], boxes.T[2:], strict=True):
        point = feature_points(n, side, maps.device, corners=corners) + 0.5 - first[:, None]
        extent = (end - first)[:, None]
        within = (point >= 0) & (point < extent)
        taps.append(hat(point * length / extent - 0.5, length) * within[..., None])
        pixel = label_points(n, side, maps.device, corners=corners)
        masks.append((pixel >= first[:, None]) & (pixel < end[:, None]))
    return _apply(taps[0][:, None], maps, taps[1][:, None]), masks[0][:, :, None] & masks[1][:, None, :]


def hat(points: Tensor, length: int) -> Tensor:
    """(..., n, length) linear interpolation weights of n points on a side of `length` pixels; beyond its ends the end pixel."""
    distance = points.clamp(0, length - 1)[..., None] - torch.arange(length, device=points.device)
    return (1 - distance.abs()).clamp(min=0)


def _apply(down: Tensor, maps: Tensor, across: Tensor) -> Tensor:
    wide = fp32(maps)
    with torch.autocast(maps.device.type, enabled=False):
        return down.to(wide.dtype) @ wide @ across.to(wide.dtype).mT


def rows(maps: Tensor, *, position_major: bool = False) -> Tensor:
    """(B, D, g_h, g_w) to (N, D), image after image, as labels flatten.

    `position_major`: all images' first position, then their second one; the released order of features, in which for B > 1
    hardly a feature meets its own label (defect D1).
    """
    return maps.permute(2, 3, 0, 1).flatten(0, 2) if position_major else maps.permute(0, 2, 3, 1).flatten(0, 2)


# --- the detail crop -------------------------------------------------------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    """(B, h, w) entropy of (B, K, h, w) logits as a fraction of the largest possible one, ln K: (C7), oracle c10."""
    log_p = fp32(logits).log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1) / math.log(logits.shape[1])


def uncertain_boxes(uncertainty: Tensor, size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """The window of each image with the largest mean of `uncertainty`: (B, 4) top, left, bottom, right in pixels.

    (C8), oracle c11.

    Args:
        uncertainty: (B, h, w) over the whole image, at any stride.
        size: (H, W) of the image.
        window: (height, width) in pixels; windows overlap by half, the last ones end at the border. Of equal ones the first.
    """
    starts, cover = [], []
    window = (min(window[0], size[0]), min(window[1], size[1]))
    for side, wide, length in zip(size, window, uncertainty.shape[-2:], strict=True):
        half = max(wide // 2, 1)
        start = torch.arange(math.ceil((side - wide) / half) + 1, device=uncertainty.device) * half
        start = start.clamp(max=side - wide)
        edge = torch.arange(length + 1, device=uncertainty.device, dtype=torch.float64) * (side / length)
        share = torch.minimum((start + wide)[:, None], edge[1:]) - torch.maximum(start[:, None], edge[:-1])
        starts.append(start)
        cover.append(share.clamp(min=0) / wide)
    best = _apply(cover[0], uncertainty, cover[1]).flatten(1).argmax(dim=1)
    top, left = starts[0][best // len(starts[1])], starts[1][best % len(starts[1])]
    return torch.stack([top, left, top + window[0], left + window[1]], dim=1)
