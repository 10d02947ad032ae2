"""What BCL leaves to be set: docs/methods/bcl.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from udaseg.checking import Count, Factors, Positive, Ratio, Share, Temperature, Weight
from udaseg.recipes import Paper, Start, Variant


@dataclass(frozen=True)
class Bcl:
    variant: Variant
    terms: tuple[str, ...]
    init: Start
    rounds: Count
    portion: Share  # share of pixels that a round labels, for each class and image
    target: Weight  # of the target's cross-entropy and entropy
    entropy: Weight
    forward: Weight
    backward: Weight
    temperature: Positive
    labels: Literal["static", "dynamic", "hybrid"]
    confidence: Share  # of dynamic labels
    hybrid_in: Literal["prototypes", "prototypes+anchors"]
    prototypes: Literal["pair", "batch"]
    normalise: bool
    calibration: Literal["none", "static", "hybrid"]  # by which target labels the bias is measured
    momentum: Share  # of the calibration
    feature: Literal["auto", "branches", "stage", "decoder"]
    split_stem: bool
    scale: Factors | None
    crop_max_ratio: Ratio
    rare_class_temperature: Temperature | None
    native: dict[str, Any] = field(default_factory=dict)
    contrast: ClassVar[tuple[str, ...]] = (
        *("forward", "backward", "temperature", "labels", "confidence", "hybrid_in", "prototypes", "normalise"),
        *("calibration", "momentum", "feature"),
    )

    @property
    def contrasts(self) -> bool:
        return self.forward > 0 or self.backward > 0


PAPER = Paper(Bcl, colour="#e69f00")
