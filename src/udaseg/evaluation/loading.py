"""Images and labels of one split, read ahead in background threads so that the network does not wait for decoding."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from udaseg.data.labels import ClassSpace
from udaseg.data.prepared import Prepared, Sample

In = TypeVar("In")
Out = TypeVar("Out")
Pair = tuple[Tensor, Tensor]

# Small images share a pass; one image of Cityscapes fills it. Bounds the logits to 2 MiB pixels times classes.
MOST_IMAGES = 8
MOST_PIXELS = 2**21


def batches(prepared: Prepared, samples: Sequence[Sample], classes: ClassSpace, threads: int = 1) -> Iterator[Pair]:
    """Neighbouring samples of equal sizes, together.

    Args:
        prepared: the data set.
        samples: which, in this order.
        classes: labels come in this class space, 255 = not scored.
        threads: that decode; one suffices unless a GPU consumes.

    Yields:
        images (B, 3, h, w) uint8 and labels (B, H, W) uint8, H and W as delivered.
    """
    lut = classes.lut(prepared.classes)

    def read(sample: Sample) -> Pair:
        image = np.ascontiguousarray(prepared.image(sample).transpose(2, 0, 1))
        return torch.from_numpy(image), torch.from_numpy(lut[prepared.label(sample)])

    group: list[Pair] = []
    for pair in ahead(read, samples, threads):
        if group and (shapes(pair) != shapes(group[0]) or len(group) == room(pair)):
            yield stack(group)
            group = []
        group.append(pair)
    if group:
        yield stack(group)


def shapes(pair: Pair) -> tuple[torch.Size, torch.Size]:
    return pair[0].shape, pair[1].shape


def room(pair: Pair) -> int:
    """How many pairs of this size share a pass."""
    pixels = max(pair[1].numel(), pair[0].numel() // 3)
    return max(1, min(MOST_IMAGES, MOST_PIXELS // pixels))


def stack(group: Sequence[Pair]) -> Pair:
    return torch.stack([image for image, _ in group]), torch.stack([label for _, label in group])


def ahead(work: Callable[[In], Out], items: Iterable[In], threads: int) -> Iterator[Out]:
    """`map(work, items)` in order, a bounded number of items ahead of the consumer."""
    todo = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(work, item) for item in itertools.islice(todo, MOST_IMAGES + threads))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in itertools.islice(todo, 1))
        finally:
            for future in waiting:
                future.cancel()
