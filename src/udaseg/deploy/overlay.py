"""An image with its classes over it: tinted, outlined, and named below. No torch.

shapes: H W the image's own size
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from udaseg import colours
from udaseg.classes import ClassSpace

OPACITY = 0.5  # of the colours inside a region; its border has them pure
LETTERS = (12, 64)  # pixels: the smallest and the largest
INK, PAPER, FRAME = (20, 20, 20), (255, 255, 255), (120, 120, 120)


def overlay(
    image: Image.Image, labels: np.ndarray, classes: ClassSpace, *, opacity: float = OPACITY, legend: bool = True
) -> Image.Image:
    """The image under the colours of its classes, with borders, and below it the names of the classes that occur.

    Args:
        image: RGB.
        labels: (H, W) uint8 of it; what is no class (void) is black.
        classes: names; colours as in `colours.shown`.
        opacity: of the colours within a region, 0 to 1.
        legend: put the names below; the picture is higher by them then.
    """
    table = colours.table(classes)
    painted = table[labels]
    tinted = np.array(Image.blend(image, Image.fromarray(painted), opacity))
    edge = borders(labels, max(1, round(min(labels.shape) / 400)))
    tinted[edge] = painted[edge]
    present = [k for k in np.unique(labels).tolist() if k < len(classes)]
    if not legend or not present:
        return Image.fromarray(tinted)
    strip = names([(classes.names[k], tuple(table[k].tolist())) for k in present], image.width)
    out = Image.new("RGB", (image.width, image.height + strip.height))
    out.paste(Image.fromarray(tinted), (0, 0))
    out.paste(strip, (0, image.height))
    return out


def borders(labels: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: pixels within `width` of another class to the left, right, above or below."""
    edge = np.zeros(labels.shape, bool)
    for d in range(1, width + 1):
        across, down = labels[:, d:] != labels[:, :-d], labels[d:] != labels[:-d]
        edge[:, d:] |= across
        edge[:, :-d] |= across
        edge[d:] |= down
        edge[:-d] |= down
    return edge


def names(entries: list[tuple[str, tuple[int, ...]]], width: int) -> Image.Image:
    """Swatches and names in as many rows as `width` pixels need."""
    size = min(max(width // 64, LETTERS[0]), LETTERS[1])
    font, gap = ImageFont.load_default(size), size // 2
    places, x, y = [], gap, gap
    for name, colour in entries:
        long = size + gap + round(font.getlength(name))
        if x > gap and x + long + gap > width:
            x, y = gap, y + size + gap
        places.append((x, y, name, colour))
        x += long + 2 * gap
    strip = Image.new("RGB", (width, y + size + gap), PAPER)
    draw = ImageDraw.Draw(strip)
    for x, y, name, colour in places:
        draw.rectangle((x, y, x + size - 1, y + size - 1), fill=colour, outline=FRAME)
        draw.text((x + size + gap, y + size // 2), name, fill=INK, font=font, anchor="lm")
    return strip
