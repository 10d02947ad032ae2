"""What MIC leaves to be set: docs/methods/mic.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from udaseg.checking import Range, Weight
from udaseg.recipes import Paper


@dataclass(frozen=True)
class Mic:
    """The names of the modes are those of the released code: `aug`: with strong augmentation."""

    mode: Literal["separatetrg", "separatetrgaug", "separate", "separateaug", "separatesrc", "separatesrcaug"]
    weight: Weight
    block: Annotated[int, Range(least=1, most=8192)]  # side of the masked squares in pixels
    ratio: Annotated[float, Range(least=0, below=1)]  # of the squares that are masked
    teacher: Literal["shared", "student"] = "shared"  # student: labels of a teacher without memory
    confidence: bool = True  # pixel weights q; false: 1 everywhere


PAPER = Paper(Mic, term=True, contrasts=False, colour="#56b4e9")
