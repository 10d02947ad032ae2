"""A data set that lives in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from udaseg.classes import NAMES


@dataclass(frozen=True)
class FakeSample:
    name: str
    label: str | None = "label"


@dataclass
class FakePrepared:
    """Stands for udaseg.data.prepared.Prepared: arrays by name instead of zips."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...] = NAMES
    bare: set[str] = field(default_factory=set)

    def samples(self, split: str) -> list[FakeSample]:
        return [FakeSample(name, None if name in self.bare else "label") for name in self.images]

    def image(self, sample: FakeSample) -> np.ndarray:
        return self.images[sample.name]

    def label(self, sample: FakeSample) -> np.ndarray:
        return self.labels[sample.name]


def random_data(sizes: list[tuple[int, int]], *, scale: int = 1, values: int = 4, seed: int = 0) -> FakePrepared:
    """Images of the given sizes (height, width); labels `scale` times as large, of trainIds below `values` and 255."""
    rng = np.random.default_rng(seed)
    choice = np.array([*range(values), 255], np.uint8)
    images = {f"{i}": rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for i, (h, w) in enumerate(sizes)}
    labels = {f"{i}": rng.choice(choice, (h * scale, w * scale)) for i, (h, w) in enumerate(sizes)}
    return FakePrepared(images, labels)
