"""From a data set as delivered to images.zip, labels.zip and manifest.json: the road that all formats share.

Every sample becomes one part file below `.part/`, made in parallel; finished parts survive an interruption. Then the parts
are packed into the two zips, the manifest is written last, and the parts go. Equal input gives equal bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from udaseg import artifacts, identity
from udaseg.checking import essential
from udaseg.classes import IGNORE
from udaseg.data import convert, formats, parallel
from udaseg.data.contact import contact_sheet
from udaseg.data.found import Found
from udaseg.data.prepared import FORMAT, Prepared
from udaseg.errors import UserError
from udaseg.params import LICENSED, Dataset, Params, Size, uses, without

__all__ = ["contact_sheet", "prepare_benchmark", "prepare_dataset"]

VERSION = 1  # of the conversion: raise it when the same input gives other bytes
ZIPS = ("images.zip", "labels.zip")
# Keys that a recipe held from the start whatever they were; a newer one is in it only where it is not at its default.
FIRST_KEYS: dict[str, Any] = {
    "exclude": [],
    "look": None,
    "seed": 0,
    "images": None,
    "labels": None,
    "classes": "cityscapes19",
    "ids": {},
}
Entries = dict[str, list[dict[str, Any]]]  # split -> manifest entries
MOST_PROBLEMS = 100  # a wrong class table spoils every sample: stop looking


def prepare_dataset(
    name: str,
    dataset: Dataset,
    size: Size,
    folder: Path,
    *,
    jobs: int,
    splits: Sequence[str] | None = None,
) -> Path:
    """Prepare splits of one data set (all when None) into `folder`, and return it.

    Complete data are left untouched; after an interruption only what is missing is made.

    Args:
        size: requested image size; the aspect is kept.
        jobs: processes.

    Raises:
        UserError: data missing, incomplete or damaged, or the disk full; what is finished stays for the next run.
    """
    folder = Path(folder)
    recipe = recipe_of(dataset, size)
    if splits is not None and _is_complete(folder, name, recipe, splits) and not _may_have_changed(dataset):
        return folder
    found = formats.find_delivered(name, dataset)
    _prepare(name, dataset, size, folder, found, _chosen(name, dataset, found, splits), jobs, [])
    return folder


def prepare_benchmark(p: Params, name: str, *, jobs: int, root: Path = Path("data")) -> Path:
    """Prepare everything that a benchmark uses below `root/<benchmark>/`, and return the path of its data.json.

    data.json is written last: where it exists, all is complete. What another benchmark has prepared alike is linked or copied.

    Raises:
        UserError: as `prepare_dataset`; a split that the data set lacks; a source or evaluation split without labels.
    """
    home = Path(root) / name
    wanted: dict[str, tuple[str, Size, list[str]]] = {}
    labelled: dict[str, set[str]] = {}  # splits that must have labels
    for use in uses(p.benchmarks[name]):
        chosen = wanted.setdefault(use.prepared, (use.dataset, use.size, []))[2]
        if use.split not in chosen:
            chosen.append(use.split)
        if use.role != "target":
            labelled.setdefault(use.prepared, set()).add(use.split)

    # look at everything before the first image is converted: all that is missing is said at once
    todo: dict[str, tuple[Found, list[str]]] = {}
    problems = []
    for prepared, (dataset_name, size, splits) in wanted.items():
        dataset, folder = p.datasets[dataset_name], home / prepared
        source: Prepared | Found
        try:
            complete = _is_complete(folder, dataset_name, recipe_of(dataset, size), splits)
            if complete and not _may_have_changed(dataset):
                source = Prepared(folder)
            else:
                source = formats.find_delivered(dataset_name, dataset)
                todo[prepared] = source, _chosen(dataset_name, dataset, source, splits)
        except UserError as error:
            problems.append(str(error))
            continue
        for split in sorted(labelled.get(prepared, ())):
            if not source.labelled(split):
                problems.append(
                    f"benchmarks.{name}: {dataset_name}/{split} has no labels, so it can only be the target"
                )
    if problems:
        raise UserError("\n  ".join(problems))

    record = home / "data.json"
    for prepared, (found, splits) in todo.items():
        dataset_name, size, _ = wanted[prepared]
        dataset, folder = p.datasets[dataset_name], home / prepared
        if not _is_current(folder, dataset_name, dataset, size, found, splits):
            record.unlink(missing_ok=True)
        others = [path for path in (*Path(root).glob(f"*/{prepared}"), Path(root) / prepared) if path != folder]
        _prepare(dataset_name, dataset, size, folder, found, splits, jobs, sorted(others))
    sets = {}
    for prepared in wanted:
        manifest = Prepared(home / prepared).manifest
        counts = {split: len(samples) for split, samples in manifest["splits"].items()}
        sets[prepared] = {"content_sha256": content_hash(manifest), "splits": counts}
    content = {"benchmark": name, "sets": sets}
    if not record.is_file() or artifacts.read_json(record, "a record of prepared data") != content:
        artifacts.write_json(record, content)
    return record


def content_hash(manifest: dict[str, Any]) -> str:
    """Of what prepared data hold, wherever it came from and however it was made: a new recipe with the old result disowns nothing."""
    content = without(manifest, "recipe", "origin")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def recipe_of(dataset: Dataset, size: Size) -> str:
    """Hash of what decides a sample's bytes. Splits and the place of the files are left out."""
    block = FIRST_KEYS | without(essential(dataset), "root", "count")
    made = [VERSION, block, str(size)]
    if dataset.format == "streets":  # its input is the renderer
        renderer = identity.closure("data.streets")
        made += [dataset.count, {name: identity.digest(name) for name in renderer}]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def _chosen(name: str, dataset: Dataset, found: Found, splits: Sequence[str] | None) -> list[str]:
    """The splits to prepare, sorted."""
    for split in splits or ():
        if split not in found.splits:
            known = formats.EXPECTED.get(dataset.format, {})
            if dataset.format in LICENSED and split in known:
                raise UserError(formats.absent(dataset.format, Path(dataset.root or ""), f"no {split} images", split))
            raise UserError(f"{name}: found the splits {', '.join(found.splits)}, expected {split!r} among them")
    return sorted(set(splits) if splits is not None else found.splits)


