"""The one way through a folder that somebody filled.

Links are followed, what systems, programs and storage boxes leave in folders is skipped, names are compared in one Unicode form
(NFC: some systems write an umlaut as two characters), and what is left out is counted, so that it can be said.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from udaseg.errors import UserError

IMAGES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".jp2", ".avif",
)  # fmt: skip
# Beside all names that begin with a dot; compared in small letters. Recycle bins, snapshots and thumbnails of storage boxes,
# what archivers and desktops leave, caches of programs.
SYSTEM = frozenset((
    "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__",
))  # fmt: skip
HIDDEN, LOOP, BROKEN, SPECIAL = "hidden or of a system", "link to a folder above", "broken link", "no regular file"


@dataclass
class Listing:
    """The files below a folder.

    Attributes:
        root: the folder.
        files: path below root, in NFC and with `/` -> the file as it lies on disk; sorted.
        skipped: what else lies there, by reason.
    """

    root: Path
    files: dict[str, Path]
    skipped: Counter[str] = field(default_factory=Counter)

    def images(self) -> dict[str, Path]:
        return {name: path for name, path in self.files.items() if is_image(name)}

    def match(self, *patterns: str) -> list[Path]:
        """Files whose path below root fits one of the patterns, as `pathlib` has them: `*` stays within a name, `**/` does not."""
        wanted = re.compile("|".join(map(_regex, patterns)))
        return [path for name, path in self.files.items() if wanted.fullmatch(name)]

    def left_out(self, used: Iterable[Path] | None = None) -> str:
        """What is not among `used` (default: the images), in words: `3 .heic, 1 .txt, 2 hidden or of a system`; "" for nothing."""
        taken = set(self.images().values() if used is None else used)
        kinds = Counter(
            Path(name).suffix.lower() or "without ending" for name, path in self.files.items() if path not in taken
        )
        return ", ".join(f"{n} {kind}" for kind, n in [*kinds.most_common(), *self.skipped.most_common()])


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def listing(root: Path, *, without: Path | None = None) -> Listing:
    """All files below `root`, at any depth.

    Args:
        root: a folder.
        without: a folder below it that is passed over.

    Raises:
        UserError: a folder that cannot be read, a name that is no text, two names that look the same.
    """
    found = Listing(root, {})
    avoided = _identity(without) if without is not None and without.is_dir() else None
    top = _identity(root)
    _walk(root, "", found, (top,), avoided)
    found.files = dict(sorted(found.files.items()))
    return found


def _walk(folder: Path, inside: str, found: Listing, above: tuple[object, ...], avoided: object) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); make it readable, or move it away") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
            found.skipped[HIDDEN] += 1
            continue
        try:
            name = inside + nfc(entry.name.encode().decode())
        except UnicodeError:
            raise UserError(f"{folder}: found the file name {entry.name!a}, which is no UTF-8; rename it") from None
        path = Path(entry.path)
        if entry.is_dir():
            this = _identity(path)
            if this in above:
                found.skipped[LOOP] += 1
            elif this != avoided:
                _walk(path, f"{name}/", found, (*above, this), avoided)
        elif not entry.is_file():
            found.skipped[BROKEN if entry.is_symlink() else SPECIAL] += 1
        elif name in found.files:
            raise UserError(f"{found.files[name]} and {path}: two files whose names look the same; rename one")
        else:
            found.files[name] = path


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino


def _regex(pattern: str) -> str:
    parts = []
    for part in pattern.split("/"):
        parts.append("(?:[^/]+/)*" if part == "**" else re.escape(part).replace(r"\*", "[^/]*") + "/")
    return "".join(parts).removesuffix("/")
