"""Score a model file that no run of params.yaml made, a published checkpoint above all, on the test images of a benchmark.

Its scores go to results/published/<benchmark>/<name>/, which belongs to neither ledger; `udaseg compare` shows them below the table
of methods. The test is the benchmark's (whole or windows, image size, labels); the pass is in fp32, as the papers' own.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udaseg import params, ranks
from udaseg.artifacts import file_hash, write_json, write_text
from udaseg.checking import essential, lookup
from udaseg.classes import ClassSpace, class_space
from udaseg.comparison.checkpoints import folder_of
from udaseg.comparison.tables import test_split
from udaseg.engine import provenance, runtime
from udaseg.errors import UserError
from udaseg.evaluation import confusion, evaluate, inference, predictions, scores
from udaseg.evaluation.predictions import Recorder
from udaseg.models.trained import Trained, load
from udaseg.params import Params, Run, uses

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
log = logging.getLogger("udaseg")


def evaluate_file(
    p: Params,
    model: Path,
    benchmark: str,
    *,
    name: str | None = None,
    method: str | None = None,
    watcher: evaluate.Watcher | None = None,
) -> str:
    """Score a model file; write metrics.json, run.json, confusion.csv, iou.json, images.csv and predictions.zip.

    Args:
        p: the parameters.
        model: a model file of this program; its student is scored.
        benchmark: whose test.
        name: of the folder; None: the file's.
        method: whose published number and runs stand beside it; None: nobody's.
        watcher: looks on.

    Returns:
        A short table to print (empty on all ranks but the first).

    Raises:
        UserError: a model that cannot be used or has other classes, no prepared data, no scored pixel, a wrong name.
    """
    test_split(p, benchmark)
    if method is not None:
        lookup(p.methods, method, "method")
    name = name or model.name.removesuffix(".safetensors")
    if not NAME.fullmatch(name):
        raise UserError(
            f"--name: found {name!r}, expected letters, digits, `.`, `_` and `-`, as the folder of the scores is to be called"
        )
    device = runtime.setup(p.run)
    try:
        return score(p, load(model, device), model, benchmark, name, method, device, watcher)
    finally:
        ranks.leave()


def score(
    p: Params,
    trained: Trained,
    model: Path,
    benchmark: str,
    name: str,
    method: str | None,
    device: torch.device,
    watcher: evaluate.Watcher | None,
) -> str:
    wanted = p.resolve(benchmark, "source_only", 0).classes
    run = standing_for(p, benchmark, space_of(trained, wanted, model, benchmark))
    test, size, use = run.benchmark.test, run.benchmark.size.target, uses(run.benchmark)[2]
    for what, theirs, ours in (
        ("images", str(trained.size), str(size)),
        ("test", essential(trained.test), essential(test)),
    ):
        if theirs != ours:
            log.warning("%s: made for %s %s; scored as %s says, %s", model, what, theirs, benchmark, ours)
    student = inference.from_test(trained.student.predict, test)
    views = {"": student, **evaluate.beside(test, student)}
    with Recorder(run.classes) as recorder:
        matrices, images = evaluate.count(run, use, trained.student, views, device, recorder=recorder, watcher=watcher)
        each = evaluate.of_all_ranks(recorder.predictions())
    headline = report(matrices[""], run.classes, wanted) | {"images": images}
    other: dict[str, Any] = {view: means(matrix, run.classes, wanted) for view, matrix in matrices.items() if view}
    if (easier := without_absent(matrices[""], run.classes, wanted)) is not None:
        other["ignored"] = means(easier, run.classes, wanted)
    for use in uses(run.benchmark)[3:]:
        matrix, images = evaluate.count(run, use, trained.student, {"": student}, device, watcher=watcher)
        other[f"{use.dataset}-{use.split}"] = report(matrix[""], run.classes, wanted) | {"images": images}
    if ranks.rank() != 0:
        return ""
    folder = folder_of(benchmark, name)
    predictions.write(folder, each)
    write_text(folder / "confusion.csv", evaluate.confusion_csv(matrices[""], run.classes))
    write_json(folder / "iou.json", [{"class": key, "iou": value} for key, value in headline["iou"].items()])
    write_json(folder / "run.json", record(trained, model, run, name, method, device))
    write_json(folder / "metrics.json", headline | {"other": other})
    lines = evaluate.table(run, uses(run.benchmark)[2], headline | {"other": other}).splitlines()
    return "\n".join(
        [f"{benchmark} {name}: {headline['images']} images of {test_split(p, benchmark)}", *lines[1:], str(folder)]
    )


def standing_for(p: Params, benchmark: str, classes: ClassSpace) -> Run:
    """What the scoring functions take from a run, where there is none: the benchmark with the model's classes, in fp32."""
    raw = copy.deepcopy(p.raw)
    block = raw["benchmarks"][benchmark]
    own = {} if class_space_of(p, benchmark) == classes else {"classes": classes.name}
    raw["benchmarks"][benchmark] = {**block, **own, "train": {**block["train"], "precision": "fp32"}}
    raw["run"]["protocol"] = "matched"
    return params.parse(raw).resolve(benchmark, "source_only", 0)


