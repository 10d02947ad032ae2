"""SePiCo's contrast between cells and classes: Xie et al., TPAMI 2023. Equations, oracles: docs/methods/sepico.md.

N cells (feature positions of the batch), A embedding width, C classes, M bank slots, t temperature. An anchor is a cell with a
class; q is its embedding (unit length). What stands for a class lies behind a stop-gradient: only q receives any.

(S3) running class statistics, the prototypes -> class_sums, merged    (S4) memory bank of centroids -> empty_bank, push
(S5) ProtoCL -> proto_contrast    (S6) BankCL -> bank_contrast    (S7) DistCL -> dist_contrast    (S8) -> regulariser
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.classes import IGNORE
from udaseg.losses.segmentation import fp32

TILE = 256  # anchors of one class that meet their bank in one matrix product


def anchors(label: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the (N,) cells are anchors, and their classes, 0 where there is none; both (N,).

    A cell is no anchor where its label is 255 or its class is not among `seen` (C,), because nothing stands for that class.
    """
    valid = label != IGNORE
    index = torch.where(valid, label, 0).long()
    return valid & seen[index], index


def proto_contrast(
    q: Tensor, label: Tensor, mean: Tensor, seen: Tensor, temperature: float, cells: Tensor | None = None
) -> Tensor:
    """ProtoCL: cross-entropy of the similarities q.mu_c / t, averaged over anchors.

    Args:
        q: (N, A) embeddings.
        label: (N,) class of each cell, 255 = none.
        mean: (C, A) mean embedding of each class, not normalised again.
        seen: (C,) the classes that compete. The released code lets classes that never occurred compete with a zero mean.
        temperature: t; similarities are divided by it.
        cells: what to divide by where it is not the number of anchors here: the mean per rank of the global batch.
    """
    with torch.autocast(q.device.type, enabled=False):
        similarity = fp32(q) @ mean.to(fp32(q).dtype).T / temperature
        return _own_against_all(similarity, similarity, label, seen, cells)


def dist_contrast(
    q: Tensor,
    label: Tensor,
    mean: Tensor,
    variance: Tensor,
    seen: Tensor,
    temperature: float,
    cells: Tensor | None = None,
) -> Tensor:
    """DistCL: the upper bound of the expected loss when the keys of class c follow N(mu_c, diag(variance_c)).

    -q.mu_y / t + log sum_c exp(q.mu_c / t + sum_d q_d^2 variance_cd / (2 t^2)); the positive's quadratic term has cancelled.
    `variance` is (C, A), all else as for ProtoCL, which is this loss at zero variance.
    """
    with torch.autocast(q.device.type, enabled=False):
        q = fp32(q)
        similarity = q @ mean.to(q.dtype).T / temperature
        spread = q.square() @ variance.to(q.dtype).T / (2 * temperature**2)
        return _own_against_all(similarity, similarity + spread, label, seen, cells)


def _own_against_all(own: Tensor, logits: Tensor, label: Tensor, seen: Tensor, cells: Tensor | None) -> Tensor:
    """Mean over anchors of log sum_c exp(logits[c]) - own[y]; both are (N, C)."""
    valid, index = anchors(label, seen)
    is_own = index[:, None] == torch.arange(len(seen), device=label.device)
    # a finite "minus infinity": with no class seen at all, the gradient of logsumexp must not be NaN
    rest = torch.where(seen, logits, torch.finfo(logits.dtype).min).logsumexp(dim=1)
    loss = torch.where(valid, rest - torch.where(is_own, own, 0).sum(dim=1), 0)
    return loss.sum() / _at_least_one(valid.sum() if cells is None else cells)


