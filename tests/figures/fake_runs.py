"""Files of runs with known content: no training, no network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from udaseg.artifacts import write_json, write_text
from udaseg.data.prepared import find_prepared
from udaseg.evaluation import confusion, predictions, scores
from udaseg.evaluation.evaluate import confusion_csv
from udaseg.params import Params, Run, uses

MEASURES = (
    *("intra_variance", "center_distance", "fisher_ratio", "silhouette", "pdd", "domain_gap"),
    *("linear_probe", "linear_probe_from_source", "knn", "knn_from_source"),
)
LAST = 10  # step of the histories
MakeRuns = Callable[..., Params]


def write_run(run: Run, rng: np.random.Generator) -> None:
    """All that the figures read of one run; predictions are the truth with a share of wrong pixels."""
    use = uses(run.benchmark)[-1]
    prepared, classes = find_prepared(run.benchmark_name, use), len(run.classes)
    total = confusion.empty(classes)
    with predictions.Recorder(run.classes) as recorder:
        for sample in prepared.samples(use.split):
            label = prepared.label(sample)
            found = np.where(
                rng.random(label.shape) < rng.uniform(0.2, 0.6), rng.integers(0, classes, label.shape), label
            )
            found[label == 255] = 0
            counts = confusion.by_image(torch.from_numpy(found)[None], torch.from_numpy(label)[None], classes)
            recorder.add([sample.name], torch.from_numpy(found)[None], scores.by_image(counts))
            total += counts.sum(0)
        predictions.write(run.folder, recorder.predictions())
    write_text(run.folder / "confusion.csv", confusion_csv(total, run.classes))
    write_json(
        run.folder / "metrics.json",
        scores.report(total, run.classes) | {"images": len(prepared.samples(use.split)), "other": {}},
    )
    rows = [f"{step},0.001,{1 / step:.6f},{'' if step < 4 else 0.5}" for step in range(1, LAST + 1)]
    write_text(run.folder / "history.csv", "\n".join(["step,learning_rate,source,late", *rows]) + "\n")
    write_json(run.folder / "analysis.json", {name: round(float(rng.uniform(0.1, 0.9)), 6) for name in MEASURES})
    label = np.repeat(np.arange(classes - 1, dtype=np.uint8), 4)  # the last class had too few cells
    domain = np.tile(np.array([0, 0, 1, 1], np.uint8), classes - 1)
    plane = rng.normal(size=(len(label), 2)).astype(np.float32)
    np.savez(run.folder / "tsne.npz", map=plane, label=label, domain=domain)


def texts(figure: Figure) -> list[str]:
    """Everything a reader can read."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def without(run: Run, name: str) -> None:
    """Takes a class out of a run's scores, as where it is in neither truth nor prediction."""
    path, space = run.folder / "metrics.json", run.classes
    iou = {key: value for key, value in json.loads(path.read_text())["iou"].items() if key != name}
    groups = {"miou": tuple(range(len(space))), **space.subsets}
    members = {key: [iou[space.names[k]] for k in group if space.names[k] in iou] for key, group in groups.items()}
    means = {key: sum(values) / len(values) for key, values in members.items()}
    change(path, iou=iou, absent=[each for each in space.names if each not in iou], **means)
    (run.folder / "confusion.csv").unlink()


def change(path: Path, **values: object) -> None:
    """Change keys of a JSON file."""
    write_json(path, json.loads(path.read_text()) | values)
