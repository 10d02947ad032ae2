"""Test images with truth, predictions and errors. A rule chooses the images, nobody else does."""

from __future__ import annotations

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from udaseg import results
from udaseg.classes import IGNORE
from udaseg.colours import table
from udaseg.comparison.compare import REFERENCE
from udaseg.data.prepared import Prepared, Sample, find_prepared
from udaseg.evaluation.predictions import reduced
from udaseg.figures.gains import setting
from udaseg.figures.style import DOUBLE, class_patches, signed, unit
from udaseg.params import Params, Run, uses

PAGE = 9.5  # inches: the highest figure
REFERENCES = ("source_only", REFERENCE, "oracle")
ERRORS = {"right": (235, 235, 235), "wrong": (213, 94, 0), "not scored": (120, 120, 120)}  # colours of an error map


def qualitative(p: Params, benchmark: str) -> Figure:
    """Up to three images side by side (first seed): on top image and truth, below each method's prediction and its errors."""
    runs = [group[0] for group in results.runs_of(p, benchmark).values()]
    scores = image_scores(runs)
    subject, baseline = subject_of(p, benchmark, scores)
    chosen = choose(scores[subject], scores[baseline] if baseline else None)
    prepared, samples = images_of(p, benchmark, runs[0], [image for _, image, _ in chosen])

    width, height = samples[0].image_size
    tile = (DOUBLE - 0.5) / (2 * len(chosen))
    figure = Figure(figsize=(DOUBLE, min(PAGE, (tile * height / width + 0.16) * (len(runs) + 1) + 1.4)))
    axes = tiles(figure, len(runs) + 1, len(chosen))
    for place, ((rule, image, difference), sample) in enumerate(zip(chosen, samples, strict=True)):
        pair = axes[:, 2 * place : 2 * place + 2]
        panels(pair, prepared, sample, runs)
        shown = signed(difference) if baseline else f"{difference:.1f}"
        pair[0, 0].set_title(f"{shortened(image)}\n{rule}: {shown}", loc="left", fontsize=7)
        for ax, run in zip(pair[1:, 1], runs, strict=True):
            ax.set_title(f"mIoU {scores[run.method_name][image]:.1f}", loc="right", fontsize=7, pad=1.5)
    for ax, run in zip(axes[1:, 0], runs, strict=True):
        ax.set_title(run.method_name, loc="left", fontsize=7, pad=1.5)
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0.02, hspace=0.0)
    errors = [Patch(facecolor=unit(colour), label=label) for label, colour in ERRORS.items()]
    figure.legend(handles=[*class_patches(runs[0].classes), *errors], loc="outside lower center", ncols=7)
    less = f", less that of {baseline}" if baseline else ""
    text = f"Images chosen by mIoU of {subject} over the image's classes{less}. {setting(p, benchmark, first=True)}."
    figure.suptitle("\n".join(textwrap.wrap(text, 118)), x=0.008, ha="left", fontsize=7)
    return figure


