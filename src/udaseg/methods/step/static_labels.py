"""Static pseudo-labels of a round, (B9) of docs/methods/bcl.md: the most confident of each class and of each image.

The scheme of Li et al., Content-Consistent Matching, ECCV 2020, which BCL takes over.
shapes: B images, K classes, H W image size
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udaseg import ranks
from udaseg.classes import IGNORE
from udaseg.losses.bcl import bincount
from udaseg.losses.segmentation import fp32
from udaseg.methods.base import Images
from udaseg.models import Segmenter

# Confidences are kept as 16-bit levels, equidistant in log-odds. That is fine where a trained network puts most pixels,
# next to 1, and within 1e-4 of the probability everywhere.
LEVELS = 65536
LOWEST, HIGHEST = -6.0, 17.0  # below 1/255, the least confident winner of 254 classes; above the last float32 before 1


def confidence_level(probability: Tensor) -> Tensor:
    """The level 0 .. 65535 (int32) of each probability; monotone."""
    odds = torch.logit(fp32(probability)).clamp(LOWEST, HIGHEST)
    return ((odds - LOWEST) * ((LEVELS - 1) / (HIGHEST - LOWEST))).int()


def level_histogram(group: Tensor, level: Tensor, groups: int) -> Tensor:
    """(groups, 65536) numbers of pixels at each level; `group` and `level` broadcast, groups are 0 .. groups - 1."""
    return bincount(group.long() * LEVELS + level, groups * LEVELS).view(groups, LEVELS)


def share_threshold(histogram: Tensor, share: float) -> Tensor:
    """The level (groups,) of the last of the top `share` of each group: of the int(n * share)-th largest (B9).

    A group too small for one such pixel gets 65536, above every level, where the released code takes the group's
    minimum. Oracles o10, o11.
    """
    kept = (histogram.sum(dim=1).double() * share).long()
    at_or_above = histogram.flip(1).cumsum(dim=1).flip(1)
    last = (at_or_above >= kept[:, None]).sum(dim=1) - 1
    return torch.where(kept > 0, last, LEVELS)


def passes_own(label: Tensor, level: Tensor, thresholds: Tensor) -> Tensor:
    """Where the predicted class reaches its threshold (K,): labels and levels of the winning class, both (B, H, W)."""
    return level >= thresholds[label.long()]


def passes_any(probability: Tensor, thresholds: Tensor) -> Tensor:
    """Where any class reaches its threshold, as the released code has it: (B, K, H, W) to (B, H, W)."""
    return (confidence_level(probability) >= thresholds[:, None, None]).any(dim=1)


def passes_locally(level: Tensor, share: float) -> Tensor:
    """The most confident `share` of each image (B, H, W), without the last of them: the comparison is strict."""
    image = torch.arange(len(level), device=level.device)[:, None, None]
    return level > share_threshold(level_histogram(image, level, len(level)), share)[:, None, None]


def static_labels(label: Tensor, globally: Tensor, locally: Tensor) -> Tensor:
    """Predicted labels (B, H, W) where one of the two masks holds, 255 elsewhere."""
    return torch.where(globally | locally, label, IGNORE)


@torch.no_grad()
def label_images(
    network: Segmenter, images: Images, labels: np.ndarray, classes: int, share: float, *, any_class: bool
) -> None:
    """Fill `labels` (images, H, W) uint8, 255 everywhere before, with those of `images` (`methods.base.Images`).

    The network should be in evaluation mode. The thresholds of the classes need all images of all ranks first, so confidences
    wait in an unnamed file beside the labels. `any_class`: the released rule; it asks for the probabilities of all classes,
    which are too many to keep, and so for a second pass of the network.
    """

    def probabilities(image: Tensor) -> Tensor:
        size = (image.shape[1], image.shape[2])
        return network.predict(network.normalise(image[None]), size).softmax(dim=1)

    folder = Path(labels.filename).parent if isinstance(labels, np.memmap) and labels.filename else None
    with tempfile.TemporaryFile(dir=folder) as file:
        for picture in labels:  # written, not mapped: a full disk is an error then, and does not end the process
            file.write(bytes(2 * picture.size))
        file.flush()
        levels = np.memmap(file, np.uint16, "r+", shape=labels.shape)
        histogram = torch.zeros(classes, LEVELS, dtype=torch.int64, device=network.mean.device)
        sizes: dict[int, tuple[int, int]] = {}
        for n, image in images():
            confidence, label = probabilities(image).max(dim=1)
            level = confidence_level(confidence)
            histogram += level_histogram(label, level, classes)
            h, w = sizes[n] = (image.shape[1], image.shape[2])
            labels[n, :h, :w], levels[n, :h, :w] = label[0].cpu(), level[0].cpu()

        thresholds = share_threshold(ranks.total(histogram), share)
        again: Iterator[tuple[int, Tensor | None]] = images() if any_class else ((n, None) for n in sizes)
        for n, picture in again:
            h, w = sizes[n]
            label = torch.from_numpy(labels[None, n, :h, :w]).to(thresholds.device)
            level = torch.from_numpy(levels[None, n, :h, :w].astype(np.int32)).to(thresholds.device)
            if picture is None:
                passes = passes_own(label, level, thresholds)
            else:
                passes = passes_any(probabilities(picture), thresholds)
            labels[n, :h, :w] = static_labels(label, passes, passes_locally(level, share))[0].cpu()
