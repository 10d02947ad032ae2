"""What the trainer knows of a method, and what the self-training step knows of a term.

A method is one nn.Module: whatever must survive a step is a parameter or a buffer, so that it is saved, moved and resumed
with it. Random numbers come from `stream`, a function of (seed, step, purpose): nothing needs to be remembered.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from udaseg.data.sampling import Views
from udaseg.models import Boxes, Output, Segmenter
from udaseg.params import Run

Losses = dict[str, Tensor]
Images = Callable[[], Iterator[tuple[int, Tensor]]]
Predict = Callable[[Tensor, tuple[int, int]], Tensor]  # normalised images (B, 3, h, w), (H, W) -> logits (B, K, H, W)


@dataclass
class Batch:
    """One micro-batch on the training device. Images are RGB in 0..1, not normalised.

    B pairs; H W the crop. What a method did not ask for in its `views` is None.

    Attributes:
        index: (B,) number of each pair in the run; seeds whatever is random about it.
        image, label: (B, 3, H, W) and (B, H, W) of the labelled domain, label in class space, 255 = ignore.
        target: (B, 3, H, W) of the target domain.
        reference: (B, 3, H, W) day image of the target's place.
        corners: (B, n, 2) candidate crops (top, left) of a target that came whole.
        static: (B, H, W) the round's labels of the target.
        inside: (B, H, W) bool, where the target may have pseudo-labels, if the border belongs to whole images.
        pair: (B, 2, 3, h, w) two overlapping views of the target image.
        overlap: (B, 2, 4) of their shared cells of 8 pixels, in each view before its flip: top, left, height, width.
        flipped: (B, 2) whether a view is mirrored.
        pseudo, weight: (B, H, W) the teacher's labels of `target` and their weights, once the self-training step has them.
    """

    index: list[int]
    image: Tensor
    label: Tensor
    target: Tensor | None = None
    reference: Tensor | None = None
    corners: Tensor | None = None
    static: Tensor | None = None
    inside: Tensor | None = None
    pair: Tensor | None = None
    overlap: Tensor | None = None
    flipped: Tensor | None = None
    pseudo: Tensor | None = None
    weight: Tensor | None = None

    @classmethod
    def of(cls, item: dict[str, Tensor], device: torch.device) -> Batch:
        """From what the loader made of `Pairs`: uint8 becomes 0..1 (images) or integers (labels)."""
        moved: dict[str, Tensor] = {}
        for name, value in item.items():
            if name == "index":
                continue
            tensor = value.to(device, non_blocking=True)
            if name in IMAGES:
                moved[name] = tensor.float() / 255
            else:
                moved[name] = tensor.long() if tensor.dtype == torch.uint8 else tensor
        return cls(item["index"].tolist(), **moved)


IMAGES = ("image", "target", "reference", "pair")


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Independent random numbers for each (seed, purpose, numbers), the same in every process."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


class Method(nn.Module):
    """One training method. Subclasses implement `losses` and, where they differ, the rest."""

    one_graph: ClassVar[tuple[str, ...]] = ()  # functions of its own, tensors in and out, that `train.compile` compiles

    def __init__(self, student: Segmenter, run: Run) -> None:
        super().__init__()
        self.student = student
        self.run = run
        self.classes = len(run.classes)
        crop = run.train.crop
        student.check_crop((crop.height, crop.width), f"params.yaml: benchmarks.{run.benchmark_name}.train.crop")

    def box(self, purpose: str, images: Tensor, step: int) -> Tensor | None:
        """Where the detail branch of a multi-resolution network looks in this pass: one place for all images and ranks."""
        draw = stream(self.run.seed, f"box {purpose}", step).integers
        return self.student.random_box(lambda n: int(draw(n)), (images.shape[-2], images.shape[-1]))

    def views(self) -> Views:
        """What the loader delivers."""
        return Views()

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        """Weighted losses by name, one dictionary for each student pass.

        The trainer back-propagates each dictionary's sum and drops its graph before it asks for the next, so that only one
        pass is in memory; then one optimizer step.
        """
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after the optimizer has moved the student in step `step` (0-based)."""

    @property
    def rounds(self) -> int:
        """In how many rounds of equal length the training images of the target are labelled anew; 0: never."""
        return 0

    def label_target(self, images: Images, labels: np.ndarray) -> None:
        """Fill in the labels of a round, at its first step.

        Args:
            images: called, it begins anew to give this rank's share of the target's training images: their number in the
                split and (3, H, W) in 0..1 on the device, not normalised.
            labels: (images, H, W) uint8 on disk, shared by all ranks, 255 everywhere; smaller images fill its upper left.
        """
        raise NotImplementedError

    def scored(self) -> dict[str, nn.Module]:
        """The networks to save and score, by prefix: "" is the headline, "teacher." stands beside it."""
        return {"": self.student}

    @staticmethod
    def test_views(run: Run, student: Segmenter) -> dict[str, Predict]:
        """Further ways to predict with the trained student, scored under their names beside the headline."""
        return {}


