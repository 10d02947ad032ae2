"""What source-only training leaves to be set: docs/methods/source_only.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from udaseg.checking import Ratio
from udaseg.recipes import Paper, Start, Variant


@dataclass(frozen=True)
class Supervised:
    """source_only and oracle: cross-entropy on one labelled domain."""

    variant: Variant
    terms: tuple[str, ...]
    init: Start
    photometric: bool
    crop_max_ratio: Ratio
    native: dict[str, Any]
    contrast: ClassVar[tuple[str, ...]] = ()
    contrasts: ClassVar[bool] = False


PAPER = Paper(Supervised, colour="#d0d0d0")
