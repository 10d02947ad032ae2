"""What the Snakefile plans with: which files a configuration asks for, and which code and values a result depends on.

dvc.yaml says the same in DVC's words; tests/workflow/test_plan.py compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from udaseg import params
from udaseg.errors import UserError
from udaseg.figures import NAMES as FIGURES
from udaseg.params import Params, Run, uses

PACKAGE = Path("src/udaseg")
TRAINED = ("model.safetensors", "history.csv")
EVALUATED = ("confusion.csv", "iou.json", "images.csv", "predictions.zip")
# What comparison, figures and report read of every run. DVC can ask for "every run" only as a folder that holds nothing else:
# copies lie in results/.compared/<benchmark>/<method>-seed<k>/ and results/.analysed/...
COMPARED = ("metrics.json", "confusion.csv", "images.csv", "predictions.zip", "history.csv")
ANALYSED = ("analysis.json", "tsne.npz")
SELECTED = ("metrics.json", "analysis.json", "iou.json", "confusion.csv", "history.csv")


def load(config: dict[str, Any]) -> Params:
    """params.yaml, checked; `config` is what Snakemake read.

    Raises:
        UserError: params.yaml is wrong; `--config` changes a value, which the steps themselves would not see; `select`
            names a run that is not part of `run`; a benchmark of `run` cannot be scored.
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
    for benchmark in p.run.benchmarks:
        if not p.benchmarks[benchmark].evaluate:
            raise UserError(
                f"params.yaml: run.benchmarks: found {benchmark}, which has no labelled images to score (`evaluate: []`); leave it "
                f"out and train by name: `snakemake results/{benchmark}/{p.run.methods[-1]}/seed{p.run.seeds[0]}/model.safetensors`"
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


def datasets(p: Params, benchmark: str) -> list[str]:
    """Keys of the data sets that a benchmark uses. A new one beside them changes nothing that is there."""
    return sorted({f"datasets.{use.dataset}" for use in uses(p.benchmarks[benchmark])})


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


def of_runs(p: Params, benchmark: str, names: tuple[str, ...]) -> list[str]:
    """The named files of every run of a benchmark."""
    return [f"{run.folder}/{name}" for run in runs(p, benchmark) for name in names]


def cached(p: Params) -> list[str]:
    """Results too large for git: DVC keeps them, or they are made again."""
    out = []
    for benchmark in p.run.benchmarks:
        out.append(f"data/{benchmark}/data.json")
        for folder in [p.resolve(benchmark, "source_only", seed).pretrained.parent for seed in p.run.seeds]:
            out += [f"{folder}/{name}" for name in ("model.safetensors", "history.csv")]
        out += of_runs(p, benchmark, (*TRAINED, *EVALUATED, "features.npz", "tsne.npz"))
        for run in runs(p, benchmark):
            copies = f"{benchmark}/{run.method_name}-seed{run.seed}"
            out += [f"results/.compared/{copies}/{name}" for name in COMPARED]
            out += [f"results/.analysed/{copies}/{name}" for name in ANALYSED]
        out += [f"figures/{benchmark}/{name}.{end}" for name in FIGURES for end in ("png", "pdf")]
        out.append(f"results/{benchmark}/report.html")
    return out


def scores(p: Params) -> list[str]:
    """Results that git keeps."""
    out = []
    for benchmark in p.run.benchmarks:
        out += of_runs(p, benchmark, ("metrics.json", "analysis.json"))
        out += [f"results/{benchmark}/summary.{end}" for end in ("json", "csv", "md")]
    return out + [f"results/selected/{name}" for name in SELECTED]
