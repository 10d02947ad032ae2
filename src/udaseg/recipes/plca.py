"""What PLCA leaves to be set: docs/methods/plca.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from udaseg.recipes import Paper, Start, Variant


@dataclass(frozen=True)
class Plca:
    variant: Variant
    terms: tuple[str, ...]
    init: Start
    association: float  # weight of each level
    levels: tuple[Literal["feature", "prediction"], ...]
    aggregation: float  # alpha: share of the similarity-weighted mean in each target vector; 0: off
    lsr: float  # weight of adaptive smoothing on the source
    lsr_target: float
    lsr_limit: float  # where it turns from sharpening to smoothing
    lovasz: float
    floor: float  # least standard deviation of a row of similarities
    stride: int  # of the grid on which pixels are associated
    tile: int  # rows of similarities in memory at a time
    max_pixels: int | None  # positions drawn from each image; None: all
    exclude_self: bool  # drop cycles that end where they began
    scale: tuple[float, float] | None
    crop_max_ratio: float
    rare_class_temperature: float | None
    native: dict[str, Any] = field(default_factory=dict)
    contrast: ClassVar[tuple[str, ...]] = (
        *("association", "levels", "aggregation", "floor", "stride", "tile"),
        *("max_pixels", "exclude_self"),
    )

    @property
    def contrasts(self) -> bool:
        return bool(self.levels) and self.association > 0


PAPER = Paper(Plca, colour="#009e73")
