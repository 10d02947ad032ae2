"""Pixel features of both domains, with their true classes: docs/analysis.md.

A cell is one place of the feature map. It counts as pure where all label pixels below it have one class (DAFormer issue 56).
Which pure cells are taken depends on the ground truth, the size of the map and the seed, never on the network: all methods of
a benchmark are looked at in the same places.

shapes: B images, D channels, h w map size, H W label size, K classes, N cells
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.classes import IGNORE
from udaseg.data.prepared import find_prepared
from udaseg.errors import UserError
from udaseg.evaluation.loading import batches, decoders, samples_of
from udaseg.models import Segmenter
from udaseg.params import Run, Use, uses

log = logging.getLogger("udaseg")
SOURCE, TARGET = 0, 1


@dataclass(frozen=True)
class Cells:
    """N cells in the order domain, class, random key, so that the first few of a class are a random sample too.

    Attributes:
        feature: (N, D) float16, of unit length (a dead cell is 0).
        label: (N,) uint8, class index in the benchmark's space.
        domain: (N,) uint8, SOURCE or TARGET.
        image: (N,) int32, index in the split's samples.
        row, column: (N,) int16, place on the feature map.
    """

    feature: np.ndarray
    label: np.ndarray
    domain: np.ndarray
    image: np.ndarray
    row: np.ndarray
    column: np.ndarray


def draw_cells(run: Run, network: Segmenter, device: torch.device) -> tuple[Cells, dict[str, tuple[int, int]]]:
    """Sample the feature that `network` classifies: equally many cells of a class from source and target.

    Args:
        run: gives benchmark, class space and the block `analysis`.
        network: on the device, in evaluation mode.
        device: where.

    Returns:
        The cells, and what was left out: class name -> pure cells found in source and target (at most `per_class`).

    Raises:
        UserError: no labelled evaluation split, data not prepared, fewer than two classes left, features without use.
    """
    p = run.params.analysis
    target = next((use for use in uses(run.benchmark) if use.role == "evaluate"), None)
    if target is None:
        raise UserError(
            f"params.yaml: benchmarks.{run.benchmark_name}.evaluate: found none, expected a labelled split to analyse"
        )
    domains = (uses(run.benchmark)[0], target)
    cells = [draw_domain(run, use, domain, network, device) for domain, use in enumerate(domains)]
    found = np.stack([np.bincount(part["label"], minlength=len(run.classes)) for part in cells])
    share = np.where(found.min(0) >= p.least, found.min(0), 0)
    if np.count_nonzero(share) < 2:
        raise UserError(
            f"{domains[0].dataset}/{domains[0].split} and {target.dataset}/{target.split}: found "
            f"{np.count_nonzero(share)} classes with {p.least} pure cells in each, expected 2 at least; lower "
            f"analysis.least or raise analysis.images"
        )
    chosen = np.concatenate([part[first(part["label"], part["key"], share)] for part in cells])
    drawn = Cells(*(chosen[name] for name in Cells.__annotations__))
    if not np.isfinite(drawn.feature).all() or not np.ptp(drawn.feature, axis=0).any():
        raise UserError(
            f"{run.folder / 'model.safetensors'}: found features that are not finite or all the same, expected those "
            f"of a trained network; its training diverged: lower optimizer.lr and train again"
        )
    missing = np.flatnonzero(share == 0)
    return drawn, {run.classes.names[k]: (int(found[0, k]), int(found[1, k])) for k in missing}


@torch.inference_mode()
def draw_domain(run: Run, use: Use, domain: int, network: Segmenter, device: torch.device) -> np.ndarray:
    """At most `per_class` random pure cells of each class of one split.

    Only the best keys so far are kept, so that memory does not grow with the number of images.

    Returns:
        (N,) records `key` (float64) and the fields of `Cells`.
    """
    p, began = run.params.analysis, time.perf_counter()
    prepared = find_prepared(run.benchmark_name, use)
    samples = samples_of(prepared, use)
    chosen = np.sort(np.random.default_rng([p.seed, domain]).permutation(len(samples))[: p.images])
    most = np.full(len(run.classes), p.per_class)
    kept = np.empty(0, record(network.feature_channels))
    images = iter(chosen)
    for pixels, label in batches(prepared, [samples[i] for i in chosen], run.classes, decoders(device)):
        maps = network(network.normalise(pixels.to(device))).feature
        pure_label = pure_cells(label.to(device), (maps.shape[-2], maps.shape[-1]))
        for feature, pure in zip(maps, pure_label, strict=True):
            new = cells_of(feature, pure, p.seed, domain, int(next(images)), most)
            kept = np.concatenate([kept, new])
            kept = kept[first(kept["label"], kept["key"], most)]
    seconds = time.perf_counter() - began
    log.info("%s/%s: %d cells of %d images in %.1f s", use.dataset, use.split, len(kept), len(chosen), seconds)
    return kept


def record(channels: int) -> np.dtype:
    """One cell: its random key and the fields of `Cells`."""
    fields = [("label", "u1"), ("domain", "u1"), ("image", "i4"), ("row", "i2"), ("column", "i2")]
    return np.dtype([("key", "f8"), ("feature", "f2", (channels,)), *fields])


def pure_cells(label: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) class of each cell whose pixels agree, else 255.

    Label and map need not divide: a cell's pixels are those of adaptive pooling.

    Args:
        label: (B, H, W) uint8, 255 = ignore.
        size: of the map, (h, w).
    """
    wide = label.float()
    high, low = F.adaptive_max_pool2d(wide, size), -F.adaptive_max_pool2d(-wide, size)
    return torch.where(high == low, high, IGNORE).to(torch.uint8)


def cells_of(feature: Tensor, pure: Tensor, seed: int, domain: int, image: int, most: np.ndarray) -> np.ndarray:
    """Records of one image's pure cells, at most `most[k]` of class k.

    Args:
        feature: (D, h, w).
        pure: (h, w), 255 = not pure.
        seed, domain, image: give the cells' random keys.
        most: (K,).
    """
    label = pure.flatten().cpu().numpy()
    # 1 + image: the stream of [seed, domain] has chosen the images, and a trailing 0 would be the same stream
    key = np.random.default_rng([seed, domain, 1 + image]).random(len(label))
    places = np.flatnonzero(label != IGNORE)
    places = places[first(label[places], key[places], most)]
    out = np.empty(len(places), record(len(feature)))
    rows = feature.flatten(1)[:, torch.from_numpy(places).to(feature.device)].T
    out["feature"] = F.normalize(rows.float(), dim=1).cpu().numpy()
    out["label"], out["key"], out["domain"], out["image"] = label[places], key[places], domain, image
    out["row"], out["column"] = np.divmod(places, pure.shape[1])
    return out


def first(label: np.ndarray, key: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Indices in the order of class, then key: of class k the `most[k]` smallest keys."""
    order = np.lexsort((key, label))
    label = label[order]
    rank = np.arange(len(label)) - np.searchsorted(label, label)
    return order[rank < most[label]]
