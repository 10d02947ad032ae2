"""The oracle has the recipe of source-only training; it sees the target's labels."""

from __future__ import annotations

from udaseg.recipes import Paper
from udaseg.recipes.source_only import Supervised

PAPER = Paper(Supervised, colour="#303030", page="source_only")
