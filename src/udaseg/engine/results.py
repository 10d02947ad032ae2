"""What a finished training leaves behind, and how it is known to be finished."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import shutil
import sys
from pathlib import Path

import torch

from udaseg.artifacts import TRAINING_CODE, code_hash, file_hash, read_json, write_json, write_text, writing
from udaseg.engine import runtime
from udaseg.errors import UserError
from udaseg.methods.base import Method
from udaseg.models import save_model
from udaseg.models.weights import find_weights
from udaseg.params import Run

log = logging.getLogger("udaseg")


def fingerprint_of(run: Run) -> dict[str, str]:
    """Hashes of all that decides a training's result: run.json keeps them as `<name>_hash`.

    Raises:
        UserError: data or the weights that the run starts from are missing.
    """
    return {
        "params": run.hash,
        "code": code_hash(*TRAINING_CODE),
        "data": data_hash(run),
        "start": start_hash(run),
    }


def data_hash(run: Run) -> str:
    """Hash of data/<benchmark>/data.json, which holds the hashes of all images and labels of the benchmark."""
    path = Path("data", run.benchmark_name, "data.json")
    if not path.exists():
        raise UserError(f"{path}: not found; run `udaseg prepare --benchmark {run.benchmark_name}` first")
    return file_hash(path)


def start_hash(run: Run) -> str:
    """Hash of the weights file that the run starts from, or "none"."""
    if run.init == "none":
        return "none"
    if run.init == "imagenet":
        return file_hash(find_weights(run.benchmark.model))
    if not run.pretrained.exists():
        raise UserError(
            f"{run.pretrained}: not found; {run.method_name} starts from source-only weights (init: source_only): run "
            f"`udaseg pretrain --benchmark {run.benchmark_name} --seed {run.seed}` first"
        )
    return file_hash(run.pretrained)


def is_done(folder: Path, fingerprint: dict[str, str]) -> bool:
    """Whether `folder` holds a finished run of these parameters, code and data."""
    if not (
        (folder / "model.safetensors").exists() and (folder / "run.json").exists() and (folder / "history.csv").exists()
    ):
        return False
    made = read_json(folder / "run.json", "the record of a training run")
    return fingerprint == {name: made.get(f"{name}_hash") for name in fingerprint}


def adopt(trained: Path, folder: Path, method: str) -> None:
    """Take a finished run of the same recipe instead of training it twice."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    made = read_json(trained / "run.json", "the record of a training run")
    write_json(folder / "run.json", made | {"method": method, "taken_from": str(trained)})
    for name in ("history.csv", "model.safetensors"):
        with writing(folder / name) as temporary:
            shutil.copyfile(trained / name, temporary)
    log.info("%s: taken from %s, which has the same recipe", folder, trained)


def write_results(
    run: Run,
    method: Method,
    folder: Path,
    *,
    fingerprint: dict[str, str],
    history: list[dict[str, float]],
    seconds: float,
    device: torch.device,
) -> None:
    """history.csv and run.json, then model.safetensors, whose presence means done."""
    # an older model must not pass for the one of this run.json
    (folder / "model.safetensors").unlink(missing_ok=True)
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if k != "step" else int(v) for k, v in row.items()} for row in history)
    write_text(folder / "history.csv", text.getvalue())
    write_json(
        folder / "run.json",
        {
            "benchmark": run.benchmark_name,
            "method": run.method_name,
            "seed": run.seed,
            **{f"{name}_hash": value for name, value in fingerprint.items()},
            "protocol": run.params.run.protocol,
            "init": run.init,
            "steps": run.train.steps,
            "threads": run.params.run.threads,
            "seconds": round(seconds, 1),
            "peak_memory_mb": runtime.peak_memory_mb(device),
            "command": " ".join(["udaseg", *sys.argv[1:]]),
            **runtime.provenance(device),
        },
    )
    header = {
        "benchmark": run.benchmark_name,
        "method": run.method_name,
        "seed": str(run.seed),
        "params_hash": run.hash,
        "code_hash": fingerprint["code"],
        "classes": ",".join(run.classes.names),
        # what deploy/models.py needs to use the weights without a params.yaml; where training began may be a private path
        "colours": json.dumps(run.classes.colours),
        "model": json.dumps(dataclasses.asdict(run.benchmark.model) | {"weights": "none"}, sort_keys=True),
        "size": str(run.benchmark.size.target),
    }
    state = {p + k: v for p, module in method.scored().items() for k, v in module.state_dict().items()}
    save_model(folder / "model.safetensors", state, header)
