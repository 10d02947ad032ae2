"""What a data set is before it is prepared: its samples on disk, and what their label values mean."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udaseg.classes import IGNORE, NAMES


@dataclass(frozen=True)
class Encoding:
    """What the pixel values of a delivered label file mean.

    Attributes:
        table: file value -> prepared value (255 = void); a value that is not a key is an error.
        sixteen_bit: the value is the first of three 16-bit channels.
    """

    table: dict[int, int]
    sixteen_bit: bool = False

    @functools.cached_property
    def lut(self) -> list[int]:
        return [self.table.get(value, IGNORE) for value in range(256)]


@dataclass(frozen=True)
class Scene:
    """A rendered sample: which scene of which world, in which look (game or photo)."""

    index: int
    seed: int
    look: str


@dataclass(frozen=True)
class Item:
    """One sample as delivered: files, or a scene to render."""

    split: str
    name: str
    image: Path | None = None
    label: Path | None = None
    reference: Path | None = None  # the same place by day
    scene: Scene | None = None

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.image, self.label, self.reference) if path]


@dataclass(frozen=True)
class Found:
    """A data set as it lies on disk.

    Attributes:
        splits: split -> samples, sorted by name.
        classes: class of each prepared label value.
        origin: where the files come from; goes into the manifest.
        delivered: (width, height) that every delivered image must have, or None.
        excluded: names that were left out on request already.
        notes: lines to say about it: what was left out.
        totals: split -> prepared value -> pixels over the split (255 = void), where the true sums are known.
    """

    splits: dict[str, list[Item]]
    encoding: Encoding
    classes: tuple[str, ...] = NAMES
    origin: dict[str, Any] = field(default_factory=lambda: {"kind": "user"})
    delivered: tuple[int, int] | None = None
    totals: dict[str, dict[int, int]] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def labelled(self, split: str) -> bool:
        return any(item.label or item.scene for item in self.splits[split])
