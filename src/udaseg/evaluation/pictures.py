"""Predictions to look at: a few test images of each run, and all methods of a benchmark side by side.

The images are evenly spaced over the first evaluation split, so nobody chooses them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from udaseg.artifacts import writing
from udaseg.data.labels import ClassSpace
from udaseg.data.prepared import Sample
from udaseg.errors import UserError
from udaseg.params import Params, Run

IMAGES = 4
WIDEST = 512  # pixels; larger test images are reduced for display
GAP, TITLE = 4, 14


def evenly_spaced(samples: list[Sample]) -> list[Sample]:
    """IMAGES of them, or all where there are fewer."""
    return [samples[round(k)] for k in np.linspace(0, len(samples) - 1, min(IMAGES, len(samples)))]


def save_examples(run: Run, rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Write examples.png into the run's folder.

    Args:
        run: where to, and the class colours.
        rows: image (h, w, 3), truth and prediction (H, W) in class space; 255 = void comes out black.
    """
    palette = run.classes.palette()
    height, width = rows[0][0].shape[:2]
    scale = min(1.0, WIDEST / width)
    pictures = [[image, palette[truth], palette[found]] for image, truth, found in rows]
    with writing(run.folder / "examples.png") as temporary:
        grid(pictures, (round(width * scale), round(height * scale))).save(temporary, "PNG")


def side_by_side(p: Params, benchmark: str) -> Path:
    """Write figures/<benchmark>/examples.png from the examples of every method (first seed): one column each.

    Raises:
        UserError: a run has no examples.png yet.
    """
    runs = [p.resolve(benchmark, method, p.run.seeds[0]) for method in p.run.methods]
    strips = [columns(run) for run in runs]
    pictures = [*strips[0][:2], *(strip[2] for strip in strips)]
    titles = ["image", "truth", *(run.method_name for run in runs)]
    legend = class_legend(runs[0].classes, sum(picture.width + GAP for picture in pictures) - GAP)
    out = Image.new("RGB", (legend.width, TITLE + pictures[0].height + GAP + legend.height), "white")
    left = 0
    for picture, title in zip(pictures, titles, strict=True):
        ImageDraw.Draw(out).text((left + 2, 1), title, fill="black")
        out.paste(picture, (left, TITLE))
        left += picture.width + GAP
    out.paste(legend, (0, TITLE + pictures[0].height + GAP))
    path = Path("figures") / benchmark / "examples.png"
    with writing(path) as temporary:
        out.save(temporary, "PNG")
    return path


def columns(run: Run) -> list[Image.Image]:
    """The three columns of a run's examples.png."""
    path = run.folder / "examples.png"
    if not path.exists():
        raise UserError(
            f"{path}: not found; run `udaseg evaluate --benchmark {run.benchmark_name} --method {run.method_name} "
            f"--seed {run.seed}`"
        )
    picture = Image.open(path).convert("RGB")
    width = (picture.width - 2 * GAP) // 3
    return [picture.crop((k * (width + GAP), 0, k * (width + GAP) + width, picture.height)) for k in range(3)]


def grid(rows: list[list[np.ndarray]], size: tuple[int, int]) -> Image.Image:
    """(H, W, 3) pictures on white, each reduced or enlarged to `size` = (width, height)."""
    out = Image.new("RGB", (len(rows[0]) * (size[0] + GAP) - GAP, len(rows) * (size[1] + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            # labels must not be blended: only the photograph (column 0) is smoothed
            how = Image.Resampling.BILINEAR if x == 0 else Image.Resampling.NEAREST
            out.paste(Image.fromarray(picture).resize(size, how), (x * (size[0] + GAP), y * (size[1] + GAP)))
    return out


def class_legend(classes: ClassSpace, width: int) -> Image.Image:
    """Names on their colours, in as many lines as `width` asks for."""
    places, left, top = [], 0, 0
    for name, colour in zip(classes.names, classes.colours, strict=True):
        wide = 18 + round(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(name)) + 8
        if left + wide > width:
            left, top = 0, top + 14
        places.append((left, top, name, colour))
        left += wide
    out = Image.new("RGB", (width, top + 14), "white")
    draw = ImageDraw.Draw(out)
    for left, top, name, colour in places:
        draw.rectangle((left, top + 2, left + 12, top + 11), fill=colour)
        draw.text((left + 16, top), name, fill="black")
    return out
