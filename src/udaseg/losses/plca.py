"""Losses of Pixel-Level Cycle Association: Kang, Wei, Yang, Zhuang, Hauptmann, NeurIPS 2020 (arXiv 2011.00147).

A source pixel i goes to its most similar target pixel j*(i), and from there to the most similar source pixel i*(j*(i)). Where
both ends have the same class the two steps are made more likely. Equations (L1) ..: docs/methods/plca.md.

shapes: B pairs of images, N source and M target positions of the stride-8 grid, D features, C classes
Similarities of all N x M pairs are never held at once: rows come in tiles, and are computed again for the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.classes import IGNORE
from udaseg.losses.association import attention, match
from udaseg.losses.segmentation import fp32

LOG_EPS = 1e-10  # released code, in both arguments of the divergence


class Cycles(NamedTuple):
    """What association found in a batch.

    Attributes:
        total: () sum of -log p(i -> j*) - log q(j* -> i*) over the kept cycles, with graph; 0 where none is kept.
        kept: (B, N) start and end have the same class, and the start is not ignored.
        there: (B, N) j*(i), index of a target position.
        back: (B, N) i*(j*(i)), index of a source position.
    """

    total: Tensor
    kept: Tensor
    there: Tensor
    back: Tensor


def feature_cycles(
    source: Tensor, target: Tensor, label: Tensor, *, floor: float, tile: int, exclude_self: bool = False
) -> Cycles:
    """Association of features (B, N, D) and (B, M, D) by cosine (L1); `label` (B, N)."""
    return _cycles([_unit(source)], [_unit(target)], label, floor, tile, exclude_self)


def probability_cycles(
    source: Tensor, target: Tensor, label: Tensor, *, floor: float, tile: int, exclude_self: bool = False
) -> Cycles:
    """Association of class probabilities (B, N, C) and (B, M, C) by -KL(start || end) (L2); `label` (B, N).

    Of the divergence only the cross term sum_c P_c log P'_c is computed: the entropy of a row is the same for all its columns.
    """
    source, target = fp32(source), fp32(target)
    return _cycles([source, _log(source)], [_log(target), target], label, floor, tile, exclude_self)


def aggregated_features(features: Tensor, *, alpha: float, floor: float, tile: int) -> Tensor:
    """Each of (B, M, D) features mixed with a mean over the whole image, weighted by standardised cosine similarity.

    (L4): x~_j = (1 - alpha) x_j + alpha sum_k w_jk x_k; the features summed are not normalised. Gradient diffusion
    (paper); it runs through values and weights. `alpha` 0 changes nothing.
    """
    if alpha == 0:
        return features
    unit = _unit(features)
    mixed = torch.lerp(fp32(features), attention(unit, unit, features, floor, tile), alpha)
    return mixed.to(features.dtype)


def aggregated_probabilities(probabilities: Tensor, *, alpha: float, tile: int) -> Tensor:
    """The same for (B, M, C) class probabilities, by softmax of -KL, not standardised (L5); rows still sum to 1."""
    if alpha == 0:
        return probabilities
    probabilities = fp32(probabilities)
    return torch.lerp(probabilities, attention(probabilities, _log(probabilities), probabilities, None, tile), alpha)


def adaptive_smoothing(logits: Tensor, limit: float) -> Tensor:
    """Adaptive label smoothing of (B, C, h, w) logits: mean over positions of sg[l / limit - 1] l, l = -mean_c log p_c.

    (L8); sg: stop-gradient. Sharpens a prediction while l < limit and smooths it beyond; negative values are normal.
    """
    smoothness = -fp32(logits).log_softmax(dim=1).mean(dim=1)
    return ((smoothness.detach() / limit - 1) * smoothness).mean()


def lovasz_softmax(probabilities: Tensor, label: Tensor) -> Tensor:
    """Lovász-Softmax (L9; Berman et al., CVPR 2018) of (B, C, H, W) probabilities and (B, H, W) labels.

    One Jaccard index per class over all pixels of the batch that are not ignored; mean over the classes that occur.
    """
    p = fp32(probabilities).transpose(0, 1).flatten(1)  # (C, P)
    y = label.flatten()
    with torch.no_grad():
        slope = torch.empty_like(p)
        constant, present = p.new_zeros(()), torch.zeros_like(y[0], dtype=torch.int64)
        # class by class: what one of them needs for a moment takes several times its row
        for k, row in enumerate(p):
            foreground = y == k
            weight = _jaccard_weights(torch.where(y != IGNORE, (foreground.to(p.dtype) - row).abs(), -1.0), foreground)
            slope[k] = torch.where(foreground, -weight, weight)
            constant += (weight * foreground).sum()
            present += foreground.any()
    # an error is 1 - p of the class's own pixels and p of the others: the sum of weight x error
    return ((p * slope).sum() + constant) / present.clamp(min=1)


def _jaccard_weights(errors: Tensor, foreground: Tensor) -> Tensor:
    """(P,) by how much each error raises the Jaccard index, largest error first (of equals the first); 0 without foreground.

    Args:
        errors: (P,) 0 .. 1; -1 of ignored pixels, which come last, where the index rises no more.
        foreground: (P,) pixels of the class.
    """
    order = _descending(errors)
    hit = foreground[order]
    # integer sums: the floating-point cumulative sum has no deterministic version on CUDA
    size = foreground.sum(dtype=torch.int32)
    found = hit.cumsum(0, dtype=torch.int32)
    seen = torch.arange(1, len(errors) + 1, device=errors.device, dtype=torch.int32)
    missed, union = (size - found).to(errors.dtype), (size + seen - found).to(errors.dtype)
    # J_k - J_(k-1) in closed form, where the difference of two numbers near 1 would lose most digits
    step = torch.where(hit, 1.0, missed / (union - 1).clamp(min=1)) / union.clamp(min=1)
    return torch.zeros_like(errors).scatter_(0, order, step)


def _descending(errors: Tensor) -> Tensor:
    """(P,) positions from the largest error to the smallest, of equal ones the first first.

    Bits of non-negative fp32 numbers are in the order of the numbers. With the position behind them all keys differ, so that
    any sort gives one order, and no second array of positions is moved along.
    """
    if errors.dtype != torch.float32:
        return errors.argsort(descending=True, stable=True)
    position = torch.arange(len(errors), device=errors.device)
    keys = (-errors.view(torch.int32).to(torch.int64) << 32) | position
    return keys.sort().values & 0xFFFFFFFF


def _unit(features: Tensor) -> Tensor:
    """Vectors of length 1, normalised in fp32; bf16 features stay bf16, which is enough for their products."""
    unit = F.normalize(fp32(features), dim=2, eps=1e-12)
    return unit.to(torch.bfloat16) if features.dtype == torch.bfloat16 else unit


def _log(probabilities: Tensor) -> Tensor:
    return (probabilities + LOG_EPS).log()


def _cycles(
    starts: list[Tensor], ends: list[Tensor], label: Tensor, floor: float, tile: int, exclude_self: bool
) -> Cycles:
    total, kept, there, home, *_ = match(starts, ends, label, floor, tile, exclude_self)
    return Cycles(total, kept, there, home.gather(1, there))