def bank_contrast(
    q: Tensor, label: Tensor, bank: Tensor, pushed: Tensor, temperature: float, cells: Tensor | None = None
) -> Tensor:
    """BankCL: every key of the own class is a positive of its own, every other class one negative, its bank's mean.

    mean over m of softplus(log Z - q.k_ym / t) with Z = sum over c != y of exp(q.mean_m k_cm / t), averaged over anchors.
    Classes with an empty bank do not compete and have no anchors. Cost: 2 N A (C + M) operations instead of 2 N A C M,
    because anchors are laid out class by class (`_by_class`), so that each meets its own bank only.

    Args:
        q: (N, A) embeddings.
        label: (N,) class of each cell, 255 = none.
        bank: (C, M, A) keys; slots never written are zero.
        pushed: (C,) keys ever pushed, as `push` counts them.
        temperature: t.
        cells: as for ProtoCL.
    """
    with torch.autocast(q.device.type, enabled=False):
        q = fp32(q)
        bank = bank.to(q.dtype)
        classes, slots, _ = bank.shape
        length = pushed.clamp(max=slots)
        filled = length > 0
        valid, index = anchors(label, filled)

        centre = bank.sum(dim=1) / length.clamp(min=1)[:, None]
        is_other = filled & (index[:, None] != torch.arange(classes, device=label.device))
        similarity = q @ centre.T / temperature
        log_z = torch.where(is_other, similarity, torch.finfo(q.dtype).min).logsumexp(dim=1)

        place, owner, tile = _by_class(torch.where(valid, index, classes), classes)
        places = len(owner) * tile
        by_tile = q.new_zeros(places, q.shape[1]).index_copy(0, place, q).view(len(owner), tile, -1)
        positive = by_tile @ bank[owner].transpose(1, 2) / temperature  # (tiles, tile, M)
        log_z = log_z.new_zeros(places).index_copy(0, place, log_z).view(len(owner), tile, 1)
        is_anchor = valid.new_zeros(places).index_copy(0, place, valid).view(len(owner), tile, 1)
        is_key = (torch.arange(slots, device=label.device) < length[:, None])[owner][:, None]
        loss = torch.where(is_anchor & is_key, F.softplus(log_z - positive), 0)
        loss = (loss.sum(dim=(1, 2)) / length[owner].clamp(min=1)).sum()
        return loss / _at_least_one(valid.sum() if cells is None else cells)


