"""What CLUDA leaves to be set: docs/methods/cluda.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udaseg.checking import Count, Positive, Share, Weight, Width
from udaseg.recipes import Paper


@dataclass(frozen=True)
class Cluda:
    source: Weight
    mixed: Weight
    temperature: Positive
    stride: Count  # of the grid of pixels that are compared
    anchors: Count | None  # drawn uniformly from each image's grid positions; None: all
    gate: Literal["row", "both"]  # detail partners: all pixels of a class, or those inside the detail crop
    detail_crop: Literal["random", "entropy"]  # of the mixed images
    detail_start: Share  # fraction of the run from which `entropy` chooses
    width: Width  # of the learned weight's head, and of the projection where the network has no fused decoder map


PAPER = Paper(Cluda, term=True, contrasts=True, colour="#cc79a7")
