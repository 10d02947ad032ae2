"""PiPa: Chen, Zheng, Yang, Chua, ACM MM 2023, arXiv 2211.07609. A term of the self-training step.

    L = L_ce^S + L_ce^Mix + [L_FD] + alpha L_pixel + beta L_patch    (P11)

Equations and departures of the released code, D1 .. D13: docs/methods/pipa.md.

L_pixel -> Pipa.pixel_loss (source images, true classes)
(P1), (P2) anchors -> losses.pipa.group_sizes, anchors_per_group, anchor_quotas, choose_anchors
(P3) InfoNCE -> losses.pipa.pixel_contrast               (P4) -> losses.segmentation.nearest_labels

L_patch (P9) -> Pipa.patch_loss (two overlapping target crops)
(P5) crops -> data.two_crops, step.pair_views            (P6) -> losses.pipa.matching_cells
(P7) -> losses.pipa.directions                           (P8) -> losses.pipa.patch_contrast
(P10) memory bank of negatives -> Pipa.remember, losses.pipa.pushed

B pairs, K classes, C channels, D embedding width, h w grid of the features, N cells of a view (stride 8).
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg import ranks
from udaseg.classes import IGNORE
from udaseg.data.sampling import Views
from udaseg.data.two_crops import STRIDE, PairViews
from udaseg.errors import UserError
from udaseg.losses import pipa as losses
from udaseg.losses.segmentation import fp32, nearest_labels, resized
from udaseg.methods.base import Batch, Host, Losses, Term, stream
from udaseg.methods.step.pair_views import augmented, running_statistics, to_device, to_grid
from udaseg.models import Output, Segmenter
from udaseg.models.heads import StageProjection, over_stages
from udaseg.models.windows import cut_labels
from udaseg.params import Run
from udaseg.recipes import pipa as recipe
from udaseg.recipes.pipa import PatchContrast, PixelContrast
from udaseg.recipes.self_training import SelfTraining


class PipaTerm(Term):
    bank: Tensor  # (steps, cells, D) negatives of the last steps
    bank_label: Tensor  # (steps, cells), -1: empty

    def __init__(self, student: Segmenter, run: Run) -> None:
        super().__init__(student, run)
        method = typing.cast(SelfTraining, run.method)
        p = typing.cast(recipe.Pipa, method.block("pipa"))
        self.pixel, self.patch = p.pixel, p.patch
        if self.pixel is None and self.patch is None:
            raise UserError(
                f"params.yaml: methods.{run.method_name}.pipa: found neither pixel nor patch, expected at least one of them; "
                f"`terms: []` is the step without PiPa"
            )
        self.released = method.variant == "released"
        self.classes = len(run.classes)
        # DeepLab-V2: its last stage alone, at stride 8; the four together would be 3840 channels
        stages = student.stage_channels[-1:] if student.decoder_channels is None else student.stage_channels
        self.stages = len(stages)
        self.window = student.detail_window
        if self.pixel is not None:
            self.head = StageProjection(sum(stages), self.pixel.width)
            if self.released:
                self.untrained_pixel = nn.Conv2d(sum(stages), self.classes, 1).requires_grad_(False)
        if self.patch is not None:
            self.on_logits = self.released and self.window is not None  # D5: logits of cells of 2 pixels, taken for 8
            channels, width = student.feature_channels, self.patch.width
            channels, hidden = (self.classes, self.classes) if self.on_logits else (channels, 2 * width)
            # no `head` in the name: its learning rate is the base rate, as released
            self.project = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1))
            if self.released:
                self.untrained_patch = nn.Conv2d(channels, self.classes, 1).requires_grad_(False)
            self.side = int(self.patch.crop * run.benchmark.size.target.height) // STRIDE  # of a view, in cells
            self.grid = 4 * self.side if self.on_logits else self.side
            self.sampled = max(1, round(self.patch.bank_share * self.side**2))  # cells of each view
            kept = (self.patch.bank_steps, 2 * self.sampled * run.train.batch // run.train.accumulate)
            self.register_buffer("bank", torch.zeros(*kept, width))
            self.register_buffer("bank_label", torch.full(kept, -1))

    def views(self, views: Views) -> Views:
        p = self.patch
        return views if p is None else replace(views, pair=PairViews(self.side * STRIDE, p.scale, p.iou))

    def on_source(self, batch: Batch, output: Output, step: int) -> Losses:
        p = self.pixel
        if p is None or step < round(p.start * self.run.train.steps):
            return {}
        return {"pipa_pixel": p.weight * self.pixel_loss(p, batch, output)}

    def own_passes(self, batch: Batch, step: int, host: Host) -> Iterator[Losses]:
        p = self.patch
        if p is None or step < round(p.start * self.run.train.steps):
            return
        views = host.student.normalise(augmented(batch, p, self.run.seed))
        feature, probability = self.view_maps(views, host)
        embedding = F.normalize(fp32(self.project(feature)), dim=1)
        e, s = (x.flatten(2).mT.unflatten(0, (-1, 2)) for x in (embedding, probability))  # (B, 2, N, D or K)
        yield {"pipa_patch": p.weight * self.patch_loss(p, batch, e, s)}

    def pixel_loss(self, p: PixelContrast, batch: Batch, output: Output) -> Tensor:
        """L_pixel: contrast (P3) among hard and easy cells of the frequent classes of each source image."""
        seen, label, classes = output.detail or output, batch.label, self.classes
        if seen.boxes is not None and self.window and not self.released:  # D4: released with labels of the whole image
            label = cut_labels(label, seen.boxes[:, :2], self.window)
        stages = seen.stages[-self.stages :]
        size = (stages[0].shape[-2], stages[0].shape[-1])
        label = nearest_labels(label, size)
        if self.released:  # D6: void is a class; D3: an untrained classifier tells what is hard
            label, classes = torch.where(label == IGNORE, classes, label), classes + 1
            with torch.no_grad():
                predicted = over_stages(self.untrained_pixel, stages, align_corners=True).argmax(dim=1)
        else:
            predicted = nearest_labels(seen.logits.argmax(dim=1), size)
        keys = [stream(self.run.seed, "pipa_anchors", n).random(size, dtype=np.float32) for n in batch.index]

        sizes = losses.group_sizes(label, predicted, classes)
        fewest = max(1, round(p.eligible * size[0] * size[1]))
        eligible = sizes.sum(dim=-1) > fewest
        per_group = losses.anchors_per_group(ranks.total(eligible.sum()), p.anchors, fewest)
        quota = losses.anchor_quotas(sizes, per_group) * eligible[..., None]
        cells, valid = losses.choose_anchors(label, predicted, to_device(keys, label.device), quota, p.anchors)

        anchors = ranks.gathered(self.head(stages, cells))
        anchor_label = ranks.gathered(torch.where(valid, label.flatten()[cells], IGNORE))
        filled = (anchor_label == IGNORE).int().argsort(stable=True)[: p.anchors]  # of all ranks' slots
        anchors, anchor_label = anchors[filled], anchor_label[filled]
        return losses.pixel_contrast(anchors, anchor_label, anchor_label != IGNORE, p.temperature, p.base_temperature)

    def view_maps(self, views: Tensor, host: Host) -> tuple[Tensor, Tensor]:
        """Features (2B, C, grid, grid) and the teacher's class probabilities (2B, K, grid, grid) of the views' cells."""
        teacher = host.teacher_network
        if self.released:  # D1: features of the frozen teacher; D2: labels of an untrained classifier
            with torch.no_grad():
                output = teacher(views)
                feature = (
                    resized(fp32(output.logits), (views.shape[-2], views.shape[-1]))
                    if self.on_logits
                    else output.feature
                )
                feature = to_grid(feature, self.grid)
                return feature, fp32(self.untrained_patch(feature)).softmax(dim=1)
        with torch.no_grad(), running_statistics(teacher):
            probability = to_grid(fp32(teacher(views).logits).softmax(dim=1), self.side)
        return to_grid(host.student.context(views).feature, self.side), probability

    def patch_loss(self, p: PatchContrast, batch: Batch, embedding: Tensor, probability: Tensor) -> Tensor:
        """L_patch = L1 + L2 (P9) of embeddings (B, 2, N, D) and class probabilities (B, 2, N, K)."""
        assert batch.overlap is not None and batch.flipped is not None
        confidence, label = probability.max(dim=-1)
        match, shared = losses.matching_cells(batch.overlap, batch.flipped, (self.grid, self.grid))
        image = torch.arange(len(match), device=match.device)[:, None]
        (f1, f2), (c1, c2), (s1, s2) = ((x[:, 0], x[image, 1, match]) for x in (embedding, label, confidence))
        masks = [m & shared for m in losses.directions(s1, s2, p.confidence)] if p.mask else [shared, shared]
        if p.negatives == "bank":
            self.remember(batch, embedding, label)
            bank = self.bank.flatten(0, 1)[None], self.bank_label.flatten()[None]
            first, second = (f1, f2, c1, *bank), (f2, f1, c2, *bank)
        else:  # the paper's figure: all of the other view but the positive itself
            cell = torch.arange(self.grid**2, device=match.device).expand_as(match)
            first, second = (f1, f2, match, embedding[:, 1], cell), (f2, f1, cell, embedding[:, 0], cell)
        loss = torch.zeros((), device=embedding.device)
        for (query, positive, tag, keys, key_tag), mask in zip((first, second), masks, strict=True):
            weight = mask / (ranks.total(mask.sum()).clamp(min=1) / ranks.world())
            loss = loss + losses.patch_contrast(
                query, positive, tag, weight, keys, key_tag, p.temperature, 1e-8 if self.released else 0.0
            )
        return loss

    @torch.no_grad()
    def remember(self, batch: Batch, embedding: Tensor, label: Tensor) -> None:
        """Random cells of both views of the global batch enter the bank (P10)."""
        cells = embedding.shape[2]
        draws = [stream(self.run.seed, "pipa_bank", n) for n in batch.index]
        chosen = to_device(
            [[r.choice(cells, self.sampled, replace=False) for _ in (0, 1)] for r in draws], label.device
        )
        image = torch.arange(len(chosen), device=label.device)[:, None, None]
        view = torch.arange(2, device=label.device)[:, None]
        for bank, values in ((self.bank, embedding), (self.bank_label, label)):
            bank.copy_(losses.pushed(bank, ranks.gathered(values[image, view, chosen].contiguous()).flatten(0, 2)))


TERM = PipaTerm
