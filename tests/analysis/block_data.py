"""Labels made of blocks, a data set in memory and a network without weights."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.classes import NAMES

STRIDE = 4


@dataclass(frozen=True)
class FakeSample:
    name: str
    label: str = "label"


@dataclass
class FakeData:
    """Stands for udaseg.data.prepared.Prepared: labels (H, W), and images whose red is the label and the rest noise."""

    labels: list[np.ndarray]
    classes: tuple[str, ...] = NAMES

    def samples(self, split: str) -> list[FakeSample]:
        return [FakeSample(str(i)) for i in range(len(self.labels))]

    def label(self, sample: FakeSample) -> np.ndarray:
        return self.labels[int(sample.name)]

    def image(self, sample: FakeSample) -> np.ndarray:
        label = self.label(sample)
        image = np.random.default_rng(int(sample.name)).integers(1, 50, (*label.shape, 3), dtype=np.uint8)
        image[..., 0] = 10 * label
        return image


class Pooled(nn.Module):
    """Stands for a Segmenter: the feature is the mean colour of a cell."""

    feature_channels = 3

    def normalise(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(feature=F.avg_pool2d(images, STRIDE))


def blocks(seed: int, classes: int, size: tuple[int, int] = (6, 10)) -> np.ndarray:
    """A label whose cells are pure but for the first, which is mixed, and the second, where one pixel is void."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, size, dtype=np.uint8).repeat(STRIDE, 0).repeat(STRIDE, 1)
    label[0, 0], label[0, STRIDE] = (label[1, 1] + 1) % classes, 255
    return label
