"""What the trainer is fed: the n-th training pair as a pure function of (seed, n).

Worker count, prefetching, restarts and the number of ranks therefore change nothing: step s of a global batch of size B
consists of the pairs s*B .. s*B+B-1, whoever loads them. Crops and rare class sampling
(RCS): docs/methods/self_training.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from udaseg.classes import IGNORE, ClassSpace
from udaseg.data.prepared import Prepared, Sample
from udaseg.errors import UserError
from udaseg.params import Border, RareClass, Size

if TYPE_CHECKING:
    from udaseg.data.two_crops import PairViews

REDRAWS = 10  # DAFormer: both for cat_max_ratio and for the rare class
CANDIDATES = 10  # SePiCo: crops of a target image to choose from
PAIR = 1  # tells the pair's random numbers from those of the crop


@dataclass(frozen=True)
class Views:
    """What a method wants to see of each pair.

    Attributes:
        labelled: which domain brings images with labels.
        unlabelled: whether target images without labels come along.
        crop_max_ratio: redraw a labelled crop that one class fills to this share or more; 1 turns the test off.
        rare_class_temperature: T of rare class sampling; None draws labelled images uniformly.
        scale: range of a random factor on image sizes before cropping, drawn for each domain; None: as prepared.
        whole_target: the target image uncropped, with candidate crops to choose from.
        reference: the day image of the target's place too.
        static: the round's labels of the target too.
        pair: two overlapping crops of the target image too.
        border: margins of the whole target image; a mask of what lies inside them too.
    """

    labelled: str = "source"
    unlabelled: bool = True
    crop_max_ratio: float = 1.0
    rare_class_temperature: float | None = None
    scale: tuple[float, float] | None = None
    whole_target: bool = False
    reference: bool = False
    static: bool = False
    pair: PairViews | None = None
    border: Border | None = None


def rare_class_probabilities(pixels: np.ndarray, temperature: float) -> np.ndarray:
    """P(c) of rare class sampling (T9) from (K,) pixel counts; classes that never occur get 0. Oracles o1, o2."""
    pixels = np.asarray(pixels, np.float64)
    present = pixels > 0
    exponent = (1 - pixels / pixels.sum()) / temperature
    exponent -= exponent[present].max()  # (1 - f) / 0.01 reaches 100
    weights = np.exp(exponent) * present
    return weights / weights.sum()


class Pairs(Dataset[dict[str, Tensor]]):
    """Item n: a labelled crop and an unlabelled target crop, as uint8 tensors.

    Keys: `index` (), `image` (3, H, W), `label` (H, W) in the benchmark's class space, `target` (3, H, W); and what the views
    ask for, under the names of `methods.base.Batch`.
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
        static: Path | None = None,
    ) -> None:
        """`source` and `target` are prepared sets with the name of a split, `static` the file of a round's labels.

        Raises:
            UserError: a split without images, a labelled image without label, a class without a pixel in the source, no file
                rich enough in some class, a target image without day reference or too small for the pair of crops.
        """
        self.static = static
        self._static: tuple[int, np.ndarray] | None = None  # of one process
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
        counts = class_counts(self.labelled_samples, self.lut, len(classes))
        missing = [classes.names[k] for k in np.flatnonzero(~counts.any(axis=0))]
        if views.labelled == "source" and missing:
            raise UserError(
                f"{labelled.folder} ({split}): no pixel of {', '.join(missing)} in the source, so they cannot be learned; "
                f"choose `classes` without them"
            )
        if views.rare_class_temperature is not None:
            self.probability = rare_class_probabilities(counts.sum(axis=0), views.rare_class_temperature)
            self.files = files_with_class(counts, rare_class.pixels, classes)
        sizes = [sample.image_size for sample in self.target_samples]
        self.whole = Size(max(crop.width, *(w for w, _ in sizes)), max(crop.height, *(h for _, h in sizes)))
        if views.unlabelled and views.reference:
            bare = next((sample.name for sample in self.target_samples if not sample.reference), None)
            if bare is not None:
                raise UserError(
                    f"{target[0].folder} ({target[1]}): {bare} has no day reference, which `day_reference` needs; choose a "
                    f"target that has them (dark_zurich) or `day_reference: null`"
                )
        if views.pair is not None:
            views.pair.check(sizes, f"{target[0].folder} ({target[1]})")

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, n])
        wanted = None
        if self.views.rare_class_temperature is not None:
            wanted = int(rng.choice(len(self.classes), p=self.probability))
            sample = self.labelled_samples[int(rng.choice(self.files[wanted]))]
        else:
            sample = self.labelled_samples[self._shuffled(n, len(self.labelled_samples), "labelled")]
        image, label = self.labelled.image(sample), self.lut[self.labelled.label(sample)]
        if self.views.scale:
            factor = rng.uniform(*self.views.scale)
            image, label = resized(image, factor), resized(label, factor)
        image, label = self._labelled_crop(rng, image, label, wanted)
        item = {"index": torch.tensor(n), "image": as_tensor(image), "label": torch.from_numpy(label)}
        if self.views.unlabelled:
            if wanted is None:
                chosen = self._shuffled(n, len(self.target_samples), "target")
            else:  # DAFormer: under rare class sampling the target is drawn with replacement
                chosen = int(rng.integers(len(self.target_samples)))
            item |= self._target(rng, chosen)
            if self.views.pair is not None:
                picture = self.target.image(self.target_samples[chosen])
                item |= self.views.pair.draw(np.random.default_rng([self.seed, n, PAIR]), picture)
        return item

    def _target(self, rng: np.random.Generator, chosen: int) -> dict[str, Tensor]:
        """The target image and what belongs to its pixels, all with the same geometry."""
        sample = self.target_samples[chosen]
        pictures = {"target": self.target.image(sample)}
        height, width = pictures["target"].shape[:2]
        if self.views.reference:
            pictures["reference"] = self.target.reference(sample)
        if self.views.static:
            pictures["static"] = self._static_labels()[chosen, :height, :width]
        if self.views.border is not None:
            pictures["inside"] = inside(self.views.border, height, width)
        if self.views.scale:
            factor = rng.uniform(*self.views.scale)
            pictures = {name: resized(picture, factor) for name, picture in pictures.items()}
        shape, item = pictures["target"].shape, {}
        if self.views.whole_target:
            item["corners"] = torch.tensor([offset(rng, shape, self.crop) for _ in range(CANDIDATES)])
            top, left, size = 0, 0, self.whole
        else:
            (top, left), size = offset(rng, shape, self.crop), self.crop
        mirrored = rng.random() < 0.5
        if self.views.whole_target:  # candidate crops lie in the image, which padding follows
            pictures = {name: flip(picture, mirrored) for name, picture in pictures.items()}
            mirrored = False
        for name, picture in pictures.items():
            piece = flip(cut(picture, top, left, size), mirrored)
            item[name] = torch.from_numpy(piece) if piece.ndim == 2 else as_tensor(piece)
        if "inside" in item:
            item["inside"] = item["inside"] == 1  # nor is padding inside
        return item

    def _static_labels(self) -> np.ndarray:
        """(images, H, W) uint8, mapped from disk once in each process."""
        if self._static is None or self._static[0] != os.getpid():
            assert self.static is not None
            self._static = (os.getpid(), np.load(self.static, mmap_mode="r"))
        return self._static[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_static": None}

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
    """For each class the indices of the files with more than `pixels` pixels of it (strict, as DAFormer). Oracle o3.

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


def resized(picture: np.ndarray, factor: float) -> np.ndarray:
    """Image (H, W, 3) bilinear, label (H, W) nearest."""
    how = Image.Resampling.NEAREST if picture.ndim == 2 else Image.Resampling.BILINEAR
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return np.array(Image.fromarray(picture).resize(size, how))  # a copy: torch wants to write


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


def inside(border: Border, height: int, width: int) -> np.ndarray:
    """(height, width) uint8, 1 inside the margins, else 0."""
    mask = np.zeros((height, width), np.uint8)
    top, bottom = round(border.top * height), height - round(border.bottom * height)
    mask[top:bottom, round(border.left * width) : width - round(border.right * width)] = 1
    return mask


def flip(picture: np.ndarray, mirrored: bool) -> np.ndarray:
    return np.ascontiguousarray(picture[:, ::-1] if mirrored else picture)


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) to (3, H, W), uint8."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
