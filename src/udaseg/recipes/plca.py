"""What PLCA leaves to be set: docs/methods/plca.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from udaseg.checking import Count, Factors, Positive, Ratio, Share, Temperature, Weight
from udaseg.recipes import Paper, Start, Variant


@dataclass(frozen=True)
class Plca:
    variant: Variant
    terms: tuple[str, ...]
    init: Start
    association: Weight  # weight of each level
    levels: tuple[Literal["feature", "prediction"], ...]
    aggregation: Share  # alpha: share of the similarity-weighted mean in each target vector; 0: off
    lsr: Weight  # weight of adaptive smoothing on the source
    lsr_target: Weight
    lsr_limit: Positive  # where it turns from sharpening to smoothing
    lovasz: Weight
    floor: Positive  # least standard deviation of a row of similarities
    stride: Count  # of the grid on which pixels are associated
    tile: Count  # rows of similarities in memory at a time
    max_pixels: Count | None  # positions drawn from each image; None: all
    exclude_self: bool  # drop cycles that end where they began
    scale: Factors | None
    crop_max_ratio: Ratio
    rare_class_temperature: Temperature | None
    native: dict[str, Any] = field(default_factory=dict)
    contrast: ClassVar[tuple[str, ...]] = (
        *("association", "levels", "aggregation", "floor", "stride", "tile"),
        *("max_pixels", "exclude_self"),
    )

    @property
    def contrasts(self) -> bool:
        return bool(self.levels) and self.association > 0


PAPER = Paper(Plca, colour="#009e73")
