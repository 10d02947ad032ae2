"""What the Snakefile plans with: which files a configuration asks for, and what decides each result.

dvc.yaml says the same in DVC's words; tests/workflow/test_plan.py compares the two.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from udaseg import identity, params
from udaseg.artifacts import write_text
from udaseg.checking import essential
from udaseg.comparison import checkpoints
from udaseg.comparison.compare import twin
from udaseg.data import watch
from udaseg.engine import provenance
from udaseg.errors import UserError
from udaseg.figures import NAMES as FIGURES
from udaseg.params import Params, Run, uses, without

IDENTITIES = Path("results/.identity")
KEPT = Path(".snakemake/identities.json")
TRAINED = ("model.safetensors", "history.csv")
SCORED = ("metrics.json", "headline.json")  # kept by git; the second is what DVC shows and compares
EVALUATED = ("confusion.csv", "iou.json", "images.csv", "predictions.zip")
# What comparison, figures and report read of every run. DVC can ask for "every run" only as a folder that holds nothing else:
# copies lie in results/.compared/<benchmark>/<method>-seed<k>/ and results/.analysed/...
COMPARED = ("metrics.json", "confusion.csv", "images.csv", "predictions.zip", "history.csv")
ANALYSED = ("analysis.json", "tsne.npz")
SELECTED = (*SCORED, "analysis.json", "iou.json", "confusion.csv", "history.csv")


def load(config: dict[str, Any] | None = None) -> Params:
    """params.yaml, checked, for the workflow; `config` is what Snakemake was given by `--config` and `--configfile`.

    Snakemake does not read params.yaml itself: its reader takes YAML for version 1.1.

    Raises:
        UserError: params.yaml is wrong; there is a `config`, which the steps themselves would not see; `select` names a run
            that is not part of `run`; a benchmark of `run` cannot be scored.
    """
    p = params.load()
    if config:
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


def identity_of(p: Params, step: str, benchmark: str = "", method: str = "") -> dict[str, Any]:
    """What decides the result of a step, apart from its input files: code by file, and values of params.yaml by key.

    Seeds are left out: they are part of the place where a result lies.
    """
    modules, params = [], {}
    if step in ("train", "pretrain"):
        run = p.resolve(benchmark, method or "source_only", 0)
        step, modules, params = "train", provenance.method_modules(run), without(run.resolved, "seed")
    elif benchmark:
        modules, params = [], values(p, step, benchmark)
        if step == "evaluate":  # asks the method how else it predicts
            modules = [f"methods.{p.resolve(benchmark, method, 0).kind}"]
    else:
        params = {"seed": p.run.seeds[0], "select": essential(p.select)}
    return {"code": code(p, step, *modules), "params": params}


def code(p: Params, step: str, *modules: str) -> dict[str, str]:
    """`identity.code`, kept for the next process as long as no file of the package changes: syntax trees take a second."""
    key = ("code", step, *modules)
    if key not in p.known:
        kept, name = kept_code(of_package(p)), " ".join(key)
        if name not in kept:
            kept[name] = identity.code(step, *modules)
            keep({"package": of_package(p), "code": kept})
        p.known[key] = kept[name]
    return dict(p.known[key])


def kept_code(package: str) -> dict[str, dict[str, str]]:
    """What was kept of this package; empty where nothing can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        return dict(kept["code"]) if kept["package"] == package else {}
    return {}


