"""MIC: Hoyer, Dai, Wang, Van Gool, "Masked Image Consistency for Context-Enhanced Domain Adaptation", CVPR 2023.

A term of the self-training step that contrasts nothing: of target images of which most is masked the student shall say what the
teacher says of the whole images, L = L_self_training + L_M. docs/methods/mic.md.

(M1) mask -> `mask_grid`, `kept`      (M2) masked images -> `images`, `own_passes`      (M3) labels and weights -> `images`, `labels_of`
(M4) loss -> `own_passes`, Segmenter.loss_parts
shapes: B images, H W crop, g_h g_w squares of a mask
"""

from __future__ import annotations

import typing
from collections.abc import Iterator

import torch
from torch import Tensor

from udaseg import ranks
from udaseg.errors import UserError
from udaseg.losses.segmentation import nearest_labels
from udaseg.methods.base import Averaged, Batch, Host, Losses, Term, stream
from udaseg.models import Segmenter
from udaseg.params import Run
from udaseg.recipes.mic import Mic
from udaseg.recipes.self_training import SelfTraining


class MicTerm(Term):
    def __init__(self, student: Segmenter, run: Run) -> None:
        super().__init__(student, run)
        recipe = typing.cast(SelfTraining, run.method)
        self.p = typing.cast(Mic, recipe.block("mic"))
        self.released = recipe.variant == "released"
        self.augments, self.mode = self.p.mode.endswith("aug"), self.p.mode.removesuffix("aug")
        self.check()
        # without memory: at every step it is the student of before, but as a teacher looks at images
        self.own_teacher = Averaged(student, 0.0, run.train.steps) if self.p.teacher == "student" else None

    def check(self) -> None:
        where, train = f"params.yaml: methods.{self.run.method_name}.mic", self.run.train
        if not 1 <= self.p.block <= min(train.crop.height, train.crop.width):
            raise UserError(
                f"{where}.block: found {self.p.block}, expected 1 to the shorter side of the crop {train.crop}: no mask is larger "
                f"than the image"
            )
        share = train.batch // train.accumulate // ranks.world()
        if self.mode == "separate" and share % 2:
            raise UserError(
                f"{where}.mode: {self.p.mode} takes a source and a target image of every two pairs, found {share} pairs in each "
                f"pass (batch / accumulate / processes); expected an even number, or mode separatetrg"
            )

    def own_passes(self, batch: Batch, step: int, host: Host) -> Iterator[Losses]:
        with torch.no_grad():
            image, label, weight = self.images(batch, step, host)
            mask = self.masks(batch.index, (label.shape[-2], label.shape[-1]), image.device)
            masked = host.student.normalise(image) * mask[:, None]  # what is masked has the mean colour
        output = host.student(masked, boxes=host.box("masked", masked, step))
        first, *others = host.student.loss_parts(output, label, weight)
        scale = 1.0 if self.released else self.p.weight  # A7: as released only the first part is weighted
        yield {"mic": self.p.weight * first + scale * sum(others, torch.zeros_like(first))}

    def images(self, batch: Batch, step: int, host: Host) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, 3, H, W) before masking, labels and pixel weights (B, H, W), of source, target or both."""
        assert batch.target is not None
        pseudo, q = self.labels_of(batch, step, host)
        if self.mode == "separatesrc":
            image, label, weight = batch.image, batch.label, None
        elif self.mode == "separatetrg":
            image, label, weight = batch.target, pseudo, q
        else:  # of every two pairs the first: so the ranks' parts are those of the global batch
            image = torch.stack([batch.image[::2], batch.target[::2]], dim=1).flatten(0, 1)
            label = torch.stack([batch.label[::2], pseudo[::2]], dim=1).flatten(0, 1)
            weight = torch.stack([torch.ones_like(q[::2]), q[::2]], dim=1).flatten(0, 1)
        if self.augments:  # A8: as released, order and blur are those of the whole batch
            image = host.strong(image, "masked", batch, step, own_gates=True, alike=self.released)
        return image, label, weight

    def masks(self, index: list[int], size: tuple[int, int], device: torch.device | None = None) -> Tensor:
        """(B, H, W), 1 where an image is kept, random by pair; only the numbers of the squares come from the host."""
        grid = mask_grid(size, self.p.block)
        drawn = [torch.from_numpy(stream(self.run.seed, "mic", n).random(grid)) for n in index]
        return kept(torch.stack(drawn).to(device, non_blocking=True), self.p.ratio, size)

    def labels_of(self, batch: Batch, step: int, host: Host) -> tuple[Tensor, Tensor]:
        """The teacher's labels of the target and their weights (B, H, W), before mixing."""
        assert batch.pseudo is not None and batch.weight is not None
        label, weight = batch.pseudo, batch.weight
        if self.own_teacher is not None:
            self.own_teacher.update(host.student, step)
            label, weight = host.pseudo_labels(batch, typing.cast(Segmenter, self.own_teacher.module))
        return label, weight if self.p.confidence else host.bordered(torch.ones_like(weight), batch)


def mask_grid(size: tuple[int, int], block: int) -> tuple[int, int]:
    """Squares of about `block` pixels along each side; half-way cases go to the even number. Oracle q7."""
    return round(size[0] / block), round(size[1] / block)


def kept(drawn: Tensor, ratio: float, size: tuple[int, int]) -> Tensor:
    """(B, H, W), 1 in the squares whose number in 0..1, of (B, g_h, g_w), is above `ratio`. Oracle o15 of self_training.md."""
    return nearest_labels((drawn > ratio).float(), size)


TERM = MicTerm
