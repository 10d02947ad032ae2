"""CLUDA: contrastive learning in unsupervised domain adaptation (Vayyat et al., arXiv 2208.14227). docs/methods/cluda.md.

Every class pulls its pixels together, on the source images with their labels and on the class-mixed images with the labels of
the mix, where pairs of one class link the domains: L = L_self_training + L_cl^S + L_cl^Mix. What is compared is the decoder's
fused multi-level feature; no projection, no memory bank, no prototypes. Networks with a detail branch have the second
loss (C4).

(C1), (C2) -> losses.cluda.pair_loss, pixel_contrast    (C3), (C4) -> `blend_head`, multi_resolution_contrast there
(C5) grid -> losses.cluda.on_grid, labels_on_grid, detail_on_grid      (C6) weights -> `mix` of methods.self_training
(C7), (C8) detail crop -> losses.cluda.entropy, uncertain_boxes, `boxes`      (C9) total -> `on_source`, `on_mixed`
shapes: B images, D feature channels, H W image size, N grid positions of the global batch
"""

from __future__ import annotations

import typing

import numpy as np
import torch
from torch import Tensor, nn

from udaseg import ranks
from udaseg.classes import IGNORE
from udaseg.errors import UserError
from udaseg.losses.cluda import (
    detail_on_grid,
    entropy,
    labels_on_grid,
    multi_resolution_contrast,
    on_grid,
    pixel_contrast,
    rows,
    uncertain_boxes,
)
from udaseg.methods.base import Batch, Losses, Term, stream
from udaseg.models import Boxes, Output, Segmenter
from udaseg.models.heads import FusionHead
from udaseg.params import Run
from udaseg.recipes.cluda import Cluda
from udaseg.recipes.self_training import SelfTraining


class CludaTerm(Term):
    def __init__(self, student: Segmenter, run: Run) -> None:
        super().__init__(student, run)
        recipe = typing.cast(SelfTraining, run.method)
        self.p = typing.cast(Cluda, recipe.block("cluda"))
        self.released = recipe.variant == "released"
        self.classes = len(run.classes)
        self.window = student.detail_window
        self.check()
        # deeplabv2 has no map between the encoder and its logits, and the release does not run with it: a projection of ours
        fused = student.decoder_channels is not None
        self.embed_head = nn.Identity() if fused else nn.Conv2d(student.stage_channels[-1], self.p.width, 1)
        self.blend_head: FusionHead | None = None
        if self.window is not None:  # a in (0, 1) of (C3), from the context stages
            stages, finest = student.stage_channels, student.stage_strides[0] // student.reduction
            self.blend_head = FusionHead(stages, finest, 1, self.p.width, (), run.benchmark.model.dropout)

    def check(self) -> None:
        where, crop = f"params.yaml: methods.{self.run.method_name}.cluda", self.run.train.crop
        if not 1 <= self.p.stride <= min(crop.height, crop.width):
            raise UserError(f"{where}.stride: found {self.p.stride}, expected 1 to the shorter side of the crop {crop}")
        if self.p.temperature <= 0:
            raise UserError(f"{where}.temperature: found {self.p.temperature}, expected more than 0")
        if self.p.anchors is not None and self.p.anchors < 1:
            raise UserError(f"{where}.anchors: found {self.p.anchors}, expected at least 1, or null for all positions")
        if self.p.detail_crop == "entropy" and self.window is None:
            raise UserError(
                f"{where}.detail_crop: found entropy, but the network of {self.run.benchmark_name} has no detail branch; "
                "say random"
            )

    def on_source(self, batch: Batch, output: Output, step: int) -> Losses:
        weight = torch.ones_like(batch.label, dtype=torch.float32)
        return {"cluda_source": self.p.source * self.contrast(batch, output, batch.label, weight, "source")}

    def on_mixed(self, batch: Batch, output: Output, label: Tensor, weight: Tensor, step: int) -> Losses:
        return {"cluda_mixed": self.p.mixed * self.contrast(batch, output, label, weight, "mixed")}

    def contrast(self, batch: Batch, output: Output, label: Tensor, weight: Tensor, images: str) -> Tensor:
        """The loss over the grid positions of the global batch, labels (B, H, W) and weights (B, H, W)."""
        corners = self.released  # the released grid runs from corner to corner: 65 positions for 512 pixels at stride 8
        size = (label.shape[-2], label.shape[-1])
        cells = (size[0] // self.p.stride + corners, size[1] // self.p.stride + corners)

        def everyone(maps: Tensor, *, feature: bool = False) -> Tensor:
            """(B, D, h, w) of this rank to (N, D) of all; the released order of features is not that of their labels (D1)."""
            return rows(ranks.gathered(maps), position_major=feature and self.released)

        y = everyone(labels_on_grid(label, cells, corners=corners)[:, None])[:, 0]
        if self.released:
            y = torch.where(y == IGNORE, self.classes, y)  # D4: one class more
        w = everyone(on_grid(weight[:, None], cells, corners=corners))[:, 0]
        anchors, temperature = self.anchors(batch, cells[0] * cells[1], images, y.device), self.p.temperature
        low = everyone(on_grid(self.embed_head(output.feature), cells, corners=corners), feature=True)
        if self.blend_head is None:
            return pixel_contrast(low, y, w, anchors=anchors, temperature=temperature)

        detail = output.detail
        assert detail is not None and detail.boxes is not None
        high, inside = detail_on_grid(self.embed_head(detail.feature), detail.boxes, size, cells, corners=corners)
        blend = on_grid(self.blend_head(output.stages)[0].sigmoid(), cells, corners=corners)
        m = everyone(inside[:, None].long())[:, 0] > 0
        if self.released:
            m &= y != 0  # D3: class 0, road, is taken for the outside of the crop
        return multi_resolution_contrast(
            low,
            everyone(high, feature=True),
            y,
            w,
            everyone(blend)[:, 0],
            m,
            gate=self.p.gate,
            anchors=anchors,
            temperature=temperature,
        )

    def anchors(self, batch: Batch, positions: int, images: str, device: torch.device) -> Tensor | None:
        """Which rows are this rank's anchors: all positions of its images, or as many of each as `anchors` says."""
        if self.p.anchors is None and ranks.world() == 1:
            return None
        first = ranks.rank() * len(batch.index)
        drawn = [
            stream(self.run.seed, f"cluda {images}", n).permutation(positions)[: self.p.anchors] for n in batch.index
        ]
        index = np.concatenate([(first + i) * positions + chosen for i, chosen in enumerate(drawn)])
        return torch.from_numpy(index).to(device, non_blocking=True)

    def boxes(self, step: int) -> Boxes | None:
        """(C8): the most uncertain window of the context logits, from `detail_start` on."""
        start = self.p.detail_start * self.run.train.steps + self.released  # released: from the step after
        if self.window is None or self.p.detail_crop == "random" or step < start:
            return None
        crop, window = self.run.train.crop, self.window
        return lambda logits: uncertain_boxes(entropy(logits.detach()), (crop.height, crop.width), window)


TERM = CludaTerm
