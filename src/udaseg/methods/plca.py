"""Pixel-Level Cycle Association: Kang, Wei, Yang, Zhuang, Hauptmann, NeurIPS 2020 (docs/methods/plca.md).

One network, no teacher, no pseudo-labels. On a grid of stride 8 the pixels of each source image find their way to the target
image beside it and back, by features and by predictions; ways that end in the class where they began are strengthened.
Step: source cross-entropy and Lovász-Softmax -> adaptive smoothing of both domains -> spatial aggregation of the target ->
cycle association at two levels.

(L1), (L2), (L6), (L7) cycles -> losses.plca.feature_cycles, probability_cycles, which stand on losses.association.match
(L3) -> losses.association.temperatures      (L4), (L5) -> losses.plca.aggregated_features, aggregated_probabilities
(L8) -> losses.plca.adaptive_smoothing       (L9) -> losses.plca.lovasz_softmax
(L10) -> losses.segmentation.nearest_labels  (L11) total -> `losses`      (L12) test -> `test_views`
shapes: B pairs, C classes, H W crop, h w grid, N = h w positions, D features
"""

from __future__ import annotations

import typing
from collections.abc import Iterator

import torch
from torch import Tensor

from udaseg import ranks
from udaseg.classes import IGNORE
from udaseg.data.sampling import Views
from udaseg.errors import UserError
from udaseg.losses.plca import (
    Cycles,
    adaptive_smoothing,
    aggregated_features,
    aggregated_probabilities,
    feature_cycles,
    lovasz_softmax,
    probability_cycles,
)
from udaseg.losses.segmentation import fp32, nearest_labels, resized
from udaseg.methods.base import Batch, Losses, Method, Predict, stream
from udaseg.models import Output, Segmenter
from udaseg.params import Run
from udaseg.recipes.plca import Plca

LEAST = 1e-12  # of an aggregated probability, before its logarithm


