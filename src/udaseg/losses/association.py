"""What PLCA needs of N x M similarity matrices, without ever holding one.

Two differentiable operators, `attention` and `match`. Similarities come in tiles of t rows and all columns, are used and
forgotten, and are computed again for the gradient: memory grows with t x M. Operators and gradients are opaque to
torch.compile, which would unroll their loops. Equations (L3), (L6), (L7): docs/methods/plca.md.

shapes: B pairs of images, N and M positions, D and E channels
Operands are fp32 or float64, or bf16: these are multiplied as they are, with sums and results in fp32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from udaseg.classes import IGNORE
from udaseg.losses.segmentation import fp32


def temperatures(rows: Tensor, columns: Tensor, floor: float, tile: int) -> Tensor:
    """Contrast normalisation (L3): standard deviation (B, N) of each row of rows columns^T, unbiased, at least `floor`.

    Subtracting the mean of a row changes no softmax; what is left of the normalisation is a temperature for each row. From
    (B, N, D) and (B, M, D), by the covariance of the columns where that is cheaper than the product.
    """
    mean = fp32(columns).mean(dim=1, keepdim=True)
    if 2 * columns.shape[2] < columns.shape[1]:
        centred = (fp32(columns[:, some]) - mean for some in _tiles(columns, tile))
        covariance = functools.reduce(torch.add, (x.mT @ x for x in centred))
        squares = [((x @ covariance) * x).sum(dim=2) for x in (fp32(rows[:, some]) for some in _tiles(rows, tile))]
    else:
        centred_columns = (fp32(columns) - mean).mT
        squares = [(fp32(rows[:, some]) @ centred_columns).square_().sum(dim=2) for some in _tiles(rows, tile)]
    variance = torch.cat(squares, dim=1) / max(columns.shape[1] - 1, 1)
    return variance.clamp(min=0).sqrt().clamp(min=floor)


def _spread(scores: Tensor, floor: float) -> Tensor:
    """`temperatures` (B, t, 1) where whole rows (B, t, M) are at hand."""
    return scores.std(dim=2, correction=min(1, scores.shape[2] - 1), keepdim=True).clamp(min=floor)


@torch.library.custom_op("udaseg::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, floor: float | None, tile: int) -> Tensor:
    """softmax(query key^T / tau) value of (B, N, D), (B, M, D), (B, M, E), as (B, N, E).

    tau is the standard deviation of a row without gradient, as in `temperatures`; 1 if `floor` is None.
    """
    with _autocast_off(query):
        tiles = [_product(_weights(query[:, rows], key, floor)[0], value) for rows in _tiles(query, tile)]
        return torch.cat(tiles, dim=1)


@torch.library.custom_op("udaseg::attention_gradient", mutates_args=())
def _attention_gradient(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, floor: float | None, tile: int
) -> tuple[Tensor, Tensor, Tensor]:
    by_query, by_key, by_value = (torch.zeros_like(fp32(x)) for x in (query, key, value))
    with _autocast_off(query):
        for rows in _tiles(query, tile):
            weights, tau = _weights(query[:, rows], key, floor)
            by_weights = _product(gradient[:, rows], value.mT)
            _add_product(by_value, weights.mT, gradient[:, rows].to(value.dtype))
            by_scores = by_weights.sub_((weights * by_weights).sum(dim=2, keepdim=True)).mul_(weights.div_(tau))
            by_query[:, rows] = _product(by_scores, key)
            _add_product(by_key, by_scores.mT, query[:, rows])
            del weights, by_weights, by_scores  # before the next tile takes their place
    return by_query.to(query.dtype), by_key.to(key.dtype), by_value.to(value.dtype)


def _weights(query: Tensor, key: Tensor, floor: float | None) -> tuple[Tensor, Tensor]:
    scores = _product(query, key.mT)
    tau = scores.new_ones(()) if floor is None else _spread(scores, floor)
    return scores.div_(tau).softmax(dim=2), tau


@torch.library.custom_op("udaseg::match", mutates_args=())
def match(
    starts: list[Tensor], ends: list[Tensor], label: Tensor, floor: float, tile: int, exclude_self: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Two-way matcher: cycle association (L6) and its loss (L7) in one stream over tiles.

    On the way there D = starts[0] ends[0]^T and p_ij is the softmax over j of D_ij / tau_i; on the way back, down the columns,
    D' = starts[-1] ends[-1]^T and q_ji is the softmax over i of D'_ij / tau'_j. One operand each: D' = D. Both ways take the
    largest, hence log p_ij* = -log sum_j exp((D_ij - max) / tau_i); of equals the first, whatever the tile.

    Args:
        starts, ends: one or two of (B, N, D) and (B, M, D).
        label: (B, N) of the starts.
        floor: of the temperatures tau, tau', which take no gradient.
        tile: rows at a time.
        exclude_self: drop cycles that end where they start.

    Returns:
        total: () sum of -log p - log q over the kept cycles.
        kept: (B, N) whether start and end i*(j*(i)) have the same class, which is not ignore.
        there, home: (B, N) j*(i) and (B, M) i*(j).
        row, column: (3, B, N, 1) and (3, B, 1, M) largest score, log of the sum, temperature, for the gradient.
    """
    with _autocast_off(label):
        column_tau = temperatures(ends[-1], starts[-1], floor, tile)[:, None]
        column_max = torch.full_like(column_tau, -torch.inf)
        column_sum = torch.zeros_like(column_tau)
        home = torch.zeros_like(column_tau, dtype=torch.int64)
        row, there = [], []
        for rows in _tiles(label, tile):
            scores = _product(starts[0][:, rows], ends[0].mT)
            tau = _spread(scores, floor)
            top, best = scores.max(dim=2, keepdim=True)
            row.append(torch.stack([top, _exp(scores, top, tau).sum(dim=2, keepdim=True).log(), tau]))
            there.append(best)
            if len(starts) == 2:
                scores = _product(starts[1][:, rows], ends[1].mT)
            top, best = scores.max(dim=1, keepdim=True)
            home = torch.where(top > column_max, best + rows.start, home)
            top = torch.maximum(top, column_max)
            column_sum = column_sum * _exp(column_max, top, column_tau)
            column_sum += _exp(scores, top, column_tau).sum(dim=1, keepdim=True)
            column_max = top
            del scores  # before the next tile takes its place
        column = torch.stack([column_max, column_sum.log(), column_tau])
    return _closed(torch.cat(row, dim=2), column, torch.cat(there, dim=1)[..., 0], home[:, 0], label, exclude_self)


