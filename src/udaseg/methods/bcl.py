"""BCL, bi-directional contrastive learning: Lee, Eom, Lee, Park, Ham, ECCV 2022. Equations: docs/methods/bcl.md.

Step: static labels of the round -> source prototypes -> dynamic labels of the target by its nearest calibrated prototype ->
hybrid labels -> target prototypes -> forward contrast (target pixels, source prototypes) and backward contrast (source
pixels, target prototypes) beside cross-entropy and entropy on both domains -> calibration.

(B1) prototypes -> losses.bcl.class_sums, prototypes      (B2), (B3), (B10) contrast -> losses.bcl.cosine, contrast
(B4) dynamic labels -> losses.bcl.dynamic_labels          (B5) hybrid labels -> losses.bcl.fuse
(B6) calibration -> losses.bcl.class_bias, calibrate      (B7) -> `cross_entropy`, losses.bcl.entropy
(B8) total -> `losses`                                    (B9) static labels -> methods.static_labels
shapes: B pairs, P prototype sets (B, or 1 for the batch), K classes, D feature channels, H W crop, h w feature map
"""

from __future__ import annotations

import typing
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg import ranks
from udaseg.classes import IGNORE
from udaseg.data.sampling import Views
from udaseg.errors import UserError
from udaseg.losses import bcl
from udaseg.losses.segmentation import fp32, nearest_labels, resized
from udaseg.methods.base import Batch, Images, Losses, Method
from udaseg.methods.step.static_labels import label_images
from udaseg.models import Output, Segmenter
from udaseg.models.stems import with_own_stem
from udaseg.params import Run
from udaseg.recipes import bcl as recipe

STRIDE = 8  # of DeepLab-V2, where the paper contrasts; finer maps are averaged to it


