"""`udaseg resign`: a result is taken over by changed code that still computes the same.

The first steps of the recorded training are made again, and every number of them is compared with the history that the
training left. Where all are equal the run is signed anew, in run.json and in both ledgers; nothing is trained. For a change of
parameters or data there is no such way: it is another result.
"""

from __future__ import annotations

import csv
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from udaseg import ranks
from udaseg.artifacts import MODEL, RECORD, read_record, run_lock, write_json
from udaseg.engine import provenance, runtime
from udaseg.engine.history import EXACT, only_looks
from udaseg.engine.optim import build_optimizer
from udaseg.engine.provenance import HISTORY, SCHEME
from udaseg.engine.trainer import Loop, build
from udaseg.engine.training import keep
from udaseg.errors import Interrupted, UserError
from udaseg.models.trained import sign_again
from udaseg.params import Params, Run
from udaseg.workflow import altered, bridges, guard, plan, why

ROUNDED = ".6g"  # how the first scheme wrote numbers
log = logging.getLogger("udaseg")


@dataclass(frozen=True)
class Signed:
    """A training that was compared."""

    run: Run
    folder: Path
    steps: int  # made again
    unseen: tuple[str, ...]  # losses that take part later than that


NOTED = ("code_hash", "params_hash", "data_hash", "start_hash", "model_hash")  # of what was signed before


def resign(p: Params, names: Sequence[str], steps: int) -> None:
    """Sign runs anew whose code has changed without changing a bit.

    Args:
        p: params.yaml.
        names: of runs, as `why.find_runs` takes them.
        steps: how many to make again at most (at least up to the first line of the history). Fewer are made where every
            loss of the history has taken part before.

    Raises:
        UserError: names the run and what speaks against it; runs before it are signed by then.
    """
    status = bridges.status()
    device = runtime.setup(p.run)
    proved: dict[str, Signed] = {}
    signed: dict[str, str] = {}  # model -> DVC's stage
    try:
        for run, folder in trainings(p, names):
            check_data_first(p, run)
            fingerprint = provenance.fingerprint_of(run)
            if not provenance.is_done(folder, fingerprint):
                if not (folder / RECORD).exists():
                    raise UserError(f"{folder / RECORD}: not found; without it nothing can be taken over, train again")
                made = read_record(folder / RECORD)
                check_code_alone_changed(run, folder, made)
                altered.check_made(status, folder)
                same = proved.get(run.hash)
                if same is None or (same.folder / HISTORY).read_bytes() != (folder / HISTORY).read_bytes():
                    same = proved[run.hash] = compare_bits(run, folder, made, steps, device)
                sign_run(run, folder, made, fingerprint, same.steps)
                later = f"; not reached: {', '.join(same.unseen)} (--steps)" if same.unseen else ""
                log.info("%s: %d steps give the same bits%s; signed", folder, same.steps, later)
            else:
                log.info("%s: is current", folder)
            kind = "pretrain" if folder == run.pretrained.parent else "train"
            place = (
                f"{run.benchmark_name}-{run.seed}"
                if kind == "pretrain"
                else "-".join(folder.parts[1:3]) + f"-{run.seed}"
            )
            planned = run.benchmark_name in p.run.benchmarks and run.seed in p.run.seeds
            if planned and (kind == "pretrain" or run.method_name in p.run.methods):
                signed[f"{folder}/{MODEL}"] = f"{kind}@{place}"
    finally:
        ranks.leave()
        if signed:
            bridges.touch("--force", "--allowed-rules", "pretrain", "train", "--", *signed)
            bridges.commit(*signed.values())


def trainings(p: Params, names: Sequence[str]) -> list[tuple[Run, Path]]:
    """The trainings of the runs, each once; the pretrained models that they begin from come first."""
    runs = [run for name in names or p.run.benchmarks for run in why.find_runs(p, name)]
    found: dict[Path, Run] = {}
    for run in runs:
        run.check_usable()
        if run.init == "source_only" or run.kind == "source_only":
            found.setdefault(run.pretrained.parent, p.resolve(run.benchmark_name, "source_only", run.seed))
    for run in runs:
        found.setdefault(run.folder, run)
    return [(run, folder) for folder, run in found.items()]


def check_data_first(p: Params, run: Run) -> None:
    """Raises UserError where the data would be prepared anew: results signed before that would belong to what is replaced."""
    target = f"data/{run.benchmark_name}/data.json"
    text = Path(target).read_text(encoding="utf-8") if Path(target).exists() else ""
    made = guard.recorded(target)
    stale = made != json.loads(plan.signed(p, "prepare", run.benchmark_name)) if made else "content_sha256" not in text
    if text and stale:
        raise UserError(f"{target}: stale itself; run `snakemake {target}` first (equal data are not converted again)")


