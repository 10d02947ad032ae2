"""What the self-training step leaves to be set: docs/methods/self_training.md. Terms add a block of their own, under their name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from udaseg.checking import Ascending, Hue, Positive, Ratio, Share, Temperature, Weight
from udaseg.recipes import Paper, Start, Variant, papers, terms


@dataclass(frozen=True)
class Jitter:
    p: Share
    strength: Hue
    definition: Literal["kornia", "torchvision"] = "torchvision"  # what brightness, contrast and saturation mean


@dataclass(frozen=True)
class Blur:
    p: Share
    sigma: Annotated[tuple[Positive, Positive], Ascending()]


@dataclass(frozen=True)
class DayReference:
    """Pseudo-labels of night images from the day image of the same place (SePiCo's Dark Zurich recipe)."""

    confident: Share
    weight: Share
    balance: Weight  # class weights 1 + balance * rarity, in the losses and the pseudo-labels
    test_balance: Weight  # the same on test probabilities, scored beside the headline
    frequency: tuple[Ratio, ...]  # of the classes, which says how rare they are


@dataclass(frozen=True)
class SelfTraining:
    """The self-training step (DACS, DAFormer), alone or with terms."""

    variant: Variant
    terms: tuple[str, ...]
    init: Start
    teacher_horizon: Weight  # as a fraction of the run
    threshold: Share
    source_view: Literal["weak", "strong"]
    crop_max_ratio: Ratio
    rare_class_temperature: Temperature | None
    feature_distance: Weight
    feature_distance_ratio: Share
    jitter: Jitter
    blur: Blur
    native: dict[str, Any]
    target_crop: Literal["random", "balanced"] = "random"
    day_reference: DayReference | None = None

    def block(self, term: str) -> Any:
        """The settings of a term; None where the block has none (params.py adds one key for each paper of the table)."""
        return getattr(self, term, None)

    @property
    def contrasts(self) -> bool:
        return any(papers()[term].contrasts for term in self.terms)

    @property
    def contrast(self) -> tuple[str, ...]:
        """Keys that the twin goes without; of `terms` it keeps those that do not contrast."""
        return tuple(term for term in terms() if papers()[term].contrasts)


PAPER = Paper(SelfTraining, colour="#707070")
