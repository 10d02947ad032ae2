"""Model files scored as they are (`udaseg evaluate --model`), beside the methods: published checkpoints above all.

They were trained elsewhere, each once, so that nothing pairs them with our seeds: they stand in a table of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from udaseg.artifacts import file_hash, read_json
from udaseg.checking import build
from udaseg.comparison import published
from udaseg.errors import UserError
from udaseg.params import Model, Params

HOME = Path("results/published")
KIND = "published checkpoint"


def folder_of(benchmark: str, name: str) -> Path:
    return HOME / benchmark / name


def hashes(benchmark: str) -> dict[str, str]:
    """Name -> what its scores are, for those who ask whether a table is up to date; mostly empty."""
    found = sorted((HOME / benchmark).glob("*/metrics.json"))
    beside = {path: path.with_name("run.json") for path in found}
    return {
        path.parent.name: file_hash(path) + (file_hash(made) if made.exists() else "") for path, made in beside.items()
    }


def rows(p: Params, benchmark: str) -> dict[str, dict[str, Any]]:
    """Name -> scores, whose file it is and the published number beside it.

    Raises:
        UserError: a file is missing or damaged.
    """
    return {
        path.parent.name: row(p, benchmark, path.parent) for path in sorted((HOME / benchmark).glob("*/metrics.json"))
    }


def row(p: Params, benchmark: str, folder: Path) -> dict[str, Any]:
    again = f"udaseg evaluate --model FILE --benchmark {benchmark} --name {folder.name}"
    metrics = read_json(folder / "metrics.json", "scores of a model file", again)
    made = read_json(folder / "run.json", "the record of the scores", again)
    try:
        origin, method = made["origin"], made["method"]
        model: Model = build(Model, made["network"], "network")
        flat = {key: value for key, value in metrics.items() if key.startswith("miou")}
        found = {"miou": float(metrics["miou"])} | flat
        about = {
            "kind": KIND if origin else "model file",
            "whose": origin["family"] if origin else "{benchmark}/{method}/{seed}".format(**made["trained"]),
            "file": origin["file"] if origin else made["model"],
            "sha256": origin["sha256"] if origin else made["model_hash"],
            "network": origin["network"] if origin else "student",
            "iou": dict(metrics["iou"]),
        }
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{folder}: found files of another program ({error}); run `{again}` again, or remove the folder"
        ) from None
    block = dataclasses.replace(p.benchmarks[benchmark], model=model)
    paper = published.lookup(method, benchmark, block) if method else None
    return (
        found
        | about
        | {
            "method": method,
            "published": paper,
            "test": made.get("test", {}).get("mode", "-"),
            "size": made.get("size", "-"),
        }
    )


def notes(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which file each is."""
    return [
        f"{name}: {one['kind']}, {one['whose']}, {one['network']}, of {one['file']} (sha256 {one['sha256'][:16]}); "
        f"{one['test']}, images {one['size']}"
        for name, one in found.items()
    ]
