"""Source-only training: cross-entropy on labelled source images, the floor of every comparison.

As DAFormer's source-only training (docs/methods/source_only.md): no target image is seen; no rare class sampling.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator

from udaseg.data.sampling import Views
from udaseg.methods.base import Batch, Losses, Method, stream
from udaseg.methods.step.augment import photometric_distortion
from udaseg.models import Segmenter
from udaseg.params import Run
from udaseg.recipes.source_only import Supervised


class SourceOnlyMethod(Method):
    labelled = "source"

    def __init__(self, student: Segmenter, run: Run) -> None:
        super().__init__(student, run)
        self.p = typing.cast(Supervised, run.method)

    def views(self) -> Views:
        return Views(labelled=self.labelled, unlabelled=False, crop_max_ratio=self.p.crop_max_ratio)

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        image = batch.image
        if self.p.photometric:  # DAFormer: only where no strong augmentation follows
            image = photometric_distortion(image, [stream(self.run.seed, "photometric", n) for n in batch.index])
        output = self.student(self.student.normalise(image), boxes=self.box("supervised", image, step))
        yield {"supervised": self.student.loss(output, batch.label)}


METHOD = SourceOnlyMethod
