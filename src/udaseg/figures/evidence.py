"""Evidence from committed runs: features against score, pull of each contrast, right labels (comparison.evidence has the numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from udaseg.comparison.evidence import Seen
from udaseg.figures.style import (
    DOUBLE,
    EDGE,
    GREY,
    colours,
    families,
    grid,
    legend_above,
    lines,
    method_patches,
    note,
    signed,
)

SHOWN = (
    "compactness",
    "fisher_ratio",
    "silhouette",
    "knn_from_source",
)  # as the papers argue, and what follows the score


def features(runs: Sequence[Seen], found: dict[str, Any]) -> Figure:
    """Each run a dot: a measure of its features against its mIoU; the rank correlation and its interval above."""
    shown = [key for key in SHOWN if key in found]
    methods = list(dict.fromkeys(run.method for run in runs if run.measures))
    figure, axes, columns = grid(len(shown), 4, 1.0)
    for ax, key in zip(axes, shown, strict=True):
        for run in runs:
            if key in run.measures:
                ax.plot(
                    run.measures[key],
                    run.miou,
                    "o" if families(methods)[run.method][1] == 0 else "s",
                    color=colours(methods)[run.method],
                    markeredgecolor=EDGE,
                    markeredgewidth=0.4,
                    markersize=4.5,
                )
        block = found[key]
        low, high = block["ci95"]
        ax.set_title(
            f"{signed(block['spearman'], 2)} [{signed(low, 2)}, {signed(high, 2)}]: {block['claim']}", fontsize=7
        )
        ax.set_xlabel(key.replace("_", " ") + (" (%)" if key.startswith("knn") else ""))
    for ax in axes[::columns]:
        ax.set_ylabel("mIoU (%)")
    legend_above(figure, method_patches(methods))
    note(
        figure,
        f"Every committed run a mark, variants square. Above: Spearman's rank correlation, 95 % interval over methods drawn with "
        f"replacement; {next(iter(found.values()))['runs']} runs.",
    )
    return figure


def training(runs: Sequence[Seen]) -> Figure:
    """Over the steps: norm and direction of each contrast's gradient against the cross-entropy's, and how many labels are right."""
    seen = [run for run in runs if run.looks]
    methods = list(dict.fromkeys(run.method for run in seen))
    losses = sorted({name.removeprefix("cosine/") for run in seen for name in run.looks if name.startswith("cosine/")})
    figure = Figure(figsize=(DOUBLE, 3.0))
    axes = figure.subplots(1, 3)
    look = lines(methods)
    drawn = []
    for number, loss in enumerate(losses):
        with_it = [
            method for method in methods if any(f"cosine/{loss}" in run.looks for run in seen if run.method == method)
        ]
        method = with_it[-1] if loss == "feature_distance" else with_it[0]
        dash = look[method] if loss != "feature_distance" else {"color": GREY, "linestyle": (0, (1, 1))}
        if sum(loss.partition("_")[0] == other.partition("_")[0] for other in losses[:number]):
            dash = dash | {"linestyle": (0, (1, 1))}
        for ax, kind in zip(axes, ("gradient", "cosine"), strict=False):
            over_steps(ax, [run for run in seen if run.method == method], f"{kind}/{loss}", dash)
        drawn.append(Line2D([], [], label=loss.replace("_", " "), **dash))
    for method in methods:
        over_steps(axes[2], [run for run in seen if run.method == method], "labels/sure_right", look[method])
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")  # the style reads no mathematics, in which a logarithmic axis writes
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].axhline(1, color=GREY, linewidth=0.6)
    axes[1].axhline(0, color=GREY, linewidth=0.6)
    for ax, title in zip(
        axes, ("gradient / cross-entropy's", "cosine to cross-entropy's", "sure labels that are right (%)"), strict=True
    ):
        ax.set_title(title, fontsize=7)
        ax.set_xlabel("step")
    taught = [method for method in methods if any("labels/right" in run.looks for run in seen if run.method == method)]
    axes[2].legend(handles=[Line2D([], [], label=m, **look[m]) for m in taught], fontsize=5, loc="best", handlelength=2)
    legend_above(figure, drawn, length=3)
    note(
        figure,
        "Means over seeds; bands: lowest to highest. Of all weights of the student; the labels of 64 target images against the truth.",
    )
    return figure


def over_steps(ax: Axes, runs: Sequence[Seen], name: str, look: dict[str, Any]) -> None:
    several = [dict(run.looks[name]) for run in runs if name in run.looks]
    if not several:
        return
    steps = sorted(set.intersection(*(set(one) for one in several)))
    values = np.array([[one[step] for step in steps] for one in several])
    ax.plot(steps, values.mean(0), marker="o", markersize=2, **look)
    if len(several) > 1:
        ax.fill_between(steps, values.min(0), values.max(0), color=look["color"], alpha=0.2, linewidth=0)
