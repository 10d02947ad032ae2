"""From a data set as delivered to images.zip, labels.zip and manifest.json: the road that all formats share.

Every sample becomes one part file below `.part/`, made in parallel; finished parts survive an interruption. Then the parts
are packed into the two zips, the manifest is written last, and the parts go. Equal input gives equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udaseg import artifacts, identity
from udaseg.checking import essential
from udaseg.classes import IGNORE
from udaseg.data import convert, formats, parallel
from udaseg.data.account import of_benchmark
from udaseg.data.contact import contact_sheet
from udaseg.data.delivered import Notes, Stat, key_of
from udaseg.data.found import Found, Item
from udaseg.data.prepared import FORMAT, Prepared, content_hash, directory_hash
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
log = logging.getLogger("udaseg")
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
    if splits is not None and _rests(folder, name, dataset, size, splits):
        return folder
    found = formats.find_delivered(name, dataset)
    _prepare(name, dataset, size, folder, found, _chosen(name, dataset, found, splits), jobs, [])
    return folder


def prepare_benchmark(p: Params, name: str, *, jobs: int, root: Path = Path("data")) -> str:
    """Prepare everything that a benchmark uses below `root/<benchmark>/`, and return an account of it.

    data.json is written last: where it exists, all is complete. What another benchmark has prepared alike is linked or copied.

    Raises:
        UserError: as `prepare_dataset`; a split that the data set lacks; a source or evaluation split without labels; what
            `account.of_benchmark` finds.
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
            if _rests(folder, dataset_name, dataset, size, splits):
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
        if not _is_current(folder, dataset_name, dataset, size, found, splits, Notes(folder)):
            _discard_damaged(folder)
            record.unlink(missing_ok=True)
        others = [path for path in (*Path(root).glob(f"*/{prepared}"), Path(root) / prepared) if path != folder]
        _prepare(dataset_name, dataset, size, folder, found, splits, jobs, sorted(others))
    sets = {}
    for prepared in wanted:
        manifest = Prepared(home / prepared).manifest
        counts = {split: len(samples) for split, samples in manifest["splits"].items()}
        sets[prepared] = {"content_sha256": content_hash(manifest), "splits": counts}
    account = of_benchmark(p, name, root)
    content = {"benchmark": name, "sets": sets}
    if not record.is_file() or artifacts.read_json(record, "a record of prepared data") != content:
        artifacts.write_json(record, content)
    return account


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
                raise UserError(formats.absent(dataset.format, dataset.folder, f"no {split} images", split))
            raise UserError(f"{name}: found the splits {', '.join(found.splits)}, expected {split!r} among them")
    return sorted(set(splits) if splits is not None else found.splits)


def _is_complete(folder: Path, name: str, recipe: str, splits: Iterable[str]) -> bool:
    """Whether `folder` holds exactly these splits, made by this recipe, every byte as it was written."""
    if not (folder / "manifest.json").is_file():
        return False
    try:
        about = _whole(folder).manifest
    except UserError:
        return False
    return (about["dataset"], about["recipe"], set(about["splits"])) == (name, recipe, set(splits))


def _discard_damaged(folder: Path) -> None:
    """Data that are not as they were written are made anew: their manifest goes, and they are no data any more."""
    if (folder / "manifest.json").is_file():
        try:
            _whole(folder)
        except UserError as error:
            log.warning("%s", error)
            (folder / "manifest.json").unlink()


def _whole(folder: Path) -> Prepared:
    """Prepared data as they were written.

    Raises:
        UserError: none, damaged ones, or a manifest that is not the one that was written.
    """
    prepared = Prepared(folder)
    prepared.verify()
    known = Notes(folder).manifest
    record = folder.parent / "data.json"
    if not known and record.is_file():
        with contextlib.suppress(KeyError, TypeError):
            known = artifacts.read_json(record, "a record of prepared data")["sets"][folder.name]["content_sha256"]
    if known and known != content_hash(prepared.manifest):
        raise UserError(f"{folder / 'manifest.json'}: changed since it was written; it is made anew")
    return prepared


def _rests(folder: Path, name: str, dataset: Dataset, size: Size, splits: Iterable[str]) -> bool:
    """Complete, and nothing to compare with: the delivered files are gone, as people do with what is large."""
    return not formats.is_there(dataset) and _is_complete(folder, name, recipe_of(dataset, size), splits)


def _is_current(
    folder: Path, name: str, dataset: Dataset, size: Size, found: Found, splits: Sequence[str], notes: Notes
) -> bool:
    """Complete, and made from the files that are delivered now."""
    if not _is_complete(folder, name, recipe_of(dataset, size), splits):
        return False
    if Prepared(folder).manifest["origin"] != _origin(found, splits, notes):
        return False
    if notes.changed:  # touched, but equal
        notes.save(_items(found, splits))
    return True


def _items(found: Found, splits: Iterable[str]) -> list[Item]:
    return [item for split in splits for item in found.splits[split]]


