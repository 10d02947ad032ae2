"""Features of a trained run: a sample of both domains, its t-SNE map and measures of how classes lie (docs/analysis.md)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from udaseg import ranks
from udaseg.analysis import measures
from udaseg.analysis.cells import SOURCE, TARGET, Cells, draw_cells, first
from udaseg.analysis.tsne import embed
from udaseg.artifacts import write_json, writing
from udaseg.engine import runtime
from udaseg.models.trained import load_run
from udaseg.params import Analysis, Run

DIGITS = 6  # what the last bits of another machine do not reach
SHOWN = ("intra_variance", "separation", "fisher_ratio", "silhouette", "center_distance", "pdd", "domain_gap")
PROBES = ("linear_probe", "linear_probe_from_source", "knn", "knn_from_source")


def analyse_run(run: Run) -> str:
    """Write features.npz, tsne.npz and analysis.json of a trained run into its folder.

    Returns:
        A short table to print.

    Raises:
        UserError: no model, a model of other parameters or classes, no prepared data, too few labelled cells, no such
            device.
    """
    run.check_usable()
    device = runtime.setup(run.params.run)
    try:
        return _analyse(run, device)
    finally:
        ranks.leave()


def _analyse(run: Run, device: torch.device) -> str:
    p = run.params.analysis
    network = load_run(run, device).student
    cells, left_out = draw_cells(run, network, device)
    rows = few(cells, p.tsne.per_class)
    with threadpool_limits(1):  # quick enough, and the same bits whatever the number of cores
        values = measures_of(cells, run.classes.names, p) | {"left_out": list(left_out)}
        plane = embed(wide(cells.feature[rows]), p.tsne)

    save(run.folder / "features.npz", vars(cells))
    save(run.folder / "tsne.npz", {"map": plane, "label": cells.label[rows], "domain": cells.domain[rows]})
    write_json(run.folder / "analysis.json", values)  # last: its presence means done
    return table(run, values, left_out)


def measures_of(cells: Cells, names: tuple[str, ...], p: Analysis) -> dict[str, Any]:
    """analysis.json without `left_out`, from what features.npz holds and the names of the benchmark's classes."""
    present, label = np.unique(cells.label, return_inverse=True)
    source, target = (cells.domain == domain for domain in (SOURCE, TARGET))
    x = wide(cells.feature)
    values, by_class = measures.measure(
        *(x[source], x[target], label[source], label[target], cells.image[target]),
        neighbours=p.neighbours,
        seed=p.seed,
    )
    count = np.bincount(label[target])
    classes = {
        names[k]: {"cells": int(count[i])} | {key: plain(float(of[i])) for key, of in by_class.items()}
        for i, k in enumerate(present)
    }
    overall = {name: plain(value) for name, value in values.items()}
    return overall | {"cells": int(count.sum()), "classes": len(present), "class": classes}


def plain(value: Any) -> Any:
    """As it stands in a file: rounded, None where it is not defined."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, DIGITS)


def few(cells: Cells, most: int) -> np.ndarray:
    """Rows of the first `most` cells of each class and domain; they are stored in random order."""
    group = cells.domain.astype(int) * 256 + cells.label
    return first(group, np.arange(len(group)), np.full(512, most))


def wide(feature: np.ndarray) -> np.ndarray:
    """float64 of unit length again, which float16 had rounded."""
    return measures.unit(feature.astype(np.float64))


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Arrays by name, uncompressed: equal arrays give equal bytes."""
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def table(run: Run, values: dict[str, Any], left_out: dict[str, tuple[int, int]]) -> str:
    """What a person wants to see at once."""
    head = f"{run.benchmark_name} {run.method_name} seed {run.seed}: {values['cells']} cells of {values['classes']} classes"
    lines = [
        f"{head} in each domain",
        "  ".join(f"{name} {'not defined' if values[name] is None else format(values[name], '.3f')}" for name in SHOWN),
        "  ".join(f"{name} {values[name]:.2f}" for name in PROBES) + "  (%)",
    ]
    if values["probe_split"] == "cell":
        lines.append("too few images to halve: probes have seen all of them, their values are too high")
    if values["probe_classes"] < values["classes"]:
        lines.append(
            f"probes asked for {values['probe_classes']} classes, the others lie in one half of the images alone"
        )
    if left_out:
        counts = ", ".join(f"{name} ({source}, {target})" for name, (source, target) in left_out.items())
        lines.append(f"left out, fewer than {run.params.analysis.least} pure cells in source or target: {counts}")
    return "\n".join(lines)
