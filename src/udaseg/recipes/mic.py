"""What MIC leaves to be set: docs/methods/mic.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udaseg.recipes import Paper


@dataclass(frozen=True)
class Mic:
    """The names of the modes are those of the released code: `aug`: with strong augmentation."""

    mode: Literal["separatetrg", "separatetrgaug", "separate", "separateaug", "separatesrc", "separatesrcaug"]
    weight: float
    block: int  # side of the masked squares in pixels
    ratio: float  # of the squares that are masked
    teacher: Literal["shared", "student"] = "shared"  # student: labels of a teacher without memory
    confidence: bool = True  # pixel weights q; false: 1 everywhere


PAPER = Paper(Mic, term=True, contrasts=False, colour="#56b4e9")