def _origin(found: Found, splits: Iterable[str], notes: Notes) -> dict[str, Any]:
    """Where the data come from, and the digest of what was delivered; a rendered scene has no file."""
    items = [item for item in _items(found, splits) if item.files]
    return found.origin | ({"delivered": notes.digest(items)} if items else {})


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
    for note in found.notes:
        log.info("%s: %s", name, note)
    notes = Notes(folder)
    if _is_current(folder, name, dataset, size, found, splits, notes):
        return
    _discard_damaged(folder)
    recipe, work = recipe_of(dataset, size), folder / ".part"
    with _writable(folder), artifacts.run_lock(work):
        for leftover in folder.glob(".*.part"):  # of a killed run, as large as the zips
            if leftover.is_file():
                leftover.unlink()
        for other in others:
            if _is_current(other, name, dataset, size, found, splits, Notes(other)) and _link(Prepared(other), folder):
                notes.save(_items(found, splits), content_hash(Prepared(folder).manifest))
                shutil.rmtree(work, ignore_errors=True)
                return
        donors = _donors((folder, *others), name, recipe, found, splits, notes)
        tasks = {
            key_of(item): convert.Task(
                item,
                found.encoding,
                size,
                found.delivered,
                convert.keeps_label_size(item.split),
                work / recipe / item.split / f"{item.name}.part",
            )
            for item in _items(found, splits)
            if key_of(item) not in donors
        }
        _convert(list(tasks.values()), jobs, f"prepare {folder.name}", name)
        packed = Packed(strict=dataset.format == "folder")
        _pack(folder, _items(found, splits), tasks, donors, packed, lambda made: _check_totals(name, made, found))
        for path, (stat, sha) in packed.sources:
            notes.add(path, stat, sha)
        manifest = {
            "format": FORMAT,
            "dataset": name,
            "size": str(size),
            "recipe": recipe,
            "classes": list(found.classes),
            "origin": _origin(found, splits, notes),
            "splits": packed.entries,
            "files": {z: _about(folder / z) for z in ZIPS},
        }
        notes.save(_items(found, splits), content_hash(manifest))
        artifacts.write_text(folder / "manifest.json", _manifest_text(manifest))
        shutil.rmtree(work, ignore_errors=True)


def _about(path: Path) -> dict[str, Any]:
    return {"sha256": artifacts.file_hash(path), "bytes": path.stat().st_size, "directory": directory_hash(path)}


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if known := artifacts.not_written(folder, error):
            raise known from None
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


@dataclass
class Packed:
    """What is known once all samples are packed.

    Attributes:
        strict: labels of one data set share a palette (not so where a publisher vouches for them).
        entries: of the manifest.
        sources: delivered files with listing and hash.
        colours: index of palette labels -> colour, and the sample that had it first.
    """

    strict: bool
    entries: Entries = field(default_factory=dict)
    sources: list[tuple[Path, tuple[Stat, str]]] = field(default_factory=list)
    colours: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, item: Item, part: convert.Part) -> None:
        """Raises UserError where a palette contradicts that of another label."""
        self.entries.setdefault(item.split, []).append(part.entry)
        self.sources += zip(item.files, part.sources, strict=True) if part.sources else ()
        for value, colour in part.colours.items() if self.strict else ():
            before, first = self.colours.setdefault(value, (colour, key_of(item)))
            if before != colour:
                raise UserError(
                    f"label {item.label}: palette index {value} has colour {colour}, but {before} in the label of {first}: a program has "
                    f"packed the palettes anew, so that equal numbers are other classes; save labels as 8-bit grey PNG of class numbers"
                )


def _pack(
    folder: Path,
    items: Sequence[Item],
    tasks: dict[str, convert.Task],
    donors: dict[str, tuple[Prepared, dict[str, Any]]],
    packed: Packed,
    check: Callable[[Entries], None],
) -> None:
    """Write both zips, in the order of splits and samples, once `check` accepts the entries."""
    with contextlib.ExitStack() as stack:
        zips = {}
        for name in ZIPS:
            temporary = stack.enter_context(artifacts.writing(folder / name))
            zips[name] = stack.enter_context(zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED))
        for item in items:
            key = key_of(item)
            part = _finished(tasks[key]) if key in tasks else _donated(*donors[key])
            packed.add(item, part)
            for archive, member, data in part.members:
                info = zipfile.ZipInfo(member)  # dated 1980: no time stamp
                info.external_attr, info.create_system = 0o644 << 16, 3
                zips[archive].writestr(info, data)
        check(packed.entries)
        (folder / "manifest.json").unlink(missing_ok=True)  # of older zips, which are replaced now


def _finished(task: convert.Task) -> convert.Part:
    part = convert.read_part(task.part)
    if part is None:
        task.part.unlink()
        raise UserError(f"{task.part}: damaged by an earlier crash, deleted; run the same command again")
    return part


def _donated(donor: Prepared, entry: dict[str, Any]) -> convert.Part:
    members = [("images.zip", entry["image"])]
    members += [("images.zip", entry["reference"])] if entry["reference"] else []
    members += [("labels.zip", entry["label"])] if entry["label"] else []
    return convert.Part(entry, [(archive, member, donor.read(archive, member)) for archive, member in members])


def _donors(
    folders: Iterable[Path], name: str, recipe: str, found: Found, splits: Sequence[str], notes: Notes
) -> dict[str, tuple[Prepared, dict[str, Any]]]:
    """Samples that are prepared already, by the same recipe from files of the same content: key -> where, and its entry."""
    out: dict[str, tuple[Prepared, dict[str, Any]]] = {}
    for folder in folders:
        try:
            donor = _whole(folder)
        except UserError:
            continue
        about, known = donor.manifest, Notes(folder)
        if about["dataset"] != name or about["recipe"] != recipe:
            continue
        notes.files = known.files | notes.files
        entries = {f"{split}/{entry['name']}": entry for split in about["splits"] for entry in about["splits"][split]}
        for item in _items(found, splits):
            key = key_of(item)
            if key in out or key not in entries:
                continue
            if not item.files or known.knew(item) == notes.of_sample(item):
                out[key] = donor, entries[key]
    return out


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
