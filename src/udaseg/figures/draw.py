"""Draw one figure of a benchmark from the files of its runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from udaseg.checking import lookup
from udaseg.figures import classes, features, gains, pictures, style, training
from udaseg.params import Params

DRAW: dict[str, Callable[[Params, str], Figure]] = {
    "gain": gains.gain,
    "iou_bars": classes.iou_bars,
    "iou_heatmap": classes.iou_heatmap,
    "published": gains.published,
    "confusion": classes.confusion,
    "curves": training.curves,
    "tsne": features.tsne,
    "compactness": features.compactness,
    "qualitative": pictures.qualitative,
}


def draw(p: Params, benchmark: str, name: str) -> Path:
    """Write figures/<benchmark>/<name>.pdf and .png.

    Returns:
        The path of the PNG.

    Raises:
        UserError: a file that the figure shows is missing or damaged; an unknown name.
    """
    path = Path("figures", benchmark, f"{name}.png")
    with style.style():
        style.save(lookup(DRAW, name, "figure")(p, benchmark), path)
    return path
