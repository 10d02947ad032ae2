"""Reading a prepared data set: two zips of PNG and a manifest (docs/data.md).

Labels lie in a zip of their own, which is opened only when a label is asked for: an adaptation run never opens the labels of
its target.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from udaseg import artifacts
from udaseg.errors import UserError
from udaseg.params import Use, without

FORMAT = 1


@dataclass(frozen=True)
class Sample:
    """One line of the manifest.

    Attributes:
        name: stem of the delivered file.
        image, label, reference: members of the zips; None where there is none.
        image_size, label_size: (width, height) in pixels, as prepared.
        counts: label value -> pixels on the full-size label, void excluded; None without label.
    """

    name: str
    image: str
    label: str | None
    reference: str | None
    image_size: tuple[int, int]
    label_size: tuple[int, int] | None
    counts: dict[int, int] | None


class Prepared:
    """A folder with images.zip, labels.zip and manifest.json. May be pickled and forked: zips open once per process."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError: no manifest, or one of another version."""
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        self.manifest: dict[str, Any] = artifacts.read_json(path, f"a data set made by `{command_for(self.folder)}`")
        if self.manifest.get("format") != FORMAT:
            raise UserError(
                f"{path}: found format {self.manifest.get('format')}, expected {FORMAT}; delete {self.folder} and "
                f"{self.again}"
            )
        self.classes: tuple[str, ...] = tuple(self.manifest["classes"])
        self._zips: dict[tuple[int, str], zipfile.ZipFile] = {}

    @property
    def again(self) -> str:
        """What to do where something in here is damaged."""
        return f"run `{command_for(self.folder)}` again"

    @property
    def splits(self) -> list[str]:
        return list(self.manifest["splits"])

    def samples(self, split: str) -> list[Sample]:
        """Raises UserError for an unknown split."""
        if split not in self.manifest["splits"]:
            raise UserError(
                f"{self.folder}: found the splits {', '.join(self.splits)}, expected {split!r} among them; {self.again}"
            )
        return [
            Sample(
                entry["name"],
                entry["image"],
                entry["label"],
                entry["reference"],
                tuple(entry["image_size"]),
                tuple(entry["label_size"]) if entry["label_size"] else None,
                None if entry["counts"] is None else {int(k): n for k, n in entry["counts"].items()},
            )
            for entry in self.manifest["splits"][split]
        ]

    def labelled(self, split: str) -> bool:
        return any(sample.label for sample in self.samples(split))

    def image(self, sample: Sample) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return self._array("images.zip", sample.image)

    def label(self, sample: Sample) -> np.ndarray:
        """(H, W) uint8 indices into `classes`, 255 = void. Raises UserError where the sample has no label."""
        if not sample.label:
            raise UserError(f"{self.folder}: {sample.image} has no label; choose a labelled split")
        return self._array("labels.zip", sample.label)

    def reference(self, sample: Sample) -> np.ndarray:
        """(H, W, 3) uint8 RGB image of the same place by day. Raises UserError where there is none."""
        if not sample.reference:
            raise UserError(f"{self.folder}: {sample.image} has no day reference")
        return self._array("images.zip", sample.reference)

    def read(self, archive: str, member: str) -> bytes:
        """A member's bytes, checked against the zip's checksum.

        Raises:
            UserError: the zip or the member is missing or damaged.
        """
        path = self.folder / archive
        key = (os.getpid(), archive)  # a handle shared over a fork would share its position
        try:
            if key not in self._zips:
                self._zips[key] = self._opened(path)
            return self._zips[key].read(member)
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: {member} cannot be read ({error}); {self.again}") from None

    def _opened(self, path: Path) -> zipfile.ZipFile:
        """A zip whose directory (names and checksums) is that of the manifest: what was exchanged inside is noticed at once."""
        opened = zipfile.ZipFile(path)
        wanted = self.manifest["files"].get(path.name, {}).get("directory")  # not in manifests of older versions
        if wanted and directory_of(opened) != wanted:
            raise zipfile.BadZipFile("its members are not those of the manifest")
        return opened

    def _array(self, archive: str, member: str) -> np.ndarray:
        data = self.read(archive, member)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.array(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{self.folder / archive}: {member} is no PNG ({error}); {self.again}") from None

    def verify(self) -> None:
        """Compare every byte of the zips with the manifest: for `udaseg prepare`, `verify` and `doctor`.

        Raises:
            UserError: a zip is missing or differs.
        """
        self.check()
        for name, about in self.manifest["files"].items():
            path = self.folder / name
            if _hash_at(path, path.stat().st_ctime_ns, path.stat().st_size) != about["sha256"]:
                raise UserError(f"{self.folder / name}: damaged, its sha256 is not that of the manifest; {self.again}")

    def check(self) -> None:
        """Compare the zips' sizes with the manifest: quick, finds what was cut short or mixed up.

        Raises:
            UserError: a zip is missing or of another size.
        """
        for name, about in self.manifest["files"].items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != about["bytes"]:
                what = "no file" if found is None else f"{found} bytes"
                raise UserError(f"{path}: found {what}, expected {about['bytes']} bytes; {self.again}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_zips": {}}


def command_for(folder: Path) -> str:
    """What makes prepared data: `<data>/<benchmark>/<set>` with its benchmark, `data/<set>-<size>` by itself."""
    if folder.parent.name != "data":
        return f"udaseg prepare --benchmark {folder.parent.name}"
    name, _, size = folder.name.rpartition("-")
    return f"udaseg prepare {name} --size {size}"


def content_hash(manifest: dict[str, Any]) -> str:
    """Of what prepared data hold, wherever it came from and however it was made: a new recipe with the old result disowns nothing."""
    content = without(manifest, "recipe", "origin")
    content["files"] = {name: without(about, "directory") for name, about in manifest["files"].items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(64)
def _hash_at(path: Path, changed: int, size: int) -> str:
    """sha256 of a file, formed once in a process as long as it is not touched: zips hold gigabytes."""
    return artifacts.file_hash(path)


def directory_hash(path: Path) -> str:
    """Of a zip's directory: names, sizes and checksums of its members."""
    with zipfile.ZipFile(path) as opened:
        return directory_of(opened)


def directory_of(opened: zipfile.ZipFile) -> str:
    members = [[info.filename, info.file_size, info.CRC] for info in opened.infolist()]
    return hashlib.sha256(json.dumps(members).encode()).hexdigest()[:16]


def find_prepared(benchmark: str, use: Use, root: Path = Path("data")) -> Prepared:
    """The prepared data that a benchmark uses.

    Raises:
        UserError: not prepared yet, or a manifest that is not the one of data.json.
    """
    folder, again = root / benchmark / use.prepared, f"run `udaseg prepare --benchmark {benchmark}`"
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder}: not prepared yet; {again}")
    prepared = Prepared(folder)
    record = root / benchmark / "data.json"
    sets = artifacts.read_json(record, f"a record of prepared data; {again}")
    try:
        wanted = sets["sets"][use.prepared]["content_sha256"]
    except (KeyError, TypeError):
        raise UserError(f"{record}: found no hash of {use.prepared}, expected one; {again}") from None
    if content_hash(prepared.manifest) != wanted:
        raise UserError(f"{folder / 'manifest.json'}: changed since it was written, {record} has another hash; {again}")
    return prepared