class PlcaMethod(Method):
    def __init__(self, student: Segmenter, run: Run) -> None:
        super().__init__(student, run)
        self.p = typing.cast(Plca, run.method)
        check_plca(self.p, f"params.yaml: methods.{run.method_name}")
        # the released code loses the smoothing with the second level
        self.smooths = self.p.variant == "paper" or len(self.p.levels) == 2
        if self.p.variant == "released":
            student.drop_classifier_bias()

    def views(self) -> Views:
        p = self.p
        return Views(crop_max_ratio=p.crop_max_ratio, rare_class_temperature=p.rare_class_temperature, scale=p.scale)

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        """All in one: association needs the graphs of both passes."""
        assert batch.target is not None
        student, p = self.student, self.p
        # apart, so that each domain is normalised by its own batch statistics; target first, as released
        target = student(student.normalise(batch.target), boxes=self.box("target", batch.target, step))
        source = student(student.normalise(batch.image), boxes=self.box("source", batch.image, step))

        valid = ranks.total((batch.label != IGNORE).sum()) / ranks.world()
        full = resized(fp32(source.logits), (batch.label.shape[1], batch.label.shape[2])).softmax(dim=1)
        losses = {
            "source": student.loss(source, batch.label, pixels=valid),
            "lovasz": p.lovasz * lovasz_softmax(ranks.gathered(full), ranks.gathered(batch.label)),
        }
        grid = grid_of(source, batch.image, p.stride)
        logits_s, logits_t = (resized(fp32(output.logits), grid) for output in (source, target))
        if self.smooths:
            losses["smoothing_source"] = p.lsr * adaptive_smoothing(logits_s, p.lsr_limit)
            losses["smoothing_target"] = p.lsr_target * adaptive_smoothing(logits_t, p.lsr_limit)
        label = nearest_labels(batch.label, grid).flatten(1)
        for level in p.levels:
            if level == "feature":
                x_s, x_t = (positions(resized(output.feature, grid)) for output in (source, target))
                x_t = aggregated_features(x_t, alpha=p.aggregation, floor=p.floor, tile=p.tile)
                associate = feature_cycles
            else:
                x_s, x_t = (positions(logits).softmax(dim=2) for logits in (logits_s, logits_t))
                x_t = aggregated_probabilities(x_t, alpha=p.aggregation, tile=p.tile)
                associate = probability_cycles
            here, there = (self.drawn(domain, batch, x_s.shape[1]) for domain in ("source", "target"))
            cycles = associate(
                taken(x_s, here),
                taken(x_t, there),
                taken(label, here),
                floor=p.floor,
                tile=p.tile,
                exclude_self=p.exclude_self,
            )
            losses[f"association_{level}"] = p.association * mean_over_cycles(cycles)
        yield losses

    def drawn(self, domain: str, batch: Batch, number: int) -> Tensor | None:
        """(B, max_pixels) positions to associate in each pair; None: all, as published."""
        if self.p.max_pixels is None or self.p.max_pixels >= number:
            return None
        orders = [stream(self.run.seed, f"plca-{domain}", n).permutation(number) for n in batch.index]
        chosen = torch.stack([torch.from_numpy(order[: self.p.max_pixels]) for order in orders])
        return chosen.to(batch.image.device, non_blocking=True)

    @staticmethod
    def test_views(run: Run, student: Segmenter) -> dict[str, Predict]:
        """Spatial aggregation at test time, of features and then of the probabilities that the head gives them."""
        p = typing.cast(Plca, run.method)

        def aggregated(images: Tensor, size: tuple[int, int]) -> Tensor:
            output = student(images)
            grid = grid_of(output, images, p.stride)
            features = positions(resized(output.feature, grid))
            features = aggregated_features(features, alpha=p.aggregation, floor=p.floor, tile=p.tile)
            logits = resized(fp32(student.classified(output, features.mT.unflatten(2, grid))), grid)
            probabilities = positions(logits).softmax(dim=2)
            probabilities = aggregated_probabilities(probabilities, alpha=p.aggregation, tile=p.tile)
            return resized(probabilities.mT.unflatten(2, grid), size).clamp(min=LEAST).log()

        return {"aggregated": aggregated} if p.aggregation else {}


def check_plca(p: Plca, where: str) -> None:
    """Raises UserError for values that mean nothing."""
    counts = (p.stride, p.tile, *([] if p.max_pixels is None else [p.max_pixels]))
    if min(counts) < 1 or p.floor <= 0 or p.lsr_limit <= 0 or not 0 <= p.aggregation <= 1:
        raise UserError(
            f"{where}: found stride {p.stride}, tile {p.tile}, max_pixels {p.max_pixels}, floor {p.floor}, lsr_limit "
            f"{p.lsr_limit}, aggregation {p.aggregation}; expected all above 0, the aggregation from 0 to 1"
        )
    if len(set(p.levels)) < len(p.levels):
        raise UserError(f"{where}.levels: found {list(p.levels)}, expected none twice")


def grid_of(output: Output, images: Tensor, stride: int) -> tuple[int, int]:
    """(h, w) on which to associate: that of `stride`, or the network's own where it is coarser."""
    h, w = (min(have, -(-side // stride)) for have, side in zip(output.logits.shape[2:], images.shape[2:], strict=True))
    return h, w


def positions(maps: Tensor) -> Tensor:
    """(B, D, h, w) as (B, N, D)."""
    return maps.flatten(2).mT


def taken(x: Tensor, index: Tensor | None) -> Tensor:
    """Rows of (B, N, ...) at (B, n); all of them without index."""
    return x if index is None else x[torch.arange(len(x), device=x.device)[:, None], index]


def mean_over_cycles(cycles: Cycles) -> Tensor:
    """Pooled over the pairs of the global batch; ranks average to it. No cycle kept: zero with graph."""
    return cycles.total * ranks.world() / ranks.total(cycles.kept.sum()).clamp(min=1)


METHOD = PlcaMethod
