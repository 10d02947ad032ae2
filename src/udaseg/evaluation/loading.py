"""What a network needs before it works: images of equal sizes, read ahead.

Background threads read, so that the network does not wait for decoding.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from udaseg.classes import IGNORE, ClassSpace
from udaseg.data.prepared import Prepared, Sample
from udaseg.errors import UserError
from udaseg.params import Use

In = TypeVar("In")
Out = TypeVar("Out")
Pair = tuple[Tensor, Tensor]
Sizes = tuple[tuple[int, ...], tuple[int, ...]]  # (height, width) of what the network sees, and of its result

# Small images share a pass; one image of Cityscapes fills it. Bounds the logits to 2 MiB pixels times classes.
MOST_IMAGES = 8
MOST_PIXELS = 2**21


def samples_of(prepared: Prepared, use: Use) -> list[Sample]:
    samples = list(prepared.samples(use.split))
    bare = next((sample.name for sample in samples if sample.label is None), None)
    if bare is not None or not samples:
        found = f"{bare} without a label" if samples else "no image"
        raise UserError(
            f"{use.dataset}/{use.split}: found {found}, expected a labelled split; prepare the data set again"
        )
    return samples


def batches(
    prepared: Prepared, samples: Sequence[Sample], classes: ClassSpace, threads: int = 1, *, other: int = IGNORE
) -> Iterator[Pair]:
    """Neighbouring samples of equal sizes, together.

    Args:
        prepared: the data set.
        samples: which, in this order.
        classes: labels come in this class space, 255 = not scored.
        threads: that decode; one suffices unless a GPU consumes.
        other: what stands for classes of the labels that the class space lacks.

    Yields:
        images (B, 3, h, w) uint8 and labels (B, H, W) uint8, H and W as delivered.
    """
    lut = classes.lut(prepared.classes, other)

    def read(sample: Sample) -> Pair:
        image = np.ascontiguousarray(prepared.image(sample).transpose(2, 0, 1))
        return torch.from_numpy(image), torch.from_numpy(lut[prepared.label(sample)])

    for group in grouped(ahead(read, samples, threads), lambda pair: (pair[0].shape[1:], pair[1].shape)):
        images, labels = zip(*group, strict=True)
        yield torch.stack(images), torch.stack(labels)


def grouped(items: Iterable[In], sizes: Callable[[In], Sizes]) -> Iterator[list[In]]:
    """Neighbours of equal sizes, as many as share a pass."""
    for same, neighbours in itertools.groupby(items, sizes):
        while group := list(itertools.islice(neighbours, room(same))):
            yield group


def room(sizes: Sizes) -> int:
    """How many images of these sizes share a pass."""
    return max(1, min(MOST_IMAGES, MOST_PIXELS // max(map(math.prod, sizes))))


def decoders(device: torch.device) -> int:
    """Threads that decode: several for a GPU; on a CPU they would only compete with the network."""
    return 4 if device.type == "cuda" else 1


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