def of_package(p: Params) -> str:
    """Changes with every file of the package, and with the Python that reads it."""
    if found := p.known.get(("package",)):
        return str(found)
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(identity.HERE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            data = path.read_bytes()
            digest.update(f"{path.relative_to(identity.HERE)} {len(data)}\n".encode() + data)
    p.known["package",] = digest.hexdigest()
    return digest.hexdigest()


def keep(content: dict[str, Any]) -> None:
    """In Snakemake's own folder, where there is one and it can be written."""
    half = KEPT.with_name(f"{KEPT.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        half.write_text(json.dumps(content), encoding="utf-8")
        half.replace(KEPT)


def values(p: Params, step: str, benchmark: str) -> dict[str, Any]:
    """What the steps beside training take from params.yaml; what equals its declared default is left out."""
    b = essential(p.benchmarks[benchmark])
    compared = {
        **{key: b[key] for key in ("classes", "evaluate", "model")},
        **{key: essential(getattr(p.run, key)) for key in ("methods", "protocol", "seeds")},
        # a recipe may change without its scores, and then have another twin
        "twins": {method: other for method in p.run.methods if (other := twin(p, benchmark, method, p.run.methods))},
    }
    if scored := checkpoints.hashes(benchmark) if step in ("compare", "report") else {}:  # by `udaseg evaluate --model`
        compared["checkpoints"] = scored
    used = {use.dataset: essential(p.datasets[use.dataset]) for use in uses(p.benchmarks[benchmark])}
    if step == "prepare":
        return {"datasets": used} | {key: b[key] for key in ("source", "target", "evaluate", "size", "classes")}
    if step == "evaluate":
        return {"threads": p.run.threads} | {key: b[key] for key in ("classes", "evaluate", "test")}
    if step == "analyse":
        keys = ("source", "classes", "evaluate")
        return {"threads": p.run.threads, "analysis": essential(p.analysis)} | {key: b[key] for key in keys}
    if step == "compare":
        return compared
    if step == "figure":
        return compared | {"select": essential(p.select)}
    recipes = {run.method_name: run.resolved for run in runs(p, benchmark)}
    return compared | {"datasets": used, "benchmark": b, "threads": p.run.threads, "recipes": recipes}


def signed(p: Params, step: str, benchmark: str = "", method: str = "") -> str:
    """`identity_of` as one text: as a rule's parameter it makes the rule run again when it changes."""
    key = ("signed", step, benchmark, method)  # asked for every seed
    if key not in p.known:
        p.known[key] = json.dumps(identity_of(p, step, benchmark, method), sort_keys=True)
    return str(p.known[key])


def identities(p: Params) -> dict[str, str]:
    """File -> what it holds: the same texts for DVC, which depends on files."""
    found = {"select.json": signed(p, "select")}
    for benchmark in p.run.benchmarks:
        for step in ("prepare", "pretrain", "compare", "figure", "report"):
            found[f"{benchmark}/{step}.json"] = signed(p, step, benchmark)
        for method in p.run.methods:
            for step in ("train", "evaluate", "analyse"):
                found[f"{benchmark}/{method}/{step}.json"] = signed(p, step, benchmark, method)
    return {f"{IDENTITIES}/{name}": text + "\n" for name, text in found.items()}


def write_identities(p: Params) -> None:
    """Bring results/.identity up to date; what has not changed is not touched."""
    wanted = identities(p)
    wanted |= {delivered(p, benchmark): "" for benchmark in p.run.benchmarks}
    for path in sorted(IDENTITIES.rglob("*.json")):
        if path.as_posix() not in wanted:
            path.unlink()
    for name, text in wanted.items():
        if text and (not Path(name).is_file() or Path(name).read_text(encoding="utf-8") != text):
            write_text(Path(name), text)


def delivered(p: Params, benchmark: str) -> str:
    """The file on which preparation depends: what is delivered now, where that is not what was prepared.

    It is written when the delivered files have changed, and stays as it is otherwise, also once they are prepared: so that looking
    makes nothing stale.
    """
    path = IDENTITIES / benchmark / "delivered.json"
    found = watch.changed(p, benchmark)
    if found or not path.exists():
        text = json.dumps(found, sort_keys=True) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    return path.as_posix()


def start(run: Run) -> list[str]:
    """What is trained before `run`: the pretrained model if it starts from it, and a run of the same recipe if there is one."""
    before = [run.pretrained] if run.init == "source_only" else []
    for other in run.twins:
        if other == run.folder:
            break
        before.append(other / "model.safetensors")
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
        out += of_runs(p, benchmark, (*SCORED, "analysis.json"))
        out += [f"results/{benchmark}/summary.{end}" for end in ("json", "csv", "md")]
    return out + [f"results/selected/{name}" for name in SELECTED]