class BclMethod(Method):
    """`student` is the network that is scored; with `split_stem` the source has its own copy of the first layers.

    Attributes:
        bias: (K, D) xi, how far each class lies from its source prototype in the target domain.
        bias_sums, bias_sets: (K, D) and (K,) of the step under way; zero between steps.
    """

    bias: Tensor
    bias_sums: Tensor
    bias_sets: Tensor
    one_graph = ("contrasts", "entropy")

    def __init__(self, student: Segmenter, run: Run) -> None:
        super().__init__(student, run)
        self.p = p = typing.cast(recipe.Bcl, run.method)
        where = f"params.yaml: methods.{run.method_name}"
        if p.rounds < 1 or not 0 <= p.portion <= 1 or p.temperature <= 0:
            raise UserError(
                f"{where}: found rounds {p.rounds}, portion {p.portion}, temperature {p.temperature}; "
                f"expected at least one round, a portion in 0..1 and a temperature above 0"
            )
        widths = {
            "branches": len(run.benchmark.model.dilations) * self.classes if student.decoder_channels is None else None,
            "stage": student.stage_channels[-1],
            "decoder": student.decoder_channels,
        }
        self.kind = p.feature if p.feature != "auto" else "decoder" if student.decoder_channels else "branches"
        if (width := widths[self.kind]) is None:
            raise UserError(
                f"{where}.feature: found {p.feature!r}, which head {run.benchmark.model.head} does not give; say auto or stage"
            )
        self.source_network = with_own_stem(student) if p.split_stem else None
        self.register_buffer("bias", torch.zeros(self.classes, width))
        self.register_buffer("bias_sums", torch.zeros_like(self.bias), persistent=False)
        self.register_buffer("bias_sets", torch.zeros(self.classes), persistent=False)

    def views(self) -> Views:
        p = self.p
        return Views(
            crop_max_ratio=p.crop_max_ratio, rare_class_temperature=p.rare_class_temperature, scale=p.scale, static=True
        )

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        """All in one: both contrasts need the graphs of both passes. (B8)."""
        assert batch.target is not None and batch.static is not None
        p, normalise = self.p, self.student.normalise
        box_s, box_t = self.box("source", batch.image, step), self.box("target", batch.target, step)
        source = (self.source_network or self.student)(normalise(batch.image), boxes=box_s)
        target = self.student(normalise(batch.target), boxes=box_t)
        losses = {
            "source": self.cross_entropy(source, batch.label),
            "target": p.target * self.cross_entropy(target, batch.static),
            "source_entropy": p.entropy * self.entropy(source, batch.label),
            "target_entropy": p.entropy * p.target * self.entropy(target, batch.static),
        }
        if p.forward or p.backward:
            forward, backward = self.contrasts(self.feature(source), batch.label, self.feature(target), batch.static)
            losses |= {"forward": p.forward * forward, "backward": p.backward * backward}
        yield losses

    def contrasts(self, f_s: Tensor, y_s: Tensor, f_t: Tensor, y_f: Tensor) -> tuple[Tensor, Tensor]:
        """FCL and BCL of features (B, D, h, w), source labels and static target labels (B, H, W): (B1) to (B6)."""
        p, size, full = self.p, (f_s.shape[2], f_s.shape[3]), (y_f.shape[1], y_f.shape[2])
        static = nearest_labels(y_f, size)
        rho_s = self.prototypes(f_s, nearest_labels(y_s, size))
        dynamic = self.dynamic_labels(f_t, rho_s)
        rho_t = self.prototypes(f_t, self.merged(static, dynamic))

        shared = rho_s.present & rho_t.present
        y_t = self.merged(y_f, nearest_labels(dynamic, full)) if p.hybrid_in == "prototypes+anchors" else y_f
        forward = self.contrast(f_t, y_t, rho_s, shared)
        backward = self.contrast(f_s, y_s, rho_t, shared)

        if p.calibration != "none":
            sums, sets = bcl.class_bias(rho_s, rho_t if p.calibration == "hybrid" else self.prototypes(f_t, static))
            self.bias_sums += sums
            self.bias_sets += sets
        return forward, backward

    def dynamic_labels(self, f_t: Tensor, rho_s: bcl.Prototypes) -> Tensor:
        """y_D (B, h, w): the class of the most similar calibrated source prototype (B4)."""
        if self.p.labels == "static":
            return torch.full((len(f_t), *f_t.shape[2:]), IGNORE, device=f_t.device)
        with torch.no_grad():
            similarity = bcl.cosine(f_t, rho_s.vectors + self.bias)
        return bcl.dynamic_labels(similarity, rho_s.present, self.p.temperature, self.p.confidence)

    def merged(self, static: Tensor, dynamic: Tensor) -> Tensor:
        """y_T (B5)."""
        return dynamic if self.p.labels == "dynamic" else bcl.fuse(static, dynamic)

    def prototypes(self, features: Tensor, label: Tensor) -> bcl.Prototypes:
        """One set for each image, or one for the global batch (B1)."""
        sums, counts = bcl.class_sums(features, label, self.classes)
        if self.p.prototypes == "batch":
            sums = ranks.differentiable_total(sums.sum(dim=0, keepdim=True))
            counts = ranks.total(counts.sum(dim=0, keepdim=True))
        return bcl.prototypes(sums, counts)

    def contrast(self, features: Tensor, label: Tensor, rho: bcl.Prototypes, shared: Tensor) -> Tensor:
        """Mean over pairs of the mean over anchors, or with one set of prototypes the mean over the global batch's anchors."""
        counts = bcl.label_counts(label, (features.shape[2], features.shape[3]), self.classes) * shared[..., None, None]
        each = ranks.total(counts.sum()) / (ranks.world() * len(counts)) if self.p.prototypes == "batch" else None
        absent = "mask" if self.p.variant == "paper" else "minus_one"
        similarity = bcl.cosine(features, rho.vectors)
        return bcl.contrast(similarity, rho.present, counts, self.p.temperature, absent=absent, anchors=each)

    def cross_entropy(self, output: Output, label: Tensor) -> Tensor:
        """Mean over the labelled pixels of the global batch: a round labels a small part of them. (B7)."""
        return self.student.loss(output, label, pixels=ranks.total((label != IGNORE).sum()) / ranks.world())

    def entropy(self, output: Output, label: Tensor) -> Tensor:
        """Mean entropy at the size of `label` (B, H, W), (B7); released: of the softmax of the probabilities."""
        logits = resized(fp32(output.logits), (label.shape[1], label.shape[2]))
        return bcl.entropy(logits, twice=self.p.variant == "released")

    def feature(self, output: Output) -> Tensor:
        """What is contrasted (B, D, h, w), at stride 8 or coarser."""
        maps = {"branches": output.branches, "stage": output.stages[-1], "decoder": output.decoder}
        feature = typing.cast(Tensor, maps[self.kind])
        image_height = output.stages[0].shape[2] * self.student.stage_strides[0]
        times = max(1, STRIDE * feature.shape[2] // image_height)
        feature = F.avg_pool2d(fp32(feature), times, ceil_mode=True) if times > 1 else feature
        return F.normalize(fp32(feature), dim=1) if self.p.normalise else feature

    def after_step(self, step: int) -> None:
        """Calibration, once for each optimizer step (B6)."""
        sums, sets = ranks.total(self.bias_sums), ranks.total(self.bias_sets)
        self.bias.copy_(bcl.calibrate(self.bias, sums, sets, self.p.momentum))
        self.bias_sums.zero_()
        self.bias_sets.zero_()

    @property
    def rounds(self) -> int:
        return min(self.p.rounds, self.run.train.most_rounds or self.p.rounds)

    def label_target(self, images: Images, labels: np.ndarray) -> None:
        """(B9), by the network that is scored."""
        was_training = self.training
        label_images(
            self.student.eval(), images, labels, self.classes, self.p.portion, any_class=self.p.variant == "released"
        )
        self.train(was_training)


METHOD = BclMethod
