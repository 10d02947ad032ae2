"""Parts of images: windows that cover one, crops at given places, and maps put back there.

Nothing here asks the device where a crop lies.
shapes: B images, C channels, H W size of the whole, h w of a part
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows along one side; an end that overruns is shifted back, never padded.

    Oracle o11 of docs/methods/self_training.md.
    """
    last = max(length - window, 0)
    return [min(step * stride, last) for step in range(-(-last // stride) + 1)]


def windows(height: int, width: int, window: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Upper left corners (y, x), row by row, of windows (height, width) that cover the image."""
    return [(y, x) for y in starts(height, window[0], stride[0]) for x in starts(width, window[1], stride[1])]


def averaged(parts: Sequence[Tensor], corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """(B, C, H, W): the mean of the parts (B, C, h, w) at each place of `size` = (H, W); their corners are (y, x)."""
    (batch, channels, h, w), (height, width) = parts[0].shape, size
    total = parts[0].new_zeros(batch, channels, height, width)
    covered = parts[0].new_zeros(height, width)
    for (y, x), part in zip(corners, parts, strict=True):
        total[:, :, y : y + h, x : x + w] += part
        covered[y : y + h, x : x + w] += 1
    return total / covered


def cut(images: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """The crops (B, C, h, w) of (B, C, H, W) at (B, 2) corners; `size` = (h, w)."""
    return images.permute(0, 2, 3, 1)[_places(corner, size)].permute(0, 3, 1, 2).contiguous()


def cut_labels(label: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """The same of (B, H, W) labels or weights: (B, h, w)."""
    return cut(label[:, None], corner, size)[:, 0]


def pasted(parts: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) at (B, 2) corners of maps of `size` = (H, W) that are 0 elsewhere."""
    batch, channels, h, w = parts.shape
    whole = parts.new_zeros(batch, *size, channels)
    whole[_places(corner, (h, w))] = parts.permute(0, 2, 3, 1)
    return whole.permute(0, 3, 1, 2)


def _places(corner: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    image = torch.arange(len(corner), device=corner.device)[:, None, None]
    rows = corner[:, :1] + torch.arange(size[0], device=corner.device)
    columns = corner[:, 1:] + torch.arange(size[1], device=corner.device)
    return image, rows[:, :, None], columns[:, None]