def image_scores(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Method -> image -> mIoU.

    Raises:
        UserError: a file is missing or damaged, or two methods were scored on different images.
    """
    scores = {run.method_name: results.image_scores(run) for run in runs}
    for run in runs:
        if scores[run.method_name].keys() != scores[runs[0].method_name].keys():
            what = f"other images than in that of {runs[0].method_name}"
            raise results.wrong(run.folder / "images.csv", what, run, "evaluate")
        if np.isnan(list(scores[run.method_name].values())).all():
            raise results.wrong(run.folder / "images.csv", "no score", run, "evaluate")
    return scores


def images_of(p: Params, benchmark: str, run: Run, names: list[str]) -> tuple[Prepared, list[Sample]]:
    """The first evaluation set and its samples of these names."""
    use = next(use for use in uses(p.benchmarks[benchmark]) if use.role == "evaluate")
    prepared = find_prepared(benchmark, use)
    samples = {sample.name: sample for sample in prepared.samples(use.split)}
    if unknown := [name for name in names if name not in samples]:
        raise results.wrong(run.folder / "images.csv", f"{unknown[0]} is no image of {use.split}", run, "evaluate")
    return prepared, [samples[name] for name in names]


def shortened(name: str, most: int = 38) -> str:
    """A long name without its middle."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def tiles(figure: Figure, rows: int, groups: int) -> np.ndarray:
    """(rows, 2 * groups) axes, with a gap beside each pair."""
    ratios = [1.0, 1.0, 0.05] * groups
    every = figure.subplots(rows, 3 * groups, squeeze=False, width_ratios=ratios)
    for ax in every[:, 2::3].ravel():
        ax.remove()
    kept: np.ndarray = every[:, [k for k in range(3 * groups) if k % 3 < 2]]
    return kept


def subject_of(p: Params, benchmark: str, scores: dict[str, dict[str, float]]) -> tuple[str, str | None]:
    """The method whose gain chooses the images, and the one that it is measured against.

    The selected method of params.yaml where it is of this benchmark; else the best one that is no reference. Without
    self-training, or with nothing beside it, the method's own score decides.
    """
    selected = p.select.method if p.select.benchmark == benchmark and p.select.method in scores else None
    others = [method for method in scores if method not in REFERENCES]
    candidates = [selected] if selected not in (None, REFERENCE) else others or [m for m in scores if m != REFERENCE]
    best = max(candidates or scores, key=lambda method: np.nanmean(list(scores[method].values())))
    return best, REFERENCE if REFERENCE in scores and best != REFERENCE else None


def choose(scores: dict[str, float], baseline: dict[str, float] | None) -> list[tuple[str, str, float]]:
    """(rule, image, difference) for the lowest, the median and the highest difference; each image once.

    Images without a score are passed over; of equal differences the first in the order of the split counts.
    """
    differences = {
        image: value - (baseline.get(image, math.nan) if baseline is not None else 0.0)
        for image, value in scores.items()
    }
    ranked = sorted(
        (image for image, value in differences.items() if not math.isnan(value)), key=differences.__getitem__
    )
    words = ("lowest", "median", "highest")
    if baseline is not None:
        lowest, highest = differences[ranked[0]], differences[ranked[-1]]
        words = (
            "smallest gain" if lowest > 0 else "largest loss",
            "median",
            "smallest loss" if highest < 0 else "largest gain",
        )
    largest = next(image for image in ranked if differences[image] == differences[ranked[-1]])
    chosen: dict[str, str] = {}  # of very few images one may fit several rules
    for rule, image in zip(words, (ranked[0], ranked[(len(ranked) - 1) // 2], largest), strict=True):
        chosen.setdefault(image, rule)
    return [(rule, image, differences[image]) for image, rule in chosen.items()]


def panels(axes: np.ndarray, prepared: Prepared, sample: Sample, runs: list[Run]) -> None:
    """Image and truth in the first row, prediction and errors of each run below."""
    classes = runs[0].classes
    truth = classes.lut(prepared.classes)[reduced(prepared.label(sample))]
    palette = table(classes)
    picture(axes[0, 0], prepared.image(sample), sample)
    picture(axes[0, 1], palette[truth], sample)
    axes[0, 1].set_title("truth", loc="right", fontsize=7, pad=1.5)
    for row, run in zip(axes[1:], runs, strict=True):
        found = results.prediction(run, sample.name)
        if found.shape != truth.shape:
            what = f"{sample.name} is {found.shape[1]}x{found.shape[0]}, not {truth.shape[1]}x{truth.shape[0]}"
            raise results.wrong(run.folder / "predictions.zip", what, run, "evaluate")
        kind = np.where(truth == IGNORE, 2, found != truth)  # index in ERRORS
        picture(row[0], palette[found], sample)
        picture(row[1], np.array(list(ERRORS.values()), np.uint8)[kind], sample)


def picture(ax: Axes, pixels: np.ndarray, sample: Sample) -> None:
    """(h, w, 3) uint8 in the shape of the sample's image, class colours unblended."""
    width, height = sample.image_size
    ax.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    ax.set_axis_off()