def _exp(scores: Tensor, top: Tensor, tau: Tensor) -> Tensor:
    return (scores - top).div_(tau).exp_()


def _closed(
    row: Tensor, column: Tensor, there: Tensor, home: Tensor, label: Tensor, exclude_self: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Which cycles are kept, and their loss: what `match` returns."""
    back = home.gather(1, there)
    kept = (label != IGNORE) & (label.gather(1, back) == label)
    if exclude_self:
        kept &= back != torch.arange(label.shape[1], device=label.device)
    losses = row[1, :, :, 0] + column[1, :, 0].gather(1, there)
    return (losses * kept).sum(), kept, there, home, row, column


@torch.library.custom_op("udaseg::match_gradient", mutates_args=())
def _match_gradient(
    gradient: Tensor,
    starts: list[Tensor],
    ends: list[Tensor],
    kept: Tensor,
    there: Tensor,
    home: Tensor,
    row: Tensor,
    column: Tensor,
    tile: int,
) -> list[Tensor]:
    """Gradients by starts, then by ends.

    By D_ij it is kept_i (p_ij - [j = j*(i)]) / tau_i; by D'_ij the same with q_ji, i*(j) and tau'_j, once for every kept cycle
    that passes through j.
    """
    passing = torch.zeros_like(home).scatter_add_(1, there, kept.to(home.dtype))[:, None]
    i = torch.arange(there.shape[1], device=there.device)[:, None]
    j = torch.arange(home.shape[1], device=home.device)
    by_starts, by_ends = ([torch.zeros_like(fp32(x)) for x in operands] for operands in (starts, ends))
    with _autocast_off(gradient):
        for rows in _tiles(there, tile):
            there_scores = _product(starts[0][:, rows], ends[0].mT)
            back_scores = there_scores.clone() if len(starts) == 1 else _product(starts[1][:, rows], ends[1].mT)
            pulls = [
                _pull(there_scores, row[:, :, rows], j == there[:, rows, None], kept[:, rows, None] * gradient),
                _pull(back_scores, column, i[rows] == home[:, None], passing * gradient),
            ]
            if len(starts) == 1:
                pulls = [pulls[0].add_(pulls[1])]
            for pull, start, end, by_start, by_end in zip(pulls, starts, ends, by_starts, by_ends, strict=True):
                pull = pull.to(start.dtype)
                by_start[:, rows] = _product(pull, end)
                _add_product(by_end, pull.mT, start[:, rows])
            del there_scores, back_scores, pulls, pull  # before the next tile takes their place
    return [g.to(x.dtype) for g, x in zip(by_starts + by_ends, starts + ends, strict=True)]


def _pull(scores: Tensor, statistics: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """weight (softmax(scores / tau) - chosen) / tau, in place of the scores."""
    top, log_sum, tau = statistics
    return scores.sub_(top).div_(tau).sub_(log_sum).exp_().add_(chosen, alpha=-1).mul_(weight / tau)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, summed and returned in fp32 at least; where `b` is bf16, `a` is rounded to it."""
    if b.dtype != torch.bfloat16:
        return a @ b
    if b.is_cuda:
        return torch.bmm(a.to(b.dtype), b, out_dtype=torch.float32)
    return a.to(b.dtype).float() @ b.float()


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if b.dtype == torch.bfloat16:
        out += _product(a, b)
    else:
        out.baddbmm_(a, b)


def _tiles(rows: Tensor, tile: int) -> Iterator[slice]:
    return (slice(start, start + tile) for start in range(0, rows.shape[1], tile))


def _autocast_off(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


# Shapes for torch.compile, and gradients


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, floor: float | None, tile: int) -> Tensor:
    return fp32(value.new_empty(*query.shape[:2], value.shape[2]))


@_attention_gradient.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, floor: float | None, tile: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@match.register_fake
def _(
    starts: list[Tensor], ends: list[Tensor], label: Tensor, floor: float, tile: int, exclude_self: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (b, n), m = label.shape, ends[0].shape[1]
    real = fp32(starts[0].new_empty(1))
    index = label.new_empty(1, dtype=torch.int64)
    kept = label.new_empty(b, n, dtype=torch.bool)
    statistics = (real.new_empty(3, b, n, 1), real.new_empty(3, b, 1, m))
    return real.new_empty(()), kept, index.new_empty(b, n), index.new_empty(b, m), *statistics


@_match_gradient.register_fake
def _(
    gradient: Tensor,
    starts: list[Tensor],
    ends: list[Tensor],
    kept: Tensor,
    there: Tensor,
    home: Tensor,
    row: Tensor,
    column: Tensor,
    tile: int,
) -> list[Tensor]:
    return [torch.empty_like(x) for x in starts + ends]


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.floor, ctx.tile = inputs
    ctx.save_for_backward(*operands)


def _backward_attention(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_gradient(gradient, *ctx.saved_tensors, ctx.floor, ctx.tile), None, None


def _save_match(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    starts, ends, _, _, ctx.tile, _ = inputs
    ctx.save_for_backward(*starts, *ends, *output[1:])


def _backward_match(ctx: Any, gradient: Tensor, *unused: Tensor | None) -> tuple[list[Tensor] | None, ...]:
    *operands, kept, there, home, row, column = ctx.saved_tensors
    half = len(operands) // 2
    found = _match_gradient(gradient, operands[:half], operands[half:], kept, there, home, row, column, ctx.tile)
    return found[:half], found[half:], None, None, None, None


attention.register_autograd(_backward_attention, setup_context=_save_attention)
match.register_autograd(_backward_match, setup_context=_save_match)
