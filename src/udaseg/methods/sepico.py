"""SePiCo: Xie, Li, Li, Liu, Huang, Wang, "Semantic-Guided Pixel Contrast for Domain Adaptive Semantic Segmentation", TPAMI 2023.

Embeddings of source and target cells are pulled to what stands for their class on the source: its mean, the prototype
(ProtoCL), a memory bank of its last centroids (BankCL) or a Gaussian (DistCL). Equations: docs/methods/sepico.md.

(S1) embedding -> `ProjectionHead`      (S2) class of a cell -> losses.segmentation.cell_labels
(S3), (S4) class statistics and bank -> `before`: losses.sepico.class_sums, merged, push
(S5) to (S7) contrast -> losses.sepico.proto_contrast, bank_contrast, dist_contrast    (S8) -> losses.sepico.regulariser
(S9) class-balanced cropping -> methods.crops      (S10) night -> methods.night      (S11) total -> `contrast`

shapes: B images, h w feature grid, N = B h w cells, A embedding width, C classes, M bank slots
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg import ranks
from udaseg.classes import IGNORE
from udaseg.errors import UserError
from udaseg.losses import sepico as losses
from udaseg.losses.segmentation import cell_labels, fp32
from udaseg.methods.base import Averaged, Batch, Host, Losses, Term
from udaseg.models import Output, Segmenter
from udaseg.models.heads import ConvBN, over_stages
from udaseg.params import Run
from udaseg.recipes.self_training import SelfTraining
from udaseg.recipes.sepico import Sepico


class ProjectionHead(nn.Module):
    """Encoder stages to embeddings of unit length; the last ReLU makes them non-negative."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        """`channels` of the stages to take, which are the encoder's last ones."""
        super().__init__()
        self.levels = len(channels)
        inputs = sum(channels)
        self.first = ConvBN(inputs, inputs // self.levels, 1)
        self.last = ConvBN(inputs // self.levels, width, 1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Stages (B, c_i, h_i, w_i) -> (B, h, w, A) on the grid of the finest of them, in fp32."""
        hidden = F.relu(self.first.bn(over_stages(self.first.conv, stages[-self.levels :])))
        return F.normalize(fp32(self.last(hidden).permute(0, 2, 3, 1)), dim=3)


class SepicoTerm(Term):
    number: Tensor  # (C,) cells seen of each class
    mean: Tensor  # (C, A)
    variance: Tensor  # (C, A)
    bank: Tensor  # (C, M, A)
    pushed: Tensor  # (C,)
    one_graph = ("contrast",)

    def __init__(self, student: Segmenter, run: Run) -> None:
        super().__init__(student, run)
        recipe = typing.cast(SelfTraining, run.method)
        self.p = typing.cast(Sepico, recipe.block("sepico"))
        check_sepico(self.p, recipe, f"params.yaml: methods.{run.method_name}")
        # DeepLab-V2: the last stage; fusing heads: all stages, resized to the first
        channels = student.stage_channels[-1:] if student.decoder_channels is None else student.stage_channels
        width = round(self.p.width * run.benchmark.model.width)
        self.head = ProjectionHead(channels, width)
        self.teacher_head = Averaged(self.head, recipe.teacher_horizon, run.train.steps)
        # released: classes never seen compete with a zero mean
        self.unseen_compete = recipe.variant == "released"
        self.classes = len(run.classes)
        self.first_statistics = round(self.p.statistics.start * run.train.steps)
        self.first_loss = round(self.p.start * run.train.steps)
        # float64: a step adds a 40 000th to the mean
        moments = torch.zeros(2, self.classes, width, dtype=torch.float64)
        self.register_buffer("number", torch.zeros(self.classes, dtype=torch.float64))
        self.register_buffer("mean", moments[0])
        self.register_buffer("variance", moments[1].clone())
        slots = max(1, min(self.p.bank.length, round(self.p.bank.span * run.train.steps)))
        slots = slots if self.p.prototype == "bank" else 0
        bank, pushed = losses.empty_bank(self.classes, slots, width, self.p.bank.zero)
        self.register_buffer("bank", bank)
        self.register_buffer("pushed", pushed)

    def before(self, batch: Batch, step: int, host: Host) -> None:
        """Class statistics of the global batch: teacher, weak source images, true labels."""
        if step < self.first_statistics:
            return
        teacher = host.teacher_network
        key = self.teacher_head.module(teacher.stages(teacher.normalise(batch.image)))
        key, label = self.cells(key, batch.label)
        sums = ranks.total(losses.class_sums(key, label, self.mean))
        old = losses.Statistics(self.number, self.mean, self.variance)
        new, centroid = losses.merged(old, sums, self.p.statistics.momentum)
        for buffer, value in zip(old, new, strict=True):
            buffer.copy_(value)
        if self.p.prototype == "bank":
            bank, pushed = losses.push(self.bank, self.pushed, centroid, present=sums[:, 0] > 0)
            self.bank.copy_(bank)
            self.pushed.copy_(pushed)

    def on_source(self, batch: Batch, output: Output, step: int) -> Losses:
        if step < self.first_loss or "source" not in self.p.domains:
            return {}
        return self.contrast("source", self.head(output.stages), batch.label)

    def own_passes(self, batch: Batch, step: int, host: Host) -> Iterator[Losses]:
        """The strongly augmented target, with the teacher's labels where they have any weight."""
        if step < self.first_loss or "target" not in self.p.domains:
            return
        assert batch.target is not None and batch.pseudo is not None and batch.weight is not None
        image = host.strong(batch.target, "target", batch, step)
        q = self.head(host.student.stages(host.student.normalise(image)))
        yield self.contrast("target", q, torch.where(batch.weight > 0, batch.pseudo, IGNORE))

    def contrast(self, domain: str, q: Tensor, label: Tensor) -> Losses:
        """Contrast and regulariser of (B, h, w, A) embeddings with (B, H, W) labels, means over the global batch's anchors."""
        p, t = self.p, self.p.temperature
        q, label = self.cells(q, label)
        if p.prototype == "bank":
            seen = self.pushed > 0
        else:
            seen = torch.ones_like(self.number, dtype=torch.bool) if self.unseen_compete else self.number > 0
        number = ranks.total(losses.anchors(label, seen)[0].sum())
        per_rank = number / ranks.world()
        if p.prototype == "proto":
            loss = losses.proto_contrast(q, label, self.mean, seen, t, per_rank)
        elif p.prototype == "bank":
            loss = losses.bank_contrast(q, label, self.bank, self.pushed, t, per_rank)
        else:
            loss = losses.dist_contrast(q, label, self.mean, self.variance, seen, t, per_rank)
        found = {f"sepico_{domain}": p.weight * loss}
        if p.regulariser:
            total = ranks.differentiable_total(losses.anchor_sum(q, label, seen))
            sign = 1.0 if p.regulariser_sign == "official" else -1.0
            regulariser = losses.regulariser(total, number, self.mean, seen, t, sign)
            found[f"sepico_{domain}_regulariser"] = p.weight * p.regulariser * regulariser
        return found

    def cells(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, A) and (B, H, W) to (N, A) and the class of each cell (N,), 255 where no class fills enough of it."""
        size = (embedding.shape[1], embedding.shape[2])
        return embedding.flatten(0, 2), cell_labels(label, size, self.classes, self.p.cell_ratio).flatten()

    def after_step(self, step: int) -> None:
        self.teacher_head.update(self.head, step + 1)


def check_sepico(p: Sepico, recipe: SelfTraining, where: str) -> None:
    """Raises UserError where the numbers or the rest of the recipe do not fit."""
    if recipe.source_view != "strong":
        raise UserError(
            f"{where}.source_view: found {recipe.source_view}; SePiCo's source anchors are strongly augmented: say strong"
        )
    if p.temperature <= 0 or p.width <= 0 or not p.domains:
        raise UserError(f"{where}.sepico: temperature and width must be above 0, domains source, target or both")
    if p.statistics.start > p.start:
        raise UserError(
            f"{where}.sepico: the loss starts at {p.start} of the run, before its statistics ({p.statistics.start}); "
            f"statistics.start must not be later than start"
        )


TERM = SepicoTerm
