"""Draw one figure of a benchmark from the files of its runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from udaseg.artifacts import writing
from udaseg.checking import lookup
from udaseg.comparison import compare
from udaseg.comparison.evidence import correlations, runs_of
from udaseg.figures import classes, evidence, features, gains, pictures, style, training
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


def draw_evidence(p: Params, benchmark: str) -> list[Path]:
    """Write results/reference/<benchmark>/evidence-{features,training}.png from the committed runs; returns their paths.

    Raises:
        UserError: a committed file is missing or damaged.
    """
    runs = runs_of(p, benchmark)
    found = correlations(runs)
    wanted: dict[str, Callable[[], Figure]] = {}  # a picture that could only say that it has nothing to show is none
    if found:
        wanted["features"] = lambda: evidence.features(runs, found)
    if any(run.looks for run in runs):
        wanted["training"] = lambda: evidence.training(runs)
    paths = [compare.REFERENCES / benchmark / f"evidence-{name}.png" for name in wanted]
    with style.style():
        for path, figure in zip(paths, wanted.values(), strict=True):
            with writing(path) as temporary:
                figure().savefig(temporary, format="png", metadata={"Software": None})
    return paths