def class_space_of(p: Params, benchmark: str) -> ClassSpace:
    return class_space(p.benchmarks[benchmark].classes)


def space_of(trained: Trained, wanted: ClassSpace, model: Path, benchmark: str) -> ClassSpace:
    """The classes that the network knows: the benchmark's, or all of Cityscapes where it is scored over some of them.

    Raises:
        UserError: others.
    """
    found = trained.classes.names
    if found == wanted.names:
        return wanted
    every = class_space("cityscapes19")
    if found == every.names and set(wanted.names) < set(found):
        return every
    raise UserError(
        f"{model}: knows the {len(found)} classes {', '.join(found[:3])} ..., {benchmark} is scored over {len(wanted)}: "
        f"{', '.join(wanted.names[:3])} ...; name a benchmark of its classes"
    )


def report(matrix: Tensor, known: ClassSpace, wanted: ClassSpace) -> dict[str, Any]:
    """As `scores.report`, over the classes that the benchmark is scored over: a prediction of another one is a miss."""
    full = scores.report(matrix, known)
    if known.names == wanted.names:
        return full
    subset = [known.names.index(name) for name in wanted.names]
    beyond = f"miou{len(known)}"
    kept = {key: value for key, value in full.items() if key != beyond}
    return {
        **kept,
        **scores.percent({"miou": scores.miou(matrix, subset)}),
        "iou": {name: value for name, value in full["iou"].items() if name in wanted.names},
        "absent": [name for name in full["absent"] if name in wanted.names],
    }


def means(matrix: Tensor, known: ClassSpace, wanted: ClassSpace) -> dict[str, float]:
    return {key: value for key, value in report(matrix, known, wanted).items() if key.startswith("miou")}


def without_absent(matrix: Tensor, known: ClassSpace, wanted: ClassSpace) -> Tensor | None:
    """The matrix of the easier test, in which pixels of classes that the benchmark lacks are not scored; None without such."""
    easier = confusion.without_others(matrix)
    for row, name in enumerate(known.names):
        if name not in wanted.names:
            easier[-1] += easier[row]
            easier[row] = 0
    return None if torch.equal(easier, matrix) else easier


def record(
    trained: Trained, model: Path, run: Run, name: str, method: str | None, device: torch.device
) -> dict[str, Any]:
    """run.json: which file, what it says of itself, how it was scored and where."""
    header = trained.header
    return {
        "benchmark": run.benchmark_name,
        "name": name,
        "method": method,
        "model": model.name,
        "model_hash": file_hash(model),
        "trained": {key: header[key] for key in ("benchmark", "method", "seed", "params_hash")},
        "origin": json.loads(header["origin"]) if "origin" in header else None,
        "network": json.loads(header["model"]),
        "test": essential(run.benchmark.test),
        "size": str(run.benchmark.size.target),
        "data_hash": provenance.data_hash(run),
        "precision": "fp32",
        "command": " ".join(["udaseg", *sys.argv[1:]]),
        **provenance.machine(device),
        **provenance.revision(),
    }
