"""Class colours for people's eyes: overlays, figures and the report. Files that other programs read keep the standard palette."""

from __future__ import annotations

import numpy as np

from udaseg.classes import CITYSCAPES, ClassSpace

# Cityscapes paints car, truck, bus and train in four dark blues. These keep their distance from one another and
# from the others (at least 0.15 in Oklab; the standard bus and train are 0.07 apart), in lightness too.
TOLD_APART = {"truck": (160, 90, 20), "bus": (0, 210, 255), "train": (150, 40, 255)}
STANDARD = {name: colour for name, _, colour in CITYSCAPES}


def shown(space: ClassSpace) -> tuple[tuple[int, int, int], ...]:
    """RGB of each class where it is looked at; a colour that the user has chosen stays."""
    return tuple(
        TOLD_APART.get(name, colour) if colour == STANDARD.get(name) else colour
        for name, colour in zip(space.names, space.colours, strict=True)
    )


def table(space: ClassSpace) -> np.ndarray:
    """(256, 3) uint8 of `shown`; 255 (void) is black."""
    found = np.zeros((256, 3), np.uint8)
    found[: len(space)] = shown(space)
    return found
