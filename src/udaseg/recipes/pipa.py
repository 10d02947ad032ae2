"""What PiPa leaves to be set: docs/methods/pipa.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udaseg.recipes import Paper


@dataclass(frozen=True)
class PixelContrast:
    weight: float
    temperature: float
    base_temperature: float
    start: float  # fraction of the run
    anchors: int  # at most, over the global batch
    eligible: float  # a class of an image needs more cells than this share of them, and gives at most as many anchors
    width: int  # of the embedding


@dataclass(frozen=True)
class PatchContrast:
    weight: float
    temperature: float
    start: float
    crop: float  # side of the square crops, as a share of the target image's height
    scale: tuple[float, float]  # random factor on the target image
    iou: tuple[float, float]  # of the two crops
    confidence: float  # from which a view teaches the other
    mask: bool  # only towards the more confident view, and only where it is confident
    negatives: Literal["bank", "other_view"]
    bank_steps: int
    bank_share: float  # of each crop's cells that enter the bank
    width: int  # of the embedding
    jitter_p: float
    jitter: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    grey: float  # probability
    blur: float  # probability


@dataclass(frozen=True)
class Pipa:
    pixel: PixelContrast | None
    patch: PatchContrast | None


PAPER = Paper(Pipa, term=True, contrasts=True, colour="#d55e00")
