"""A contact sheet of prepared samples: image beside image with its label over it, to be looked at before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from udaseg import artifacts
from udaseg.classes import NAMES, ClassSpace, class_space
from udaseg.colours import shown, table
from udaseg.data.prepared import Prepared, Sample

WIDTH = 384  # of one picture, in pixels
LINE = 16  # height of a line of text, in pixels
OPACITY = 0.6  # of the label's colour over the image


def contact_sheet(folder: Path, n: int) -> Path:
    """Write `folder/contact.png`: n samples, evenly spaced over all splits, and the colours of the classes.

    Raises:
        UserError: the data are not prepared or damaged.
    """
    data = Prepared(folder)
    samples = [(split, sample) for split in data.splits for sample in data.samples(split)]
    n = max(1, min(n, len(samples)))
    chosen = [samples[(2 * k + 1) * len(samples) // (2 * n)] for k in range(n)]
    space = _space(data.classes)
    rows = [_row(data, split, sample, table(space)) for split, sample in chosen]
    legend = _legend(space)
    sheet = Image.new("RGB", (2 * WIDTH, sum(row.height for row in rows) + legend.height), "white")
    top = 0
    for picture in (*rows, legend):
        sheet.paste(picture, (0, top))
        top += picture.height
    path = data.folder / "contact.png"
    with artifacts.writing(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


def _space(classes: tuple[str, ...]) -> ClassSpace:
    """The space whose classes these are, for its colours."""
    for name in ("cityscapes19", "cityscapes16", "cityscapes13", "camvid11"):
        if class_space(name).names == classes:
            return class_space(name)
    return class_space(classes) if len(classes) > 1 else class_space(NAMES)


def _row(data: Prepared, split: str, sample: Sample, palette: np.ndarray) -> Image.Image:
    image = Image.fromarray(data.image(sample))
    size = (WIDTH, max(1, round(WIDTH * image.height / image.width)))
    left = image.resize(size, Image.Resampling.BILINEAR)
    row = Image.new("RGB", (2 * WIDTH, size[1] + LINE), "white")
    row.paste(left, (0, LINE))
    title = f"{split}/{sample.name}"
    if sample.label:
        label = np.asarray(Image.fromarray(data.label(sample)).resize(size, Image.Resampling.NEAREST))
        blend = (1 - OPACITY) * np.asarray(left) + OPACITY * palette[label]
        row.paste(Image.fromarray(blend.astype(np.uint8)), (WIDTH, LINE))
    else:
        title += " (no label)"
    ImageDraw.Draw(row).text((4, 2), title, fill="black")
    return row


def _legend(space: ClassSpace, columns: int = 6) -> Image.Image:
    step = 2 * WIDTH // columns
    entries = [*zip(space.names, shown(space), strict=True), ("void", (0, 0, 0))]
    legend = Image.new("RGB", (2 * WIDTH, LINE * (-(-len(entries) // columns)) + 8), "white")
    draw = ImageDraw.Draw(legend)
    for k, (name, colour) in enumerate(entries):
        x, y = step * (k % columns), 4 + LINE * (k // columns)
        draw.rectangle((x + 4, y + 2, x + 14, y + 12), fill=colour)
        draw.text((x + 18, y + 1), name, fill="black")
    return legend
