"""A finished project in small: the files that a page is made of, written without a training."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml
from PIL import Image

from tiny_project import RAW, ROOT
from udaseg import params
from udaseg.comparison.compare import compare_benchmark
from udaseg.figures import NAMES
from udaseg.figures.measures import MEASURES

METHODS = ("source_only", "self_training", "oracle")
CLASSES = ("road", "Gehweg & <b>Bäume</b>", "sky", "fog")  # the last is in neither truth nor prediction
IOU = {"source_only": (40.0, 10.0, 70.0), "self_training": (8.0, 30.0, 80.25), "oracle": (90.0, 50.0, 95.0)}


def write_project(folder: Path, seeds: Sequence[int] = (0,)) -> Path:
    """params.yaml, scores, measures, figures and docs; seed k scores k points more. The oracle has no run.json.

    Returns:
        Where the page of the benchmark will be.
    """
    raw = copy.deepcopy(RAW)
    raw["run"] |= {"methods": list(METHODS), "seeds": list(seeds)}
    raw["benchmarks"]["streets"]["classes"] = list(CLASSES)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    shutil.copy(ROOT / "README.md", folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    with contextlib.chdir(folder):
        p = params.load()
        for method in METHODS:
            for seed in seeds:
                write_run(p.resolve("streets", method, seed))
        compare_benchmark(p, "streets")
    for k, name in enumerate(NAMES):
        path = folder / "figures/streets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 200 + 10 * k), (40 * k % 256, 90, 200)).save(path.with_suffix(".png"))
        path.with_suffix(".pdf").touch()
    return folder / "results/streets/report.html"


def rescore(path: Path, **iou: float) -> None:
    """Change the IoU of classes in a metrics.json, and all that follows from them."""
    metrics = json.loads(path.read_text())
    found = metrics["iou"] | iou
    new = {"iou": found, "miou": sum(found.values()) / len(found), "absent": [c for c in CLASSES if c not in found]}
    path.write_text(json.dumps(metrics | new))


def write_run(run: params.Run) -> None:
    iou = [value + run.seed for value in IOU[run.method_name]]
    files = {
        "metrics.json": {
            "miou": sum(iou) / 3,
            "iou": dict(zip(CLASSES, iou, strict=False)),
            "other": {"teacher": {"miou": 12.0}} if run.method_name == "self_training" else {},
            "pixel_accuracy": 80.0,
            "absent": [CLASSES[-1]],
            "images": 4,
            "pixels": 8192,
        },
        "analysis.json": {key: 0.5 + run.seed for key in MEASURES}
        | {"cells": 60, "classes": 3, "left_out": [CLASSES[-1]], "probe_classes": 3, "probe_split": "image"}
        | {"pdd": None, "pdd_clamped": 4},
        "run.json": {
            "params_hash": run.hash,
            "code_hash": "c0de",
            "revision": "0123456789abcdef",
            "dirty": False,
            "device": "CPU x86_64",
            "threads": 1,
            "protocol": "matched",
            "steps": 400,
            "seconds": 90.0 + 20 * run.seed,
            "peak_memory_mb": 1000,
            "versions": {"torch": "2.15.0"},
            "command": f"udaseg train --benchmark streets --method {run.method_name} --seed {run.seed}",
        },
    }
    if run.method_name == "oracle":
        files.pop("run.json")
    run.folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (run.folder / name).write_text(json.dumps(value))
    (run.folder / "history.csv").write_text("step,loss\n10,1.0\n")
