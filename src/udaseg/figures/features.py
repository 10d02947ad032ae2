"""How features lie: t-SNE maps and measures of compactness, from what `udaseg analyse` left."""

from __future__ import annotations

import statistics

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from udaseg import results
from udaseg.colours import table
from udaseg.figures.classes import space_of
from udaseg.figures.gains import setting
from udaseg.figures.measures import MEASURES, defined, limits
from udaseg.figures.style import (
    DOUBLE,
    EDGE,
    GREY,
    Colour,
    class_patches,
    colours,
    grid,
    legend_above,
    method_rows,
    note,
)
from udaseg.params import Params

DOMAINS = (("source", "o"), ("target", "+"))
PANELS = (
    *("intra_variance", "center_distance", "fisher_ratio", "silhouette"),
    *("pdd", "domain_gap", "linear_probe", "knn"),
)
PROBES = ("linear_probe", "knn")  # a diamond shows the same with the classifier fitted on source features


def tsne(p: Params, benchmark: str) -> Figure:
    """The map of source and target features of each method (first seed): colour is class, marker is domain."""
    space, runs = space_of(p, benchmark), results.runs_of(p, benchmark)
    palette = table(space) / 255
    figure, axes, _ = grid(len(runs), 4, 1.14)
    shown: set[int] = set()
    for ax, (method, group) in zip(axes, runs.items(), strict=True):
        plane, label, domain = results.tsne(group[0])
        shown |= set(label.tolist())
        for value, (_, marker) in enumerate(DOMAINS):
            at = domain == value
            scatter(ax, plane[at], palette[label[at]], marker)
        ax.set_title(method)
        square(ax, plane)
    handles: list[Artist] = [patch for k, patch in enumerate(class_patches(space)) if k in shown]
    handles += [
        Line2D([], [], marker=marker, linestyle="", color=GREY, markersize=3.5, label=name) for name, marker in DOMAINS
    ]
    legend_above(figure, handles)
    left_out = [name for k, name in enumerate(space.names) if k not in shown]
    without = f"Without enough pure cells, left out: {', '.join(left_out)}. " if left_out else ""
    text = "t-SNE of sampled features; distances between groups mean little."
    note(figure, f"{text} {without}{setting(p, benchmark, first=True)}.")
    return figure


def square(ax: Axes, points: np.ndarray) -> None:
    """A square panel around the points, the same scale on both axes; the scale itself means nothing."""
    centre = (points.min(0) + points.max(0)) / 2
    half = 0.53 * float((points.max(0) - points.min(0)).max())
    ax.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half), xticks=[], yticks=[])
    ax.set_box_aspect(1)
    ax.spines[:].set_visible(True)


def scatter(ax: Axes, points: np.ndarray, shades: np.ndarray, marker: str) -> None:
    """Points in an order that hides no class below another (they come grouped); as pixels in a PDF, which stays small."""
    order = np.random.default_rng(0).permutation(len(points))
    x, y = points[order].T
    size, line = (2.0, 0.0) if marker == "o" else (4.0, 0.4)
    ax.scatter(x, y, s=size, c=shades[order], marker=marker, linewidths=line, alpha=0.75, rasterized=True)


def compactness(p: Params, benchmark: str) -> Figure:
    """Measures of the features, a panel for each and a bar for each method; the title says which way is better."""
    runs = results.runs_of(p, benchmark)
    found = {method: [results.analysis(run) for run in group] for method, group in runs.items()}
    methods = list(runs)
    figure = Figure(figsize=(DOUBLE, 2 * (0.135 * len(methods) + 0.5) + 0.55))
    axes = figure.subplots(2, 4, sharey=True).ravel()
    for ax, key in zip(axes, PANELS, strict=True):
        for y, (method, colour) in enumerate(colours(methods).items()):
            bar(ax, y, defined([one.get(key) for one in found[method]]), colour)
            if key in PROBES:
                mark(ax, y, defined([one.get(f"{key}_from_source") for one in found[method]]))
        method_rows(ax, methods)
        ax.axvline(0, color=GREY, linewidth=0.6)
        better = "→ more" if MEASURES[key].more else "← less"
        ax.set_title(f"{MEASURES[key].title}\n{better} is better", fontsize=7)
    label = "classifier fitted on source features instead"
    diamond = Line2D(
        [], [], marker="D", linestyle="", color="white", markeredgecolor="black", markersize=3, label=label
    )
    legend_above(figure, [diamond])
    several = "Bars: mean over seeds; lines: lowest to highest. " if len(p.run.seeds) > 1 else ""
    what = " ".join(["Features of pure cells of target images; formulas: docs/analysis.md.", *limits(found)])
    note(figure, f"{several}{what} {setting(p, benchmark)}.")
    return figure


def mark(ax: Axes, y: float, values: list[float]) -> None:
    """The mean, as a diamond on the bar."""
    if values:
        (diamond,) = ax.plot(statistics.fmean(values), y, "D", color="white", markersize=3, gid="from source")
        diamond.set(markeredgecolor="black", markeredgewidth=0.7)


def bar(ax: Axes, y: float, values: list[float], colour: Colour) -> None:
    """The mean, and with several seeds a line from the lowest to the highest."""
    if not values:
        ax.text(0, y, " not defined", va="center")
        return
    ax.barh(y, statistics.fmean(values), 0.8, color=colour, edgecolor=EDGE, linewidth=0.3)
    if len(values) > 1:
        ax.plot([min(values), max(values)], [y, y], color="black", linewidth=0.8)
