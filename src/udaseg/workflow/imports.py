"""Runs made on another machine, taken in where hashes vouch for them (docs/workflow.md)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from udaseg import identity, results
from udaseg.artifacts import MODEL, RECORD, file_hash, read_record, writing
from udaseg.engine import provenance
from udaseg.errors import UserError
from udaseg.params import Params, Run
from udaseg.workflow import plan
from udaseg.workflow.bridges import touch

SCORES = ("metrics.json", "run.json", "history.csv")
log = logging.getLogger("udaseg")


def import_run(params: Params, folder: Path, *, reference: bool) -> Path:
    """Take a run made on another machine into results/, or its scores into results/reference/.

    Into results/ the model comes too and Snakemake records the training as done; scoring is repeated here. A run of
    source_only is the pretrained model as well, where there is none yet.

    Args:
        params: params.yaml of this checkout.
        folder: a run's folder, as `udaseg train` and `evaluate` leave it.
        reference: take the committed records alone (metrics.json, run.json, history.csv; analysis.json and images.csv if they are there).

    Raises:
        UserError: a file is missing or damaged; the run was made with other parameters, code or data than those of this
            checkout; the model that it started from is not here.
    """
    made = read_record(folder / RECORD)
    try:
        run = params.resolve(made["benchmark"], made["method"], int(made["seed"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder / 'run.json'}: found no benchmark, method and seed; expected a run of udaseg"
        ) from None
    wanted = SCORES if reference else (*SCORES, MODEL)
    for name in wanted:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: not found; expected a finished run (--reference needs no model)")
    same_hashes(folder, made, run, reference=reference)
    check_files(run, folder)
    if reference:
        measured = tuple(name for name in ("analysis.json", "images.csv") if (folder / name).is_file())
        return copied(folder, Path("results/reference", *run.folder.parts[1:]), (*wanted, *measured))
    homes = [run.folder]
    if run.kind == "source_only" and not run.pretrained.exists():
        homes.insert(0, copied(folder, run.pretrained.parent, ("run.json", "history.csv", MODEL)))
    for path in plan.start(run):
        if not Path(path).exists():
            raise UserError(
                f"{path}: not found, and this run begins from it or follows it; import that run first, or make it: `snakemake {path}`"
            )
    copied(folder, run.folder, wanted)
    from udaseg.engine.training import keep

    for home in homes:
        keep(home)
    touch("--force", "--allowed-rules", "pretrain", "train", "--", *(str(home / MODEL) for home in homes))
    return run.folder


def copied(folder: Path, home: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        with writing(home / name) as temporary:
            temporary.write_bytes((folder / name).read_bytes())
    return home


def check_files(run: Run, folder: Path) -> None:
    """Raises UserError where a file is damaged, or scores contradict each other."""
    try:
        results.metrics(run, folder)
        results.history(run, folder)
        if (folder / "analysis.json").exists():
            results.analysis(run, folder)
        if (folder / "images.csv").exists():
            results.image_scores(run, folder)
    except UserError as error:
        raise UserError(f"{error} where {folder} was made") from None


def same_hashes(folder: Path, made: dict[str, Any], run: Run, *, reference: bool) -> None:
    data = Path("data", run.benchmark_name, "data.json")
    if made.get("scheme") != provenance.SCHEME:
        raise UserError(f"{folder / 'run.json'}: {provenance.OTHER_SCHEME}")
    expected = {"params_hash": run.hash, "code_hash": identity.digest_of(provenance.code_of(run))}
    if data.exists():
        expected["data_hash"] = file_hash(data)
    elif reference:
        log.warning("%s: not found, so the data of %s were not compared", data, folder)
    else:
        raise UserError(f"{data}: not found, so the run's data cannot be compared; run `snakemake {data}` first")
    for key, value in expected.items():
        if made.get(key) != value:
            raise UserError(
                f"{folder / 'run.json'}: {key}: found {made.get(key)}, expected {value}; check out the revision and "
                f"params.yaml that made the run ({made.get('revision') or 'revision not recorded'}), or train again"
            )
    if not reference:
        from udaseg.models.trained import read_header

        found = read_header(folder / MODEL).get("params_hash")
        if found != run.hash:
            raise UserError(
                f"{folder / MODEL}: params_hash: found {found}, expected {run.hash}; the model does not belong to the "
                f"run.json beside it"
            )
        if bad := provenance.damaged_files(folder, made):
            raise UserError(
                f"{folder / bad[0]}: is not the file that the run.json beside it describes; fetch both again"
            )