def _is_complete(folder: Path, name: str, recipe: str, splits: Iterable[str]) -> bool:
    """Whether `folder` holds exactly these splits, made by this recipe."""
    if not (folder / "manifest.json").is_file():
        return False
    try:
        prepared = Prepared(folder)
        prepared.check()
    except UserError:
        return False
    about = prepared.manifest
    return (about["dataset"], about["recipe"], set(about["splits"])) == (name, recipe, set(splits))


def _may_have_changed(dataset: Dataset) -> bool:
    """A folder of images grows and shrinks; the other data sets are what they are, and their raw files may be gone."""
    return dataset.format == "folder" and dataset.root is not None and Path(dataset.root).is_dir()


def _is_current(folder: Path, name: str, dataset: Dataset, size: Size, found: Found, splits: Sequence[str]) -> bool:
    """Complete, and for a folder of images also made from the files that are there now."""
    if not _is_complete(folder, name, recipe_of(dataset, size), splits):
        return False
    return "listing" not in found.origin or Prepared(folder).manifest["origin"] == found.origin


def _prepare(
    name: str,
    dataset: Dataset,
    size: Size,
    folder: Path,
    found: Found,
    splits: list[str],
    jobs: int,
    others: list[Path],
) -> None:
    """Make `folder`; `others` are folders that may hold the same splits already."""
    if _is_current(folder, name, dataset, size, found, splits):
        return
    recipe, work = recipe_of(dataset, size), folder / ".part"
    with _writable(folder), artifacts.run_lock(work):
        for leftover in folder.glob(".*.part"):  # of a killed run, as large as the zips
            if leftover.is_file():
                leftover.unlink()
        donors: dict[str, Prepared] = {}
        for other in (folder, *others):
            donor = _donor(other, name, recipe, found)
            if donor is None:
                continue
            if other != folder and set(donor.splits) == set(splits) and _link(donor, folder):
                shutil.rmtree(work, ignore_errors=True)
                return
            donors = {split: donor for split in donor.splits} | donors
        tasks = {
            split: [
                convert.Task(
                    item,
                    found.encoding,
                    size,
                    found.delivered,
                    convert.keeps_label_size(split),
                    work / recipe / split / f"{item.name}.part",
                )
                for item in found.splits[split]
            ]
            for split in splits
            if split not in donors
        }
        _convert([task for group in tasks.values() for task in group], jobs, f"prepare {folder.name}", name)
        entries = _pack(folder, splits, tasks, donors, lambda made: _check_totals(name, made, found))
        manifest = {
            "format": FORMAT,
            "dataset": name,
            "size": str(size),
            "recipe": recipe,
            "classes": list(found.classes),
            "origin": found.origin,
            "splits": entries,
            "files": {
                z: {"sha256": artifacts.file_hash(folder / z), "bytes": (folder / z).stat().st_size} for z in ZIPS
            },
        }
        artifacts.write_text(folder / "manifest.json", _manifest_text(manifest))
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); free space or choose another disk, then run again "
                f"(nothing finished is lost)"
            ) from None
        raise


# --- converting in parallel -----------------------------------------------------------------------------------------


