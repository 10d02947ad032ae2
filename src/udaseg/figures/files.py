"""What runs left behind, read for figures and report. Everything missing or damaged is told in one line with the command that makes it."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from udaseg.artifacts import read_json
from udaseg.classes import OTHER
from udaseg.comparison.compare import read_metrics
from udaseg.errors import UserError
from udaseg.params import Params, Run


def runs(p: Params, benchmark: str) -> dict[str, list[Run]]:
    """Method -> its runs, one for each seed, both in the order of params.yaml."""
    return {method: [p.resolve(benchmark, method, seed) for seed in p.run.seeds] for method in p.run.methods}


def summary(p: Params, benchmark: str) -> dict[str, Any]:
    """summary.json, if it is about the methods and seeds of params.yaml; methods in their order there.

    Raises:
        UserError: missing, damaged, or of other methods or seeds.
    """
    path = Path("results", benchmark, "summary.json")
    again = f"udaseg compare --benchmark {benchmark}"
    found = read_object(path, f"the comparison of methods; run `{again}`")
    methods, seeds = found.get("methods"), found.get("seeds")
    if not (isinstance(methods, dict) and isinstance(seeds, list)):
        raise UserError(f"{path}: found no comparison in it, expected methods and seeds; run `{again}` again")
    if (set(methods), set(seeds)) != (set(p.run.methods), set(p.run.seeds)):
        raise UserError(
            f"{path}: found methods {', '.join(methods)} with seeds {', '.join(map(str, seeds))}, expected those of "
            f"`run` in params.yaml; run `{again}` again"
        )
    return found | {"methods": {method: methods[method] for method in p.run.methods}}


def read_object(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; `what` says what it should be."""
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise UserError(f"{path}: found {type(found).__name__}, expected {what}")
    return found


def metrics(run: Run) -> dict[str, Any]:
    """Scores of one run."""
    return read_metrics(run.folder.parents[1], run)


def analysis(run: Run) -> dict[str, Any]:
    """Measures of the features."""
    return read_object(run.folder / "analysis.json", f"measures of the features; run `{run.command('analyse')}`")


def record(run: Run) -> dict[str, Any] | None:
    """run.json, where there is one."""
    path = run.folder / "run.json"
    return read_object(path, "the record of a training run") if path.exists() else None


def tsne(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map (M, 2), class index (M,) and domain (M,; 0 source, 1 target) of the sampled cells."""
    path = run.folder / "tsne.npz"
    if not path.exists():
        raise UserError(f"{path}: not found; run `{run.command('analyse')}` first")
    try:
        with np.load(path) as arrays:
            plane, label, domain = arrays["map"], arrays["label"], arrays["domain"]
        if plane.shape != (len(label), 2) or domain.shape != label.shape or label.max(initial=0) >= len(run.classes):
            raise ValueError(f"shapes {plane.shape}, {label.shape}, {domain.shape}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); run `{run.command('analyse')}` again") from None
    return plane, label, domain


def rows(run: Run, name: str, step: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """A CSV file of a run, with at least these columns and one row.

    Raises:
        UserError: missing, or cut short.
    """
    path = run.folder / name
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            found = list(csv.DictReader(handle))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `{run.command(step)}` first") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, str(error), run, step) from None
    if not found:
        raise damaged(path, "no row", run, step)
    if missing := [column for column in columns if column not in found[0]]:
        raise damaged(path, f"no column {missing[0]}", run, step)
    # DictReader: a long row has the key None, a short one the value None
    if any(None in row or None in row.values() for row in found):
        raise damaged(path, "a row of another length", run, step)
    return found


def damaged(path: Path, what: str, run: Run, step: str) -> UserError:
    return UserError(f"{path}: damaged ({what}); run `{run.command(step)}` again")


def number(text: str, path: Path, run: Run, step: str) -> float:
    """A cell; an empty one is NaN."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise damaged(path, f"found {text!r}, expected a number", run, step) from None


def confusion(run: Run) -> np.ndarray:
    """(K, K) pixels, actual by predicted."""
    path, names = run.folder / "confusion.csv", run.classes.names
    found = rows(run, path.name, "evaluate", ("actual", "predicted", "pixels"))
    cells = {(row["actual"], row["predicted"]): number(row["pixels"], path, run, "evaluate") for row in found}
    cells = {key: pixels for key, pixels in cells.items() if key[0] != OTHER}
    if set(cells) != {(actual, predicted) for actual in names for predicted in names}:
        raise damaged(path, f"{len(cells)} cells, not {len(names)} x {len(names)} of its classes", run, "evaluate")
    return np.array([[cells[actual, predicted] for predicted in names] for actual in names])


def history(run: Run) -> dict[str, np.ndarray]:
    """`step` and the losses by name, NaN where a step had none."""
    path = run.folder / "history.csv"
    found = rows(run, path.name, "train", ("step",))
    keys = [key for key in found[0] if key != "learning_rate"]
    return {key: np.array([number(row[key], path, run, "train") for row in found]) for key in keys}


def image_scores(run: Run) -> dict[str, float]:
    """mIoU of each image of the first evaluation set, in its order; NaN without a scored pixel."""
    path = run.folder / "images.csv"
    found = rows(run, path.name, "evaluate", ("image", "miou"))
    return {row["image"]: number(row["miou"], path, run, "evaluate") for row in found}


def prediction(run: Run, image: str) -> np.ndarray:
    """(h, w) uint8 class map of one image, reduced as `evaluation.predictions` does."""
    path = run.folder / "predictions.zip"
    if not path.exists():
        raise UserError(f"{path}: not found; run `{run.command('evaluate')}` first")
    try:
        with zipfile.ZipFile(path) as archive, Image.open(io.BytesIO(archive.read(f"{image}.png"))) as picture:
            return np.array(picture)
    except (OSError, KeyError, SyntaxError, ValueError, zipfile.BadZipFile) as error:
        raise damaged(path, f"{image}: {error}", run, "evaluate") from None
