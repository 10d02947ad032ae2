"""What a training leaves behind: history.csv and model.safetensors, equal bytes for equal runs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

from udaseg.artifacts import write_text
from udaseg.methods.base import Method
from udaseg.models import save_model
from udaseg.params import Run

EXACT = ".9g"  # every float32 has its own text


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """One line for each row; columns in the order in which they first come."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: format(v, EXACT) if k != "step" else int(v) for k, v in row.items()} for row in history)
    write_text(path, text.getvalue())


def write_model(path: Path, run: Run, method: Method) -> None:
    """The scored networks, with all in the header that is needed to use them without a params.yaml."""
    state = {p + k: v for p, module in method.scored().items() for k, v in module.state_dict().items()}
    save_model(path, state, header(run))


def header(run: Run) -> dict[str, str]:
    """What a model file says about itself. Where training began may be a private path and is left out."""
    return {
        "benchmark": run.benchmark_name,
        "method": run.method_name,
        "seed": str(run.seed),
        "params_hash": run.hash,
        "classes": ",".join(run.classes.names),
        "colours": json.dumps(run.classes.colours),
        "model": json.dumps(dataclasses.asdict(run.benchmark.model) | {"weights": "none"}, sort_keys=True),
        "size": str(run.benchmark.size.target),
    }
