"""Results that no job has made: changed by hand or by damage, and about to pass as made.

DVC compares files with dvc.lock, and `dvc commit` takes what lies there. A result may differ from dvc.lock although nothing
that decides it does: made again on another machine, whose last bits are others. Then it is as Snakemake's job left it. A file
that is not is nobody's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from udaseg.artifacts import RECORD, file_hash, read_json, read_record
from udaseg.data.prepare import content_hash
from udaseg.engine.provenance import VOUCHED
from udaseg.errors import UserError
from udaseg.workflow import guard

# Not the report: it holds seconds from run.json, so that writing it again by hand gives another; and nothing is made from it.
STEPS = ("prepare", "pretrain", "train", "evaluate", "analyse", "compare", "select", "figure")


def check_made(status: Mapping[str, Any], folder: Path | None = None) -> None:
    """Refuse where DVC would take over a result that no job has made.

    Args:
        status: what `dvc status --json` says of each stage that is not as in dvc.lock.
        folder: look at the results in it alone, and also where parameters or code differ from dvc.lock.

    Raises:
        UserError: names the first such file in the order of the pipeline, and what mends it.
    """
    path = next(altered(status, folder), None)
    if path is None:
        return
    again = "delete it and run `snakemake`"
    if path.parts[0] == "data":
        again = f"delete {Path(*path.parts[:3])} and run `udaseg prepare --benchmark {path.parts[1]}`"
    raise UserError(
        f"{path}: differs from dvc.lock, and no job has made it so: changed by hand, or damaged; {again}, or restore it (`dvc checkout --force {path}`, a file in git: `git checkout {path}`); then "
        f"run this again"
    )


def altered(status: Mapping[str, Any], folder: Path | None = None) -> Iterator[Path]:
    """Results that differ from dvc.lock, in stages of which nothing else does, and are not as their job left them."""
    stages = [(STEPS.index(name.partition("@")[0]), name) for name in status if name.partition("@")[0] in STEPS]
    for _, name in sorted(stages):
        kinds: dict[str, Any] = {}
        for entry in status[name]:
            kinds |= entry if isinstance(entry, dict) else {entry: {}}
        if folder is None and set(kinds) != {"changed outs"}:
            continue
        for out, how in sorted(kinds.get("changed outs", {}).items()):
            if how == "modified" and (folder is None or folder == Path(out).parent):
                yield from nobodys(Path(out))


def nobodys(out: Path) -> Iterator[Path]:
    """The file, or those of a folder that DVC keeps as one, that no job has left as they are."""
    if out.parts[0] == "data":
        yield from altered_data(out)
    elif out.is_dir():  # copies, results/.compared/<benchmark>/<method>-seed<k>/
        method, _, seed = out.name.rpartition("-seed")
        home = Path("results", out.parent.name, method, f"seed{seed}")
        for copy in sorted(out.iterdir()):
            if not (home / copy.name).is_file() or (home / copy.name).read_bytes() != copy.read_bytes():
                yield copy
    elif not (is_as_left(out) or is_vouched(out)):
        yield out


def altered_data(home: Path) -> Iterator[Path]:
    """Of data/<benchmark>: data.json holds a hash of each manifest, and this those of the zips beside it."""
    made = read_json(home / "data.json", "a record of prepared data")
    for name, about in made["sets"].items():
        manifest = read_json(home / name / "manifest.json", "the manifest of prepared data")
        if content_hash(manifest) != about["content_sha256"]:
            yield home / name / "manifest.json"
        for archive, told in manifest["files"].items():
            if file_hash(home / name / archive) != told["sha256"]:
                yield home / name / archive


def is_as_left(path: Path) -> bool:
    """Whether a file has not been written since Snakemake's job ended; the time of writing is in its record."""
    try:
        made = json.loads(guard.place(path.as_posix()).read_text())["endtime"]
        return abs(path.stat().st_mtime - made) < 1e-3
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_vouched(path: Path) -> bool:
    """Whether a training's run.json holds the hash of this file of it."""
    key = VOUCHED.get(path.name)
    record = path.with_name(RECORD)
    if key is None or not record.is_file():
        return False
    return bool(read_record(record).get(key) == file_hash(path))
