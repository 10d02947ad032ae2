"""Why a run is stale: which file of the code, which key of params.yaml, which data. And which results belong to a name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from udaseg.artifacts import MODEL, RECORD, read_record
from udaseg.checking import lookup
from udaseg.engine import provenance
from udaseg.engine.provenance import HISTORY, SCHEME
from udaseg.errors import UserError
from udaseg.params import Params, Run
from udaseg.workflow import guard, plan

SCORED = {"evaluate": "metrics.json", "analyse": "analysis.json"}
SHOWN = 6  # of the differences of one step


def find_runs(p: Params, name: str) -> list[Run]:
    """The runs that a name means: results/streets/pipa/seed0, streets/pipa/0, streets/pipa or streets.

    Without a seed those of run.seeds, without a method those of run.methods.

    Raises:
        UserError: not such a name, or an unknown benchmark or method.
    """
    parts = [part for part in Path(name).parts if part not in (".", "/")]
    if parts[:1] == ["results"]:
        parts = parts[1:]
    if not 1 <= len(parts) <= 3:
        raise UserError(f"{name}: expected benchmark/method/seed, as streets/pipa/0 or results/streets/pipa/seed0")
    lookup(p.benchmarks, parts[0], "benchmark")
    methods = parts[1:2] or list(p.run.methods)
    if len(parts) < 3:
        return [p.resolve(parts[0], method, seed) for method in methods for seed in p.run.seeds]
    seed = parts[2].removeprefix("seed")
    if not re.fullmatch(r"[0-9]{1,20}", seed):
        raise UserError(f"{name}: found seed {parts[2]!r}, expected a number, as in streets/pipa/0")
    return [p.resolve(parts[0], methods[0], int(seed))]


def why(p: Params, name: str) -> str:
    """For each run that `name` means, each of its steps: current, or what is different from when it was made."""
    return "\n".join(line for run in find_runs(p, name) for line in of_run(p, run))


def of_run(p: Params, run: Run) -> Iterator[str]:
    yield f"{run.folder}"
    before = ""
    trainings = {"train": (run, run.folder)}
    if run.init == "source_only" or run.kind == "source_only":
        start = p.resolve(run.benchmark_name, "source_only", run.seed)
        trainings = {"pretrain": (start, run.pretrained.parent)} | trainings
    for step, (training, folder) in trainings.items():
        reasons = of_training(training, folder)
        yield from said(step, reasons, before)
        before = before or (step if reasons else "")
    for step, file in SCORED.items():
        reasons = of_step(p, step, run, f"{run.folder}/{file}")
        yield from said(step, reasons, before)


def said(step: str, reasons: list[str], before: str) -> Iterator[str]:
    if not reasons:
        yield f"  {step:<9} {f'stale with {before}' if before else 'current'}"
        return
    more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN + 1 else reasons[SHOWN:]
    for n, reason in enumerate([*reasons[:SHOWN], *more]):
        yield f"  {step if n == 0 else '':<9} {reason}"


def of_training(run: Run, folder: Path) -> list[str]:
    """What is different from when the model was trained; empty where nothing is."""
    if missing := [name for name in (MODEL, HISTORY, RECORD) if not (folder / name).exists()]:
        return [f"not trained: {folder / missing[0]} is not there"]
    made = read_record(folder / RECORD)
    if made.get("scheme") != SCHEME:
        return [provenance.OTHER_SCHEME.replace("RUN", f"{run.benchmark_name}/{run.method_name}/{run.seed}")]
    now = {"code": provenance.code_of(run), "params": run.resolved}
    reasons = differences(made, now)
    for name, hash_now in (("data", provenance.data_hash), ("start", provenance.start_hash)):
        try:
            if made.get(f"{name}_hash") != hash_now(run):
                reasons.append(
                    "the prepared data have changed" if name == "data" else f"it starts elsewhere: {run.init}"
                )
        except UserError as error:
            reasons.append(str(error))
    return reasons + [
        f"{folder / name} is not the file that was trained" for name in provenance.damaged_files(folder, made)
    ]


def of_step(p: Params, step: str, run: Run, target: str) -> list[str]:
    """What is different from when Snakemake made a result."""
    if not Path(target).exists():
        return [f"not made: {target} is not there"]
    made = guard.recorded(target)
    if made is None:
        return [
            "no record of Snakemake, or one under another scheme: `snakemake` makes it again, `udaseg sync` takes it from DVC"
        ]
    return differences(made, plan.identity_of(p, step, run.benchmark_name, run.method_name))


def differences(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Files of code and keys of parameters that differ, by name."""
    code = [
        f"src/udaseg/{name} {'is new in it' if name not in made['code'] else 'is no longer in it' if name not in now['code'] else 'has changed'}"
        for name in sorted(made["code"].keys() | now["code"].keys())
        if made["code"].get(name) != now["code"].get(name)
    ]
    return code + list(changed(plain(made["params"]), plain(now["params"]), ""))


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def changed(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from changed(old.get(key, ABSENT), new.get(key, ABSENT), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where}: {old} -> {new}"


class Absent:
    """A key that a block leaves at its default, or does not have."""

    def __str__(self) -> str:
        return "default"


ABSENT = Absent()
