"""How much each method gains, and how that compares with what the papers report."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from udaseg import results
from udaseg.classes import class_space
from udaseg.comparison import tables
from udaseg.comparison.compare import REFERENCE, read_summary
from udaseg.comparison.published import backbone_of
from udaseg.figures.style import EDGE, GREY, SINGLE, Colour, colours, dark, method_rows, note, signed, statement
from udaseg.params import Params

ROW = 0.2  # inches for one method


def setting(p: Params, benchmark: str, *, first: bool = False) -> str:
    """What was scored, in a few words; of the first seed alone or of all. Where nothing is, the target."""
    block = p.benchmarks[benchmark]
    split = block.evaluate[0] if block.evaluate else block.target
    synthetic = ", synthetic images" if tables.synthetic(p, split) else ""
    seeds = f"seed {p.run.seeds[0]}" if first or len(p.run.seeds) == 1 else f"{len(p.run.seeds)} seeds"
    return f"{split}{synthetic}, {len(class_space(block.classes))} classes, protocol {p.run.protocol}, {seeds}"


def gain(p: Params, benchmark: str) -> Figure:
    """mIoU above self-training: mean, 95 % interval and each seed; one seed has no interval."""
    summary = read_summary(p, benchmark)
    if summary["reference"] is None:
        return statement(f"No gain to show: {REFERENCE} is not among run.methods.")
    scores = {m: [results.metrics(run)["miou"] for run in runs] for m, runs in results.runs_of(p, benchmark).items()}
    methods = [method for method in p.run.methods if method != REFERENCE]
    if not methods:
        return statement(f"No gain to show: run.methods holds {REFERENCE} alone.")
    figure = Figure(figsize=(SINGLE, ROW * len(methods) + 0.95))
    ax = figure.subplots()
    method_rows(ax, methods)
    ax.axvline(0, color=GREY, linewidth=0.8)
    for y, method in enumerate(methods):
        value = summary["methods"][method]["gain"]
        pairs = [ours - reference for ours, reference in zip(scores[method], scores[REFERENCE], strict=True)]
        interval(ax, y, value, pairs, colours(p.run.methods)[method])
        beside(ax, y, words(value))
    ax.set_xlabel(f"mIoU above {REFERENCE} of the same seed (points)")
    if len(p.run.seeds) == 1:
        shown = "One seed: no interval."
    else:
        shown = "Large dot: mean; line: 95 % interval (Student's t); small dots: seeds."
    note(figure, f"{shown} {setting(p, benchmark)}.")
    return figure


def interval(ax: Axes, y: float, value: dict[str, Any], seeds: list[float], colour: Colour) -> None:
    """One method's row: mean, and with several seeds the interval and every seed."""
    if value["ci95"] is not None:
        ax.plot(value["ci95"], [y, y], color=dark(colour), linewidth=2, solid_capstyle="butt", zorder=2, gid="interval")
        ax.plot(seeds, [y + 0.26] * len(seeds), "o", color=dark(colour), markersize=2, zorder=3, gid="seeds")
    ax.plot(value["mean"], y, "o", color=colour, markeredgecolor=EDGE, markeredgewidth=0.5, markersize=5.5, zorder=4)


def words(value: dict[str, Any]) -> str:
    if value["ci95"] is None:
        return signed(value["mean"], 2)
    low, high = value["ci95"]
    return f"{signed(value['mean'], 2)} [{signed(low, 2)}, {signed(high, 2)}]"


def beside(ax: Axes, y: float, text: str) -> None:
    """The numbers of a row, to its right."""
    ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center")


def published(p: Params, benchmark: str) -> Figure:
    """Measured mIoU beside what the papers report, whose setting is another one."""
    blocks = read_summary(p, benchmark)["methods"]
    methods = list(p.run.methods)
    papers = {method: blocks[method]["published"] for method in methods if blocks[method]["published"]}
    figure = Figure(figsize=(SINGLE, ROW * len(methods) + 1.5 + 0.12 * len(papers)))
    ax = figure.subplots()
    method_rows(ax, methods)
    for y, method in enumerate(methods):
        interval(ax, y, blocks[method]["miou"], [], colours(methods)[method])
        paper = papers.get(method, {}).get("miou")
        if paper is not None:
            ax.plot(paper, y, "D", color="black", fillstyle="none", markersize=5, zorder=5, gid="published")
        beside(ax, y, f"{blocks[method]['miou']['mean']:.1f} | {told(papers.get(method))}")
    beside(ax, -0.9, "here | paper")
    ax.set_xlabel("mIoU (%)")
    handles = [Line2D([], [], marker="o", linestyle="", color=GREY, label="measured here")]
    if papers:
        label = "published, in another setting"
        handles.append(Line2D([], [], marker="D", linestyle="", color="black", fillstyle="none", label=label))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    lines = "Lines: 95 % interval over seeds. " if len(p.run.seeds) > 1 else ""
    note(figure, f"{comparison(p, benchmark, papers)} {lines}{setting(p, benchmark)}.")
    return figure


def told(paper: dict[str, Any] | None) -> str:
    if paper is None:
        return "–"
    return "not readable" if paper["miou"] is None else f"{paper['miou']:.1f}"


def comparison(p: Params, benchmark: str, papers: dict[str, dict[str, Any]]) -> str:
    """How far the two columns may be compared."""
    network, encoder = backbone_of(p.benchmarks[benchmark].model)
    here = f"Measured with {network} ({encoder})."
    if not papers:
        return f"No published number for {benchmark} in this setting: nothing to compare with. {here}"
    sources: dict[str, list[str]] = {}
    for method, paper in papers.items():
        sources.setdefault(f"{paper['backbone']} on {paper['tested_on']}", []).append(method)
    there = "; ".join(f"{', '.join(names)}: {source}" for source, names in sources.items())
    return f"{here} Published: {there}; by the papers' own recipes, not measured here."