class Host(Protocol):
    """What a term sees of the self-training step that it stands on."""

    student: Segmenter

    @property
    def teacher_network(self) -> Segmenter: ...

    def strong(
        self, images: Tensor, purpose: str, batch: Batch, step: int, *, own_gates: bool = False, alike: bool = False
    ) -> Tensor:
        """`images` (B, 3, H, W) with strong augmentation, random by pair and `purpose`.

        `own_gates`: whether to jitter and to blur is decided for this purpose alone; `alike`: order and blur are those of all images.
        """

    def pseudo_labels(self, batch: Batch, teacher: Segmenter | None = None) -> tuple[Tensor, Tensor]:
        """Labels (B, H, W) of the target and their pixel weights (B, H, W), by another teacher if one is given."""

    def bordered(self, weight: Tensor, batch: Batch) -> Tensor:
        """Weights (B, H, W), 0 where the target gets no pseudo-labels."""

    def box(self, purpose: str, images: Tensor, step: int) -> Tensor | None:
        """Where the detail branch of a multi-resolution network looks in a pass over `images`."""


class Term(nn.Module):
    """A contrastive term on top of the self-training step: one file per paper. Losses come weighted, named after the term.

    A term owns its projection heads, and `Averaged` copies of them where the teacher needs them too.
    """

    one_graph: ClassVar[tuple[str, ...]] = ()  # as of a method

    def __init__(self, student: Segmenter, run: Run) -> None:
        """Raises UserError where network, recipe or benchmark do not give what the term needs."""
        super().__init__()
        self.run = run

    def views(self, views: Views) -> Views:
        """What the loader delivers, the term's wishes added."""
        return views

    def before(self, batch: Batch, step: int, host: Host) -> None:
        """Without gradient, after pseudo-labelling and before any student pass: statistics, extra teacher passes."""

    def on_source(self, batch: Batch, output: Output, step: int) -> Losses:
        """From the student's pass over the source images."""
        return {}

    def on_mixed(self, batch: Batch, output: Output, label: Tensor, weight: Tensor, step: int) -> Losses:
        """From the student's pass over the mixed images, with mixed labels and pixel weights (B, H, W)."""
        return {}

    def boxes(self, step: int) -> Boxes | None:
        """Where the detail branch of a multi-resolution network shall look in the mixed images; None: where it likes."""
        return None

    def own_passes(self, batch: Batch, step: int, host: Host) -> Iterator[Losses]:
        """Student passes of the term's own, one dictionary each; between the source and the mixed pass."""
        yield from ()

    def after_step(self, step: int) -> None:
        """Called after the optimizer step."""


class Averaged(nn.Module):
    """An exponential moving average (EMA) of a module's parameters: the teacher of Mean Teacher, (T8).

    decay(t) = min(1 - 1/(t+1), 1 - 1/(horizon * steps)) with the update number t (DACS). Parameters only: buffers
    (running statistics) are neither averaged nor copied, as in the DAFormer family; the teacher moves its own. Oracle
    o4 of docs/methods/self_training.md.
    """

    def __init__(self, source: nn.Module, horizon: float, steps: int) -> None:
        """`horizon` is the averaging time as a fraction of a run of `steps`: 0.025 of 40 000 gives the papers' 0.999."""
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)
        self.limit = 1 - 1 / max(horizon * steps, 1.0)

    def decay(self, t: int) -> float:
        return min(1 - 1 / (t + 1), self.limit)

    @torch.no_grad()
    def update(self, source: nn.Module, t: int) -> None:
        """Move towards `source` in one fused call; t = 0 copies it."""
        torch._foreach_lerp_(list(self.module.parameters()), list(source.parameters()), 1 - self.decay(t))

    def train(self, mode: bool = True) -> Self:
        """Training mode without dropout and drop-path: batch statistics, nothing random (DACS)."""
        super().train(mode)
        for child in self.modules():
            if isinstance(child, _DropoutNd | DropPath):
                child.eval()
        return self
