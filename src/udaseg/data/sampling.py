"""What the trainer is fed: the n-th training pair as a pure function of (seed, n).

Worker count, prefetching, restarts and the number of ranks therefore change nothing: step s of a global batch of size B
consists of the pairs s*B .. s*B+B-1, whoever loads them. Sources: docs/methods/self_training.md (crops, rare class sampling).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from udaseg.data.labels import IGNORE, ClassSpace
from udaseg.data.prepared import Prepared, Sample
from udaseg.errors import UserError
from udaseg.params import RareClass, Size

REDRAWS = 10  # DAFormer: both for cat_max_ratio and for the rare class


@dataclass(frozen=True)
class Views:
    """What a method wants to see of each pair.

    Attributes:
        labelled: which domain brings images with labels.
        unlabelled: whether target images without labels come along.
        crop_max_ratio: redraw a labelled crop that one class fills to this share or more; 1 turns the test off.
        rare_class_temperature: T of rare class sampling; None draws labelled images uniformly.
    """

    labelled: str = "source"
    unlabelled: bool = True
    crop_max_ratio: float = 1.0
    rare_class_temperature: float | None = None


def rare_class_probabilities(pixels: np.ndarray, temperature: float) -> np.ndarray:
    """P(c) of rare class sampling (DAFormer eq. 8) from (K,) pixel counts; classes that never occur get 0. Oracles O1, O2."""
    pixels = np.asarray(pixels, np.float64)
    present = pixels > 0
    exponent = (1 - pixels / pixels.sum()) / temperature
    exponent -= exponent[present].max()  # (1 - f) / 0.01 reaches 100
    weights = np.exp(exponent) * present
    return weights / weights.sum()


class Pairs(Dataset[dict[str, Tensor]]):
    """Item n: a labelled crop and an unlabelled target crop, as uint8 tensors.

    Keys: `index` (), `image` (3, H, W), `label` (H, W) in the benchmark's class space, `target` (3, H, W).
    """

    def __init__(
        self,
        views: Views,
        source: tuple[Prepared, str],
        target: tuple[Prepared, str],
        *,
        classes: ClassSpace,
        crop: Size,
        rare_class: RareClass,
        seed: int,
    ) -> None:
        """`source` and `target` are prepared sets with the name of a split.

        Raises:
            UserError: a split without images, a labelled image without label, no file rich enough in some class.
        """
        self.views, self.crop, self.rare, self.seed = views, crop, rare_class, seed
        labelled, split = source if views.labelled == "source" else target
        self.labelled, self.labelled_samples = labelled, labelled.samples(split)
        self.target, self.target_samples = target[0], target[0].samples(target[1])
        for name, samples in ((split, self.labelled_samples), (target[1], self.target_samples)):
            if not samples:
                raise UserError(f"split {name!r} holds no image; prepare the data set again")
        for sample in self.labelled_samples:
            if sample.label is None:
                raise UserError(
                    f"{split}/{sample.name} has no label, and the {views.labelled} domain is trained with labels"
                )
        self.lut = classes.lut(labelled.classes)
        self.classes = classes
        if views.rare_class_temperature is not None:
            counts = class_counts(self.labelled_samples, self.lut, len(classes))
            self.probability = rare_class_probabilities(counts.sum(axis=0), views.rare_class_temperature)
            self.files = files_with_class(counts, rare_class.pixels, classes)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, n])
        wanted = None
        if self.views.rare_class_temperature is not None:
            wanted = int(rng.choice(len(self.classes), p=self.probability))
            sample = self.labelled_samples[int(rng.choice(self.files[wanted]))]
        else:
            sample = self.labelled_samples[self._shuffled(n, len(self.labelled_samples), "labelled")]
        image, label = self.labelled.image(sample), self.lut[self.labelled.label(sample)]
        image, label = self._labelled_crop(rng, image, label, wanted)
        item = {"index": torch.tensor(n), "image": as_tensor(image), "label": torch.from_numpy(label)}
        if self.views.unlabelled:
            if wanted is None:
                chosen = self._shuffled(n, len(self.target_samples), "target")
            else:  # DAFormer: under rare class sampling the target is drawn with replacement
                chosen = int(rng.integers(len(self.target_samples)))
            picture = self.target.image(self.target_samples[chosen])
            top, left = offset(rng, picture.shape, self.crop)
            item["target"] = as_tensor(flip(cut(picture, top, left, self.crop), rng.random() < 0.5))
        return item

    def _labelled_crop(
        self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray, wanted: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(REDRAWS + 1 if wanted is not None else 1):
            top, left, piece = self._mixed_crop(rng, label)
            if wanted is not None and int((piece == wanted).sum()) > self.rare.crop_pixels:
                break
        mirrored = rng.random() < 0.5
        return flip(cut(image, top, left, self.crop), mirrored), flip(piece, mirrored)

    def _mixed_crop(self, rng: np.random.Generator, label: np.ndarray) -> tuple[int, int, np.ndarray]:
        """A crop that no class fills to `crop_max_ratio`, or the last of ten redraws; with its top and left corner."""
        for _ in range(REDRAWS + 1):
            top, left = offset(rng, label.shape, self.crop)
            piece = cut(label, top, left, self.crop)
            if self.views.crop_max_ratio >= 1:
                break
            counts = np.bincount(piece.reshape(-1), minlength=256)[:IGNORE]
            if (counts > 0).sum() > 1 and counts.max() < self.views.crop_max_ratio * counts.sum():
                break
        return top, left, piece

    def _shuffled(self, n: int, length: int, purpose: str) -> int:
        """Position n of an endless sequence of permutations: every image once before any comes again."""
        key = [self.seed, n // length, {"labelled": 1, "target": 2}[purpose], length]
        return int(np.random.default_rng(key).permutation(length)[n % length])


class Steps(Sampler[list[int]]):
    """Index lists for one rank: micro-batch a of step s holds the rank's share of the pairs s*B + a*B/A ..."""

    def __init__(self, first: int, last: int, *, batch: int, accumulate: int, rank: int, world: int) -> None:
        if batch % (accumulate * world):
            raise UserError(
                f"a global batch of {batch} cannot be split over {world} processes x {accumulate} accumulation steps; "
                f"choose run.gpus_per_run and train.accumulate so that their product divides train.batch"
            )
        self.steps = range(first, last)
        self.batch, self.accumulate, self.rank, self.share = batch, accumulate, rank, batch // accumulate // world

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            for micro in range(self.accumulate):
                start = step * self.batch + micro * (self.batch // self.accumulate) + self.rank * self.share
                yield list(range(start, start + self.share))

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate


def class_counts(samples: Sequence[Sample], lut: np.ndarray, classes: int) -> np.ndarray:
    """(files, K) pixel counts in the benchmark's classes from the full-size counts of the manifest."""
    counts = np.zeros((len(samples), classes + 1), np.int64)
    for row, sample in zip(counts, samples, strict=True):
        for value, pixels in (sample.counts or {}).items():
            row[min(int(lut[value]), classes)] += pixels
    return counts[:, :classes]


def files_with_class(counts: np.ndarray, pixels: int, classes: ClassSpace) -> list[np.ndarray]:
    """For each class the indices of the files with more than `pixels` pixels of it (strict, as DAFormer). Oracle O3.

    Raises:
        UserError: a class that occurs has no such file; the message names it.
    """
    files = [np.flatnonzero(counts[:, k] > pixels) for k in range(len(classes))]
    for k, found in enumerate(files):
        if not len(found) and counts[:, k].any():
            raise UserError(
                f"rare class sampling: no labelled image holds more than {pixels} pixels of {classes.names[k]!r} "
                f"(most: {counts[:, k].max()}); lower train.rare_class.pixels"
            )
    return files


def offset(rng: np.random.Generator, shape: tuple[int, ...], crop: Size) -> tuple[int, int]:
    """Top and left corner of a uniformly drawn crop; 0 where the image is not larger than the crop."""
    return int(rng.integers(max(shape[0] - crop.height, 0) + 1)), int(rng.integers(max(shape[1] - crop.width, 0) + 1))


def cut(picture: np.ndarray, top: int, left: int, crop: Size) -> np.ndarray:
    """The crop; where the picture is smaller it is padded at the right and below (label 255, image mid-grey)."""
    piece = picture[top : top + crop.height, left : left + crop.width]
    missing = (crop.height - piece.shape[0], crop.width - piece.shape[1])
    if any(missing):
        pad = ((0, missing[0]), (0, missing[1]), (0, 0))[: picture.ndim]
        piece = np.pad(piece, pad, constant_values=IGNORE if picture.ndim == 2 else 128)
    return piece


def flip(picture: np.ndarray, mirrored: bool) -> np.ndarray:
    return np.ascontiguousarray(picture[:, ::-1] if mirrored else picture)


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) to (3, H, W), uint8."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
