"""Self-training with an averaged teacher and class-mixed images: DACS (WACV 2021), DAFormer (CVPR 2022).

Step: source loss and feature distance to ImageNet on thing classes -> the teacher's pseudo-labels and their weight q ->
ClassMix -> mixed loss -> teacher update. Contrastive terms (one file per paper) hook into the two student passes.

Equations (T1) .., docs/methods/self_training.md, with their numbers in DAFormer:
(T1), (T7) losses -> models.segmenter Segmenter.loss      (T2), (T3) -> step.imagenet, losses.segmentation.feature_distance
(T4) pseudo-labels, (T5) q -> methods.mixing.pseudo_labels, confident_share    (T6) ClassMix -> class_mask, paste there
(T8) teacher -> methods.base.Averaged      (T9) rare class sampling -> data.sampling      (T10) total -> `losses`
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor, nn

from udaseg.data.sampling import Views
from udaseg.losses.segmentation import fp32
from udaseg.methods import load
from udaseg.methods.base import Averaged, Batch, Losses, Method, Predict, Term, stream
from udaseg.methods.step import night
from udaseg.methods.step.augment import strong_augment
from udaseg.methods.step.crops import best_corner, cut
from udaseg.methods.step.imagenet import as_imagenet_left_it, distance_to
from udaseg.methods.step.mixing import class_mask, paste, pseudo_labels, without_border
from udaseg.models import Segmenter
from udaseg.params import Run
from udaseg.recipes.self_training import SelfTraining


class SelfTrainingMethod(Method):
    is_thing: Tensor  # (256,) label -> thing class?
    is_static: Tensor  # (K,) class that the day image may tell
    class_weight: Tensor | None  # (256,) label -> weight, where the recipe has class weights

    def __init__(self, student: Segmenter, run: Run) -> None:
        self.frozen: tuple[Segmenter, ...] = ()
        super().__init__(student, run)
        self.p = typing.cast(SelfTraining, run.method)
        self.per_image = self.p.variant == "paper"  # released: one q and one set of classes for the whole batch
        self.teacher = Averaged(student, self.p.teacher_horizon, run.train.steps)
        self.terms = nn.ModuleDict({name: load(name, "TERM")(student, run) for name in self.p.terms})
        # in a tuple, so that 80 million frozen weights are neither saved in every restart state nor averaged
        self.frozen = (as_imagenet_left_it(run),) if self.p.feature_distance and run.from_imagenet else ()
        is_thing = torch.zeros(256, dtype=torch.bool)
        is_thing[list(run.classes.things)] = True
        self.register_buffer("is_thing", is_thing, persistent=False)
        self.register_buffer("is_static", night.static_classes(run.classes.names), persistent=False)
        weight = None
        if self.p.day_reference:
            weight = torch.ones(256)
            weight[: self.classes] = night.reference_weights(run, self.p.day_reference.balance)
        self.register_buffer("class_weight", weight, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the frozen encoder along."""
        for module in self.frozen:
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def views(self) -> Views:
        views = Views(
            crop_max_ratio=self.p.crop_max_ratio,
            rare_class_temperature=self.p.rare_class_temperature,
            whole_target=self.p.target_crop == "balanced",
            reference=self.p.day_reference is not None,
            border=self.run.train.border if self.run.train.border.of == "image" else None,
        )
        for term in self.each_term():
            views = term.views(views)
        return views

    def each_term(self) -> list[Term]:
        return [typing.cast(Term, term) for term in self.terms.values()]

    @property
    def teacher_network(self) -> Segmenter:
        return typing.cast(Segmenter, self.teacher.module)

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        with torch.no_grad():
            if self.p.target_crop == "balanced":
                self.crop_target(batch)
            batch.pseudo, batch.weight = self.pseudo_labels(batch)
            for term in self.each_term():
                term.before(batch, step, self)

        image = batch.image if self.p.source_view == "weak" else self.strong(batch.image, "source", batch, step)
        source = self.student.normalise(image)
        output = self.student(source, boxes=self.box("source", source, step))
        losses = {"source": self.student.loss(output, batch.label, self.class_balanced(batch.label))}
        if self.frozen:
            distance = distance_to(
                self.frozen[0], source, output, batch.label, self.is_thing, self.p.feature_distance_ratio
            )
            losses["feature_distance"] = self.p.feature_distance * distance
        for term in self.each_term():
            losses |= term.on_source(batch, output, step)
        yield losses
        del output, losses  # the graph of this pass must not outlive it

        for term in self.each_term():
            yield from term.own_passes(batch, step, self)

        mixed, label, weight = self.mix(batch, step)
        chosen = next((found for term in self.each_term() if (found := term.boxes(step)) is not None), None)
        output = self.student(self.student.normalise(mixed), boxes=chosen or self.box("mixed", mixed, step))
        losses = {"mixed": self.student.loss(output, label, self.class_balanced(label, weight))}
        for term in self.each_term():
            losses |= term.on_mixed(batch, output, label, weight, step)
        yield losses

    def pseudo_labels(self, batch: Batch, teacher: Segmenter | None = None) -> tuple[Tensor, Tensor]:
        """The teacher's labels (B, H, W) of the unaugmented target and their pixel weights (B, H, W): (T4), (T5)."""
        probability = self.teacher_probabilities(batch, teacher)
        label, q = pseudo_labels(probability, self.p.threshold, per_image=self.per_image)
        return label, self.bordered(q[:, None, None].expand(label.shape), batch)

    def bordered(self, weight: Tensor, batch: Batch) -> Tensor:
        """Weights (B, H, W), 0 where the target gets no pseudo-labels."""
        if batch.inside is not None:
            return weight * batch.inside
        border = self.run.train.border
        return without_border(weight, border.top, border.bottom, border.left, border.right)

    def teacher_probabilities(self, batch: Batch, teacher: Segmenter | None = None) -> Tensor:
        """What the teacher sees in the target images, (B, K, H, W); with a day reference, weighted by class too."""
        teacher = teacher or self.teacher_network

        def of(images: Tensor | None) -> Tensor:
            assert images is not None
            return fp32(teacher.predict(teacher.normalise(images), (images.shape[-2], images.shape[-1]))).softmax(dim=1)

        seen, reference = of(batch.target), self.p.day_reference
        if reference is None or self.class_weight is None:
            return seen
        both = night.day_and_night(of(batch.reference), seen, self.is_static, reference.confident, reference.weight)
        return both * self.class_weight[: self.classes, None, None]

    def crop_target(self, batch: Batch) -> None:
        """Class-balanced cropping: cut each whole target image where the teacher sees the most even mix of classes."""
        assert batch.target is not None and batch.corners is not None
        if tuple(batch.target.shape[-2:]) == (self.run.train.crop.height, self.run.train.crop.width):
            return  # nothing to choose from, and the pseudo-labels need this pass anyway
        label, size = self.teacher_probabilities(batch).argmax(dim=1), self.run.train.crop
        corner = best_corner(label, batch.corners, size, self.classes, self.p.crop_max_ratio)
        batch.target = cut(batch.target, corner, size)
        if batch.reference is not None:
            batch.reference = cut(batch.reference, corner, size)
        if batch.inside is not None:
            batch.inside = cut(batch.inside[:, None], corner, size)[:, 0]

    def class_balanced(self, label: Tensor, weight: Tensor | None = None) -> Tensor | None:
        """Pixel weights (B, H, W) times the weights of the labels' classes, where the recipe has any."""
        if self.class_weight is None:
            return weight
        return self.class_weight[label] if weight is None else self.class_weight[label] * weight

    @torch.no_grad()
    def mix(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mixed images (B, 3, H, W) with strong augmentation, their labels and pixel weights (B, H, W)."""
        pseudo, weight = batch.pseudo, batch.weight
        assert batch.target is not None and pseudo is not None and weight is not None
        keys = torch.stack(
            [torch.from_numpy(stream(self.run.seed, "classmix", n).random(self.classes + 1)) for n in batch.index]
        ).to(batch.label.device, torch.float32, non_blocking=True)
        mask = class_mask(batch.label, keys, per_image=self.per_image)
        image = paste(mask, batch.image, batch.target)
        label = paste(mask, batch.label, pseudo)
        return self.strong(image, "mixed", batch, step), label, paste(mask, torch.ones_like(weight), weight)

    @torch.no_grad()
    def strong(
        self, images: Tensor, purpose: str, batch: Batch, step: int, *, own_gates: bool = False, alike: bool = False
    ) -> Tensor:
        seed, p = self.run.seed, self.p
        rngs = [stream(seed, purpose, n) for n in batch.index]
        # one decision a step for all views, as in the released code
        gates = stream(seed, f"gates {purpose}" if own_gates else "gates", step)
        common = stream(seed, f"{purpose} of all", step) if alike else None
        return strong_augment(images, gates, rngs, p.jitter, p.blur, common)

    def after_step(self, step: int) -> None:
        # t = step + 1: the teacher that labels the next step has seen this one (t = 0 is the copy it was built as)
        self.teacher.update(self.student, step + 1)
        for term in self.each_term():
            term.after_step(step)

    def scored(self) -> dict[str, nn.Module]:
        return {"": self.student, "teacher.": self.teacher.module}

    @staticmethod
    def test_views(run: Run, student: Segmenter) -> dict[str, Predict]:
        return night.test_views(run, student)


METHOD = SelfTrainingMethod
