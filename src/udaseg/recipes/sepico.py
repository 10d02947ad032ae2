"""What SePiCo leaves to be set: docs/methods/sepico.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from udaseg.checking import Count, Positive, Range, Share, Weight
from udaseg.recipes import Paper


@dataclass(frozen=True)
class Statistics:
    """SePiCo's running moments of the source classes."""

    start: Share  # fraction of the run
    momentum: Share | None  # None: cumulative over the run, as released


@dataclass(frozen=True)
class Bank:
    """SePiCo's centroids of the last batches of each class."""

    length: Count  # at most
    span: Share  # in steps, as a fraction of the run
    zero: bool  # begin with one zero vector for each class, as released


@dataclass(frozen=True)
class Sepico:
    prototype: Literal["proto", "bank", "dist"]
    temperature: Positive
    weight: Weight
    regulariser: Weight
    regulariser_sign: Literal["official", "uniform"]
    start: Share  # fraction of the run
    statistics: Statistics
    bank: Bank
    cell_ratio: Share
    width: Annotated[float, Range(above=0, most=64)]  # of the embedding, times the model's `width`
    domains: tuple[Literal["source", "target"], ...]


PAPER = Paper(Sepico, term=True, contrasts=True, colour="#0072b2")