def _convert(tasks: list[convert.Task], jobs: int, title: str, name: str) -> None:
    """Make every part that is not finished yet.

    Raises:
        UserError: naming the samples that cannot be used; all others are finished by then.
    """
    if not tasks:
        return
    todo = [task for task in tasks if not convert.is_finished(task.part, task.item.files)]
    progress = parallel.Progress(title, len(tasks), len(tasks) - len(todo))
    problems: list[str] = []
    with contextlib.closing(parallel.results(convert.convert, todo, jobs)) as results:
        for problem in results:
            progress.step()
            if problem:
                problems.append(problem)
                if len(problems) == MOST_PROBLEMS:
                    break
    progress.finish()
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        at_least = "at least " if len(problems) == MOST_PROBLEMS else ""
        listing = json.dumps([problem.partition(": ")[0].partition("/")[2] for problem in problems], ensure_ascii=False)
        raise UserError(
            f"{name}: {at_least}{len(problems)} of {len(tasks)} images cannot be prepared: {'; '.join(problems[:3])}{more}; "
            f"mend them, or add them to datasets.{name}.exclude in params.yaml: {listing}"
        )


# --- packing --------------------------------------------------------------------------------------------------------


def _pack(
    folder: Path,
    splits: list[str],
    tasks: dict[str, list[convert.Task]],
    donors: dict[str, Prepared],
    check: Callable[[Entries], None],
) -> Entries:
    """Write both zips, in the order of splits and samples, and return the manifest's entries once `check` accepts them."""
    entries: Entries = {}
    with contextlib.ExitStack() as stack:
        zips = {}
        for name in ZIPS:
            temporary = stack.enter_context(artifacts.writing(folder / name))
            zips[name] = stack.enter_context(zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED))
        for split in splits:
            parts = _donated(donors[split], split) if split in donors else map(_finished, tasks[split])
            for part in parts:
                entries.setdefault(split, []).append(part.entry)
                for archive, member, data in part.members:
                    info = zipfile.ZipInfo(member)  # dated 1980: no time stamp
                    info.external_attr, info.create_system = 0o644 << 16, 3
                    zips[archive].writestr(info, data)
        check(entries)
        (folder / "manifest.json").unlink(missing_ok=True)  # of older zips, which are replaced now
    return entries


def _finished(task: convert.Task) -> convert.Part:
    part = convert.read_part(task.part)
    if part is None:
        task.part.unlink()
        raise UserError(f"{task.part}: damaged by an earlier crash, deleted; run the same command again")
    return part


def _donated(donor: Prepared, split: str) -> Iterator[convert.Part]:
    for entry in donor.manifest["splits"][split]:
        members = [("images.zip", entry["image"])]
        members += [("images.zip", entry["reference"])] if entry["reference"] else []
        members += [("labels.zip", entry["label"])] if entry["label"] else []
        yield convert.Part(entry, [(archive, member, donor.read(archive, member)) for archive, member in members])


def _donor(folder: Path, name: str, recipe: str, found: Found) -> Prepared | None:
    """The prepared data in `folder`, if they were made by the same recipe from the same files."""
    try:
        donor = Prepared(folder)
        donor.check()
    except UserError:
        return None
    about = donor.manifest
    same = about["dataset"] == name and about["recipe"] == recipe and about["origin"] == found.origin
    return donor if same else None


def _link(donor: Prepared, folder: Path) -> bool:
    """Take over all of another folder by hard links, or copies where the file system has none; False if it is damaged."""
    files = donor.manifest["files"]
    if any(artifacts.file_hash(donor.folder / name) != files[name]["sha256"] for name in ZIPS):
        return False
    (folder / "manifest.json").unlink(missing_ok=True)
    for name in (*ZIPS, "manifest.json"):
        with artifacts.writing(folder / name) as temporary:
            try:
                os.link(donor.folder / name, temporary)
            except OSError:
                shutil.copyfile(donor.folder / name, temporary)
    return True


def _check_totals(name: str, entries: Entries, found: Found) -> None:
    """Compare the sums of pixels with the known ones.

    Raises:
        UserError: labels are not those that were published.
    """
    for split in entries.keys() & found.totals.keys():
        sums: Counter[int] = Counter()
        for entry in entries[split]:
            counts = {int(value): n for value, n in (entry["counts"] or {}).items()}
            sums.update(counts)
            if found.delivered:
                sums[IGNORE] += found.delivered[0] * found.delivered[1] - sum(counts.values())
        for value, expected in found.totals[split].items():
            if sums[value] != expected:
                raise UserError(
                    f"{name}: labels of {split} hold {sums[value]} pixels of value {value}, expected {expected}: not the "
                    f"published labels; fetch the data again"
                )


def _manifest_text(manifest: dict[str, Any]) -> str:
    """JSON with one line for each sample: short, and readable by a person."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, sort_keys=True)

    splits = []
    for split in sorted(manifest["splits"]):
        samples = ",\n      ".join(line(entry) for entry in manifest["splits"][split])
        splits.append(f"    {line(split)}: [\n      {samples}\n    ]")
    rest = [f"  {line(key)}: {line(manifest[key])}" for key in manifest if key != "splits"]
    return "{\n" + ",\n".join([*rest, '  "splits": {\n' + ",\n".join(splits) + "\n  }"]) + "\n}\n"
