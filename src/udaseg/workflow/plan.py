"""What the Snakefile plans with: which files a configuration asks for, and which code and values a result depends on.

dvc.yaml says the same in DVC's words; tests/workflow/test_plan.py compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from udaseg import params
from udaseg.errors import UserError
from udaseg.params import Params, Run

PACKAGE = Path("src/udaseg")


def load(config: dict[str, Any]) -> Params:
    """params.yaml, checked; `config` is what Snakemake read.

    Raises:
        UserError: params.yaml is wrong; `--config` changes a value, which the steps themselves would not see; `select`
            names a run that is not part of `run`.
    """
    p = params.load()
    if config != p.raw:
        raise UserError("--config and --configfile are not used here: params.yaml is the only configuration; edit it")
    for key in ("benchmark", "method"):
        name, known = getattr(p.select, key), getattr(p.run, f"{key}s")
        if name not in known:
            raise UserError(
                f"params.yaml: select.{key}: found {name}, expected one of run.{key}s ({', '.join(known)}); "
                f"only what the workflow makes can be selected"
            )
    return p


def code(*parts: str) -> list[str]:
    """All files of the package's folders (or single files) named, for Snakemake, which follows files and not folders."""
    files: list[Path] = []
    for part in parts:
        path = PACKAGE / part
        files += [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sorted(f.as_posix() for f in files if "__pycache__" not in f.parts)


def values(p: Params, *keys: str) -> str:
    """The named values of params.yaml as one text: as a rule's parameter it makes the rule run again when one changes."""
    found = {}
    for key in keys:
        value: Any = p.raw
        for part in key.split("."):
            value = value[part]
        found[key] = value
    return json.dumps(found, sort_keys=True, default=str)


def start(run: Run) -> list[str]:
    """What is trained before `run`: the pretrained model if it starts from it, and a run of the same recipe if there is one."""
    before = [run.pretrained] if run.init == "source_only" else []
    for twin in run.twins:
        if twin == run.folder:
            break
        before.append(twin / "model.safetensors")
    return [path.as_posix() for path in before]


def runs(p: Params, benchmark: str) -> list[Run]:
    return [p.resolve(benchmark, method, seed) for method in p.run.methods for seed in p.run.seeds]


def selected(p: Params) -> Run:
    return p.resolve(p.select.benchmark, p.select.method, p.run.seeds[0])


def cached(p: Params) -> list[str]:
    """Results too large for git: DVC keeps them, or they are made again."""
    out = []
    for benchmark in p.run.benchmarks:
        out.append(f"data/{benchmark}/data.json")
        for folder in [p.resolve(benchmark, "source_only", seed).pretrained.parent for seed in p.run.seeds]:
            out += [f"{folder}/{name}" for name in ("model.safetensors", "history.csv")]
        for run in runs(p, benchmark):
            names = ("model.safetensors", "history.csv", "confusion.csv", "iou.json", "examples.png")
            out += [f"{run.folder}/{name}" for name in names]
            out += [f"results/.compared/{benchmark}/{run.method_name}-seed{run.seed}.{end}" for end in ("json", "png")]
        out.append(f"figures/{benchmark}/examples.png")
    return out


def scores(p: Params) -> list[str]:
    """Results that git keeps."""
    out = [f"{run.folder}/metrics.json" for benchmark in p.run.benchmarks for run in runs(p, benchmark)]
    out += [f"results/{benchmark}/summary.{end}" for benchmark in p.run.benchmarks for end in ("json", "csv", "md")]
    names = ("metrics.json", "iou.json", "confusion.csv", "history.csv")
    return out + [f"results/selected/{name}" for name in names]
