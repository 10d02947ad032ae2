"""What PiPa leaves to be set: docs/methods/pipa.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from udaseg.checking import Ascending, Count, Factors, Hue, Positive, Ratio, Share, Weight, Width
from udaseg.recipes import Paper


@dataclass(frozen=True)
class PixelContrast:
    weight: Weight
    temperature: Positive
    base_temperature: Positive
    start: Share  # fraction of the run
    anchors: Count  # at most, over the global batch
    eligible: Share  # a class of an image needs more cells than this share of them, and gives at most as many anchors
    width: Width  # of the embedding


@dataclass(frozen=True)
class PatchContrast:
    weight: Weight
    temperature: Positive
    start: Share
    crop: Ratio  # side of the square crops, as a share of the target image's height
    scale: Factors  # random factor on the target image
    iou: Annotated[tuple[Share, Share], Ascending()]  # of the two crops
    confidence: Share  # from which a view teaches the other
    mask: bool  # only towards the more confident view, and only where it is confident
    negatives: Literal["bank", "other_view"]
    bank_steps: Count
    bank_share: Ratio  # of each crop's cells that enter the bank
    width: Width  # of the embedding
    jitter_p: Share
    jitter: tuple[Share, Share, Share, Hue]  # brightness, contrast, saturation, hue
    grey: Share  # probability
    blur: Share  # probability


@dataclass(frozen=True)
class Pipa:
    pixel: PixelContrast | None
    patch: PatchContrast | None


PAPER = Paper(Pipa, term=True, contrasts=True, colour="#d55e00")
