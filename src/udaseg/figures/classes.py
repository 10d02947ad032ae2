"""Scores by class: bars, a table in colours, and which classes are taken for which."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from udaseg import results
from udaseg.classes import ClassSpace
from udaseg.colours import shown
from udaseg.figures.gains import setting
from udaseg.figures.style import (
    DOUBLE,
    EDGE,
    colours,
    grid,
    hatched,
    legend_above,
    method_patches,
    note,
    unit,
)
from udaseg.params import Params

IN_A_ROW = 10  # classes
COUNTS = "mako_r"  # light to dark in grey too


def space_of(p: Params, benchmark: str) -> ClassSpace:
    return p.resolve(benchmark, p.run.methods[0], p.run.seeds[0]).classes


def iou_by_seed(p: Params, benchmark: str) -> np.ndarray:
    """(methods, seeds, K) IoU in percent, NaN where a class is not counted."""
    names = space_of(p, benchmark).names
    return np.array(
        [
            [[results.metrics(run)["iou"].get(name, math.nan) for name in names] for run in runs]
            for runs in results.runs_of(p, benchmark).values()
        ],
        dtype=float,
    )


def not_counted(names: Sequence[str], means: np.ndarray) -> str:
    """Which classes have no IoU and why; of (methods, K) means."""
    without = [name for name, column in zip(names, means.T, strict=True) if np.isnan(column).any()]
    return f"Not counted, in neither truth nor prediction: {', '.join(without)}. " if without else ""


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over axis 1 without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    return np.where(known.any(1), np.nansum(values, 1) / np.maximum(known.sum(1), 1), np.nan)


def iou_bars(p: Params, benchmark: str) -> Figure:
    """IoU of each class, one bar for each method; with several seeds a line from the lowest to the highest."""
    space, values = space_of(p, benchmark), iou_by_seed(p, benchmark)
    rows = -(-len(space) // IN_A_ROW)
    groups = np.array_split(np.arange(len(space)), rows)
    figure = Figure(figsize=(DOUBLE, 1.45 * rows + 0.8))
    for ax, group in zip(figure.subplots(rows, 1, squeeze=False)[:, 0], groups, strict=True):
        class_bars(ax, space, group, values, list(colours(p.run.methods).values()))
        ax.set_xlim(-0.5, len(groups[0]) - 0.5)
    legend_above(figure, method_patches(p.run.methods))
    several = "Bars: mean over seeds; lines: lowest to highest seed. " if len(p.run.seeds) > 1 else ""
    note(figure, f"{several}{not_counted(space.names, mean_of_known(values))}{setting(p, benchmark)}.")
    return figure


def class_bars(ax: Axes, space: ClassSpace, group: np.ndarray, values: np.ndarray, shades: list[object]) -> None:
    """Bars of the classes `group` at x = 0, 1, ...; under each its colour and name."""
    width = 0.84 / len(values)
    means = mean_of_known(values)
    for k, colour in enumerate(shades):
        x = np.arange(len(group)) + (k - (len(values) - 1) / 2) * width
        ax.bar(x, means[k, group], width * 0.92, color=colour, edgecolor=EDGE, linewidth=0.3)
        for place, one in zip(x, values[k][:, group].T, strict=True):
            if len(one) > 1 and not np.isnan(one).all():
                ax.plot([place, place], [np.nanmin(one), np.nanmax(one)], color="black", linewidth=0.6, gid="range")
    for place, c in enumerate(group):
        if np.isnan(means[:, c]).all():
            area = hatched(place - 0.42, 0, 0.84, 1)
            area.set_transform(ax.get_xaxis_transform())
            ax.add_patch(area)
            ax.text(place, 0.5, "not\ncounted", transform=ax.get_xaxis_transform(), ha="center", va="center")
        colour = unit(shown(space)[c])
        spot = Rectangle((place - 0.42, -0.07), 0.84, 0.05, transform=ax.get_xaxis_transform(), facecolor=colour)
        ax.add_patch(spot).set_clip_on(False)
    ax.set_xticks(range(len(group)), [textwrap.fill(space.names[c], 10) for c in group])
    ax.tick_params(axis="x", length=0, pad=8)
    ax.set_ylim(0, max(5.0, 1.05 * float(np.nanmax(values)) if not np.isnan(values).all() else 5.0))
    ax.set_ylabel("IoU (%)")
    ax.grid(axis="y")


def behind(ax: Axes) -> None:
    """Fills the panel with what shows through where a cell has no value."""
    area = hatched()
    area.set(transform=ax.transAxes, zorder=-1)
    ax.add_patch(area)


def iou_heatmap(p: Params, benchmark: str) -> Figure:
    """IoU of each method and class, the mean over seeds, with the mIoU in front."""
    space, methods = space_of(p, benchmark), list(p.run.methods)
    means = mean_of_known(iou_by_seed(p, benchmark))
    scores = [[results.metrics(run)["miou"] for run in runs] for runs in results.runs_of(p, benchmark).values()]
    table = np.column_stack([np.mean(scores, axis=1), means])
    text = np.array([[f"{v:.0f}" if v >= 99.95 else f"{v:.1f}" for v in row] for row in table])
    figure = Figure(figsize=(DOUBLE, 0.2 * len(methods) + 1.5))
    ax = figure.subplots()
    behind(ax)
    seaborn.heatmap(
        table,
        ax=ax,
        vmin=0,
        cmap=COUNTS,
        annot=text,
        fmt="",
        annot_kws={"fontsize": 7},
        linewidths=0.6,
        xticklabels=["mIoU", *space.names],
        yticklabels=methods,
        cbar_kws={"label": "IoU (%)", "pad": 0.01, "fraction": 0.02},
    )
    ax.axvline(1, color="white", linewidth=4)
    ax.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    note(figure, f"{not_counted(space.names, means)}{setting(p, benchmark)}.")
    return figure


def confusion(p: Params, benchmark: str) -> Figure:
    """For each method the share of each class's pixels that is taken for each class, over all seeds."""
    space, runs = space_of(p, benchmark), results.runs_of(p, benchmark)
    figure, axes, columns = grid(len(runs), 3 if len(space) > 12 else 4, 0.97)
    absent = []
    for k, (ax, (method, group)) in enumerate(zip(axes, runs.items(), strict=True)):
        counts = np.sum([results.confusion(run) for run in group], axis=0)
        truth = counts.sum(1, keepdims=True)
        absent = [name for name, pixels in zip(space.names, truth[:, 0], strict=True) if not pixels]
        share = np.where(truth > 0, 100 * counts / np.maximum(truth, 1), np.nan)
        behind(ax)
        image = ax.imshow(share, cmap=seaborn.color_palette(COUNTS, as_cmap=True), norm=Normalize(0, 100))
        ax.set_title(method)
        label_ends(ax, space, left=k % columns == 0, bottom=k // columns == (len(runs) - 1) // columns)
    figure.colorbar(image, ax=axes, label="share of the class's pixels (%)", fraction=0.02, pad=0.01, aspect=40)
    what = f"Hatched, no pixel in the truth: {', '.join(absent)}. " if absent else ""
    note(figure, f"Rows: truth, columns: prediction. {what}{setting(p, benchmark)}.")
    return figure


def label_ends(ax: Axes, space: ClassSpace, *, left: bool, bottom: bool) -> None:
    """Class names in the first column and the last row only, so that no name pushes rows apart."""
    places = range(len(space))
    ax.set_xticks(places, space.names if bottom else [], rotation=90)
    ax.set_yticks(places, space.names if left else [])
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(False)