def _by_class(group: Tensor, classes: int) -> tuple[Tensor, Tensor, int]:
    """A layout of fixed size in which every tile holds cells of one class.

    Args:
        group: (N,) class of each cell; `classes` for those that belong nowhere.
        classes: C.

    Returns:
        The place of each cell (N,); the class of each tile (tiles,), with tiles that hold no anchor given to the last class;
        the cells in a tile. At most doubles the number of rows.
    """
    tile = max(1, min(TILE, len(group) // (classes + 1)))
    member = group[:, None] == torch.arange(classes + 1, device=group.device)
    nth = member.cumsum(dim=0)  # integers: deterministic on CUDA too
    end = ((nth[-1] + tile - 1) // tile).cumsum(dim=0)  # in tiles
    first = F.pad(end[:-1], (1, 0)) * tile
    place = torch.where(member, first + nth - 1, 0).sum(dim=1)
    tiles = (len(group) + (classes + 1) * (tile - 1)) // tile
    owner = torch.searchsorted(end, torch.arange(tiles, device=group.device), right=True).clamp(max=classes - 1)
    return place, owner, tile


def regulariser(
    total: Tensor, cells: Tensor, mean: Tensor, seen: Tensor, temperature: float, sign: float = 1.0
) -> Tensor:
    """(S8): sign / (C log C) * sum_c log softmax(Q.mu / t)_c, with Q the mean embedding of all anchors.

    -1 where Q is equally similar to all classes and smaller elsewhere, so that minimising it, as paper and released code do
    (sign 1), drives Q away from uniform similarity; sign -1 drives it there. No anchor, or one class: zero with graph.

    Args:
        total: (A,) sum of the anchors' embeddings over the global batch.
        cells: () number of those anchors.
        mean, seen, temperature: as for ProtoCL; C counts the seen classes.
    """
    with torch.autocast(total.device.type, enabled=False):
        total = fp32(total)
        similarity = mean.to(total.dtype) @ (total / _at_least_one(cells)) / temperature
        log_p = torch.where(seen, similarity, torch.finfo(total.dtype).min).log_softmax(dim=0)
        classes = seen.sum().to(total.dtype)
        scale = torch.where((cells > 0) & (classes > 1), sign / (classes * classes.clamp(min=2).log()), 0)
        return torch.where(seen, log_p, 0).sum() * scale


def anchor_sum(q: Tensor, label: Tensor, seen: Tensor) -> Tensor:
    """(A,) sum of the anchors among (N, A) embeddings, for the regulariser."""
    valid, _ = anchors(label, seen)
    return torch.where(valid[:, None], fp32(q), 0).sum(dim=0)


def _at_least_one(cells: Tensor) -> Tensor:
    """A divisor for sums over anchors: where there are none the sum is 0 and stays 0."""
    return torch.where(cells > 0, cells, 1)


class Statistics(NamedTuple):
    """Number of cells (C,), mean (C, A) and population variance (C, A) of the embeddings of each class; 0 where none."""

    number: Tensor
    mean: Tensor
    variance: Tensor


def class_sums(key: Tensor, label: Tensor, shift: Tensor) -> Tensor:
    """n | sum(k - shift_c) | sum((k - shift_c)^2) over the cells of each class: (C, 1 + 2A), float64.

    These add up over ranks. `shift` (C, A) is the running mean: second moments about a nearby point do not cancel. Two matrix
    products with the one-hot labels, no N x C x A array.

    Args:
        key: (N, A) embeddings.
        label: (N,) classes, 255 = none.
    """
    with torch.autocast(key.device.type, enabled=False):
        key = fp32(key)
        valid = label != IGNORE
        index = torch.where(valid, label, 0).long()
        one_hot = (valid[:, None] & (index[:, None] == torch.arange(len(shift), device=label.device))).to(key.dtype)
        offset = key - shift.to(key.dtype)[index]
        first = one_hot.T @ offset
        second = one_hot.T @ offset.square()
        return torch.cat([one_hot.sum(dim=0)[:, None], first, second], dim=1).double()


def merged(old: Statistics, sums: Tensor, momentum: float | None = None) -> tuple[Statistics, Tensor]:
    """The statistics with a batch added, and the batch's own centroids (C, A); float64.

    Parallel-variance update: at any time the statistics are those of all cells ever seen, in whatever portions they came.

    Args:
        old: before the batch; `old.mean` is the shift of `sums`.
        sums: of `class_sums`, summed over ranks.
        momentum: weight of the old statistics of a class that the batch holds; None weighs by the number of cells.
    """
    n, first, second = sums[:, 0], *sums[:, 1:].chunk(2, dim=1)
    d = first / _at_least_one(n)[:, None]
    v = (second / _at_least_one(n)[:, None] - d.square()).clamp(min=0)
    w = n / _at_least_one(n + old.number)
    if momentum is not None:
        w = torch.where((n > 0) & (old.number > 0), 1 - momentum, w)
    w = w[:, None]
    variance = (1 - w) * old.variance + w * v + w * (1 - w) * d.square()
    return Statistics(old.number + n, old.mean + w * d, variance), old.mean + d


def empty_bank(classes: int, slots: int, width: int, zero: bool) -> tuple[Tensor, Tensor]:
    """A bank (C, M, A) and how many keys each class has pushed (C,); `zero`: begin with one zero vector, as released."""
    return torch.zeros(classes, slots, width), torch.full((classes,), int(zero))


def push(bank: Tensor, pushed: Tensor, key: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The bank and counts after one key (C, A) for each class that is `present` (C,); the oldest key gives way."""
    slot = torch.arange(bank.shape[1], device=bank.device)
    here = present[:, None] & (slot == pushed[:, None] % len(slot))
    return torch.where(here[..., None], key.to(bank.dtype)[:, None], bank), pushed + present
