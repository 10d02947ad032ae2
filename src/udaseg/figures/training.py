"""How training went."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from udaseg import results
from udaseg.engine.history import only_looks
from udaseg.figures.gains import setting
from udaseg.figures.style import grid, legend_above, lines, note
from udaseg.params import Params

WINDOW = 0.1  # of the run, over which a curve is averaged
FLAT = 5e-4  # of its value: a loss that moves by less is drawn flat, not as its rounding


def curves(p: Params, benchmark: str) -> Figure:
    """Every loss in a panel of its own, methods as lines; means over seeds."""
    history = {method: [results.history(run) for run in runs] for method, runs in results.runs_of(p, benchmark).items()}
    look = lines(p.run.methods)
    names = list(dict.fromkeys(key for group in history.values() for one in group for key in one if key != "step"))
    figure, axes, columns = grid(len(names), 4, 0.66)
    for ax, name in zip(axes, names, strict=True):
        for method in p.run.methods:
            seeds = [one for one in history[method] if name in one]
            if seeds:
                curve(ax, seeds, name, look[method])
        ax.set_title(name.replace("_", " "), fontsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.margins(x=0.02)
        at_least(ax, FLAT)
    for ax in axes[-columns:]:
        ax.set_xlabel("step")
    legend_above(figure, [Line2D([], [], label=method, **look[method]) for method in p.run.methods], length=3)
    band = "; bands: lowest to highest seed" if len(p.run.seeds) > 1 else ""
    note(
        figure,
        f"Losses as weighted in the sum, running mean over {WINDOW:.0%} of the run{band}. {setting(p, benchmark)}.",
    )
    return figure


def at_least(ax: Axes, share: float) -> None:
    """Widens the y axis until it spans this share of its values: ticks are short then."""
    low, high = ax.get_ylim()
    middle, half = (low + high) / 2, share * max(abs(low), abs(high)) / 2
    if high - low < 2 * half:
        ax.set_ylim(middle - half, middle + half)


def curve(ax: Axes, seeds: list[dict[str, np.ndarray]], name: str, look: dict[str, Any]) -> None:
    """Mean over seeds, and their range where there are several; steps that not every seed has reached are left out."""
    length = min(len(one["step"]) for one in seeds)
    step = seeds[0]["step"][:length]
    sparse = only_looks(name)
    values = np.array([one[name][:length] if sparse else smooth(one[name][:length]) for one in seeds])
    if sparse:  # scored now and then
        scored = np.isfinite(values).any(0)
        step, values = step[scored], values[:, scored]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step where no seed has this loss stays NaN: a gap
        ax.plot(step, np.nanmean(values, 0), **look)
        if len(seeds) > 1:
            low, high = np.nanmin(values, 0), np.nanmax(values, 0)
            ax.fill_between(step, low, high, color=look["color"], alpha=0.25, linewidth=0)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean that leaves gaps (NaN) as they are."""
    half = int(len(values) * WINDOW / 2)
    known = ~np.isnan(values)
    window = np.ones(2 * half + 1)
    total = np.convolve(np.pad(np.where(known, values, 0.0), half), window, "valid")
    count = np.convolve(np.pad(known.astype(float), half), window, "valid")
    return np.where(known, total / np.maximum(count, 1), np.nan)
