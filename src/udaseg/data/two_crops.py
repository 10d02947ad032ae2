"""Two overlapping crops of one image, for patch contrast (PiPa; the scheme of CAC, CVPR 2021).

Whatever is random comes from the given generator. Crops lie a multiple of 8 pixels apart, so that cells of stride 8 of one
cover cells of the other exactly. (P5), oracles p7 and p7b of docs/methods/pipa.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from udaseg.errors import UserError

STRIDE = 8  # of the cells that are compared
DRAWS = 50  # of the second crop; then both crops are the same
MEAN_COLOUR = (124, 116, 104)  # of ImageNet; where a crop is larger than the scaled image


@dataclass(frozen=True)
class PairViews:
    """How the two crops of an image are drawn.

    Attributes:
        side: of both crops in pixels, a multiple of 8.
        scale: range of a random factor on the image's sides before cropping.
        iou: range in which the intersection over union of the crops is accepted.
    """

    side: int
    scale: tuple[float, float]
    iou: tuple[float, float]

    def check(self, sizes: Sequence[tuple[int, int]], where: str) -> None:
        """Raises UserError where an image of `sizes` (width, height) has not the size of a crop in both directions."""
        smallest = min(sizes, key=min)
        if self.side < STRIDE or self.side % STRIDE or min(smallest) < self.side:
            raise UserError(
                f"{where}: found crops of {self.side}x{self.side} for the pair of views and an image of "
                f"{smallest[0]}x{smallest[1]}, expected crops of a multiple of {STRIDE} that fit; change `pipa.patch.crop`"
            )

    def draw(self, rng: np.random.Generator, image: np.ndarray) -> dict[str, Tensor]:
        """Scale the (H, W, 3) uint8 image at random and cut two squares out of it, each mirrored with p = 1/2.

        Returns:
            `pair` (2, 3, side, side) uint8; `overlap` (2, 4), the shared cells in each view before its flip: top, left, height,
            width; `flipped` (2,) bool.
        """
        factor = rng.uniform(*self.scale)
        height, width = (max(round(n * factor), 1) for n in image.shape[:2])
        room = (max(height - self.side, 0), max(width - self.side, 0))
        first = (int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1)))
        second = second_corner(rng, first, room, self.side, self.iou)
        flipped = rng.random(2) < 0.5
        picture = Image.fromarray(image)
        crops = [scaled_crop(picture, (height, width), corner, self.side) for corner in (first, second)]
        overlap = overlap_cells(second[0] - first[0], second[1] - first[1], self.side)
        overlap[:, 2:] = overlap[:, 2:].minimum(torch.tensor([height, width]) // STRIDE)  # padding shows nothing
        views = np.stack([crop[:, ::-1] if f else crop for crop, f in zip(crops, flipped.tolist(), strict=True)])
        return {
            "pair": torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2))),
            "overlap": overlap,
            "flipped": torch.from_numpy(flipped),
        }


def second_corner(
    rng: np.random.Generator, first: tuple[int, int], room: tuple[int, int], side: int, iou: tuple[float, float]
) -> tuple[int, int]:
    """Top left corner of the second crop, in 0..room, a multiple of 8 from the first in both directions.

    A drawn corner is moved up and left to such a place (or one step down or right where that leaves the image).
    """
    for _ in range(DRAWS):
        drawn = (int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1)))
        snapped = [d - (d - f) % STRIDE for d, f in zip(drawn, first, strict=True)]
        top, left = (s if s >= 0 else s + STRIDE for s in snapped)
        if iou[0] <= intersection_over_union(top - first[0], left - first[1], side) <= iou[1]:
            return top, left
    return first


def intersection_over_union(dy: int, dx: int, side: int) -> float:
    """Of two squares of equal side that lie (dy, dx) apart. Oracles p7, p7b."""
    common = max(side - abs(dy), 0) * max(side - abs(dx), 0)
    return common / (2 * side * side - common)


def overlap_cells(dy: int, dx: int, side: int) -> Tensor:
    """(2, 4) top, left, height, width of the common part in each crop, in cells; the second lies (dy, dx) away.

    Oracle p7.
    """
    size = [side - abs(dy), side - abs(dx)]
    return torch.tensor([[max(0, dy), max(0, dx), *size], [max(0, -dy), max(0, -dx), *size]]) // STRIDE


def scaled_crop(picture: Image.Image, scaled: tuple[int, int], corner: tuple[int, int], side: int) -> np.ndarray:
    """(side, side, 3) of the picture resized (bicubic) to `scaled` = (height, width), padded at the right and below.

    Only the crop is computed: the filter reaches beyond the box, so that it equals a crop of the whole.
    """
    (top, left), (height, width) = corner, scaled
    bottom, right = min(top + side, height), min(left + side, width)
    y, x = picture.height / height, picture.width / width
    box = (left * x, top * y, min(right * x, picture.width), min(bottom * y, picture.height))
    piece = np.asarray(picture.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box))
    crop = np.full((side, side, 3), MEAN_COLOUR, np.uint8)
    crop[: bottom - top, : right - left] = piece
    return crop
