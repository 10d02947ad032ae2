"""Reading a prepared data set: two zips of PNG and a manifest (docs/data.md).

Labels lie in a zip of their own, which is opened only when a label is asked for: an adaptation run never opens the labels of
its target.
"""

from __future__ import annotations

import io
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
from udaseg.params import Use

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
        self.manifest: dict[str, Any] = artifacts.read_json(path, "a data set made by `udaseg prepare`")
        if self.manifest.get("format") != FORMAT:
            raise UserError(
                f"{path}: found format {self.manifest.get('format')}, expected {FORMAT}; delete {self.folder} and run "
                f"`udaseg prepare` again"
            )
        self.classes: tuple[str, ...] = tuple(self.manifest["classes"])
        self._zips: dict[tuple[int, str], zipfile.ZipFile] = {}

    @property
    def splits(self) -> list[str]:
        return list(self.manifest["splits"])

    def samples(self, split: str) -> list[Sample]:
        """Raises UserError for an unknown split."""
        if split not in self.manifest["splits"]:
            raise UserError(
                f"{self.folder}: found the splits {', '.join(self.splits)}, expected {split!r} among them; run `udaseg prepare`"
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
                self._zips[key] = zipfile.ZipFile(path)
            return self._zips[key].read(member)
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: {member} cannot be read ({error}); run `udaseg prepare` again") from None

    def _array(self, archive: str, member: str) -> np.ndarray:
        data = self.read(archive, member)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.array(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{self.folder / archive}: {member} is no PNG ({error}); run `udaseg prepare` again"
            ) from None

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
                raise UserError(f"{path}: found {what}, expected {about['bytes']} bytes; run `udaseg prepare` again")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_zips": {}}


def find_prepared(benchmark: str, use: Use, root: Path = Path("data")) -> Prepared:
    """The prepared data that a benchmark uses.

    Raises:
        UserError: not prepared yet.
    """
    folder = root / benchmark / use.prepared
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder}: not prepared yet; run `udaseg prepare --benchmark {benchmark}`")
    return Prepared(folder)
