"""Two views of one target image, as PiPa shows them to its networks: augmentation, statistics, their grid of cells.

B pairs, C channels, side: of a view, in pixels or in cells. (P5) of docs/methods/pipa.md.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2 import functional as TF

from udaseg.losses.segmentation import resized
from udaseg.methods.base import Batch, stream
from udaseg.methods.step.augment import colour_jitter, gaussian_blur
from udaseg.recipes.pipa import PatchContrast

BLUR_SIGMA = 1.1  # OpenCV's for the released 5 x 5 kernel


@torch.no_grad()
def augmented(batch: Batch, p: PatchContrast, seed: int) -> Tensor:
    """(2B, 3, side, side): blur, colour jitter and grey at random, for each view by itself."""
    assert batch.pair is not None
    views = []
    with torch.autocast(batch.pair.device.type, enabled=False):
        for n, pair in zip(batch.index, batch.pair, strict=True):
            views += [changed(view, stream(seed, "pipa_views", n, v), p) for v, view in enumerate(pair)]
    return torch.stack(views)


def changed(view: Tensor, rng: np.random.Generator, p: PatchContrast) -> Tensor:
    blur, jitter, grey = rng.random(3) < (p.blur, p.jitter_p, p.grey)
    if blur:
        view = gaussian_blur(view[None], torch.full((1,), BLUR_SIGMA, device=view.device), 2)[0]
    if jitter:
        view = colour_jitter(view, rng, p.jitter)
    return TF.rgb_to_grayscale(view, 3) if grey else view


def to_device(draws: list[typing.Any], device: torch.device) -> Tensor:
    """Random numbers drawn for each pair, stacked."""
    return torch.from_numpy(np.stack(draws)).to(device, non_blocking=True)


def to_grid(x: Tensor, side: int) -> Tensor:
    """(B, C, h, w) to (B, C, side, side): means of whole blocks where they fit, else bilinear."""
    height, width = x.shape[-2:]
    if height == width and height % side == 0:
        return F.avg_pool2d(x, height // side)
    return resized(x, (side, side))


@contextmanager
def running_statistics(network: nn.Module) -> Iterator[None]:
    """BatchNorm uses its running statistics and leaves them alone: jittered crops must not move the teacher's."""
    moving = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
    for m in moving:
        m.eval()
    try:
        yield
    finally:
        for m in moving:
            m.train()