def check_code_alone_changed(run: Run, folder: Path, made: dict[str, Any]) -> None:
    """Raises UserError where more than the code has changed, or the files are not those of the record."""
    if missing := [name for name in (MODEL, HISTORY) if not (folder / name).exists()]:
        raise UserError(f"{folder / missing[0]}: not found; only a finished run can be signed anew")
    if made.get("params_hash") != run.hash:
        known = made.get("scheme") == SCHEME
        which = why.differences(made | {"code": {}}, {"code": {}, "params": run.resolved}) if known else []
        raise UserError(
            f"{folder / RECORD}: made with other parameters ({'; '.join(which) or made.get('params_hash')}), which makes other "
            f"results; restore them in params.yaml, or train again"
        )
    if made.get("scheme") == SCHEME:  # the first scheme hashed data with the program that made them, and no model
        if made.get("data_hash") != provenance.data_hash(run):
            raise UserError(f"{folder / RECORD}: made from other data; restore them, or train again")
        if made.get("start_hash") not in starts(run):
            raise UserError(f"{folder / RECORD}: made from another start ({run.init}); restore it, or train again")
        if bad := provenance.damaged_files(folder, made):
            raise UserError(
                f"{folder / bad[0]}: is not the file that was trained; restore it (`dvc checkout --force {folder / bad[0]}`), or delete it "
                f"and train again"
            )


def starts(run: Run) -> set[str]:
    """Hashes of the file that a run begins from: as it is, and as it was before its own header was brought up to date."""
    found = {provenance.start_hash(run)}
    record = run.pretrained.with_name(RECORD)
    if run.init == "source_only" and record.exists():
        found |= {note["model_hash"] for note in read_record(record).get("resigned", []) if note.get("model_hash")}
    return found


def compare_bits(run: Run, folder: Path, made: dict[str, Any], steps: int, device: Any) -> Signed:
    """Make the first steps again, and compare every number with the recorded history.

    Raises:
        UserError: names the first number that differs.
        Interrupted: a stop signal came; nothing is signed.
    """
    rows = read_history(folder / HISTORY)
    first = int(rows[0]["step"])
    last, unseen = enough(rows, steps)
    home = Path("results/.restart", *folder.parts[1:])
    with run_lock(home), tempfile.TemporaryDirectory(dir=home) as scratch:
        method = build(run, device)
        loop = Loop(run, method, build_optimizer(method, run.train.optimizer, device), device, Path(scratch), {})
        loop.p = replace(loop.p, log_every=first, save_every=run.train.steps)  # rows where the recorded ones are
        log.info("%s: making steps 1 to %d of %d again", folder, last, run.train.steps)
        with runtime.stop_requests() as request:
            try:
                loop.fit(request, until=last)
            except Interrupted:
                raise Interrupted(f"{folder}: stopped; nothing is signed") from None
    for row, recorded in zip(loop.history, rows, strict=False):
        for name, value in row.items():
            if not same_number(value, recorded.get(name, "")):
                raise UserError(
                    f"{folder}: step {int(row['step'])}: {name}: found {format(value, EXACT)}, expected "
                    f"{recorded.get(name) or 'nothing'}: the code computes something else now, or this machine another last "
                    f"bit than {made.get('device')} with torch {(made.get('versions') or {}).get('torch')}; train again"
                )
    return Signed(run, folder, last, unseen)


def enough(rows: list[dict[str, str]], steps: int) -> tuple[int, tuple[str, ...]]:
    """Up to which recorded step to go: until every loss has taken part, at most `steps`; and the losses that come later."""
    waiting = {name for row in rows for name, text in row.items() if text and float(text) != 0}
    last = 0
    for row in rows:
        if last and (not waiting or int(row["step"]) > steps):
            break
        last = int(row["step"])
        waiting -= {name for name, text in row.items() if text and float(text) != 0}
    return last, tuple(sorted(waiting))


def read_history(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [{name: text for name, text in row.items() if not only_looks(name)} for row in csv.DictReader(handle)]
    if not rows or "step" not in rows[0]:
        raise UserError(f"{path}: damaged, found no step in it; only a whole history can be compared")
    return rows


def same_number(value: float, text: str) -> bool:
    """Whether a recorded text is this number, with all its digits or, from the first scheme, with six."""
    return text in (format(value, EXACT), format(value, ROUNDED)) or (text.isdecimal() and float(text) == value)


def sign_run(run: Run, folder: Path, made: dict[str, Any], fingerprint: dict[str, str], steps: int) -> None:
    """run.json with today's hashes and a note of what was done; a header of the first scheme is brought up to date."""
    sign_again(folder / MODEL, run)
    before = {key: made.get(key) for key in ("scheme", *NOTED)}
    note = before | {"steps": steps, "revision": provenance.revision()["revision"]}
    signed = provenance.signature(run, fingerprint, folder)
    write_json(folder / RECORD, made | signed | {"resigned": [*made.get("resigned", []), note]})
    keep(folder)
