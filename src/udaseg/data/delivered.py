"""From which delivered files prepared data were made, by content.

A cheap listing (size, times, inode, device) decides whether to look at a file, its hash whether it changed. What is known is kept
beside the prepared folder in `.delivered/`: it is of this machine alone, and where it is lost all files are hashed once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from udaseg.artifacts import file_hash, write_text
from udaseg.data.found import Item
from udaseg.errors import UserError

Stat = list[int]


def stat_of(path: Path) -> Stat:
    """What a file's content cannot change without: size, times of content and of the file, inode, device."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev]


class Notes:
    """Hashes of delivered files, and of which files each sample was made."""

    def __init__(self, folder: Path) -> None:
        """Of the prepared data in `folder`; empty where there are none, or none that can be read."""
        self.path = folder.parent / ".delivered" / f"{folder.name}.json"
        self.files: dict[str, tuple[Stat, str]] = {}
        self.samples: dict[str, list[str]] = {}
        self.manifest = ""  # hash of the manifest that was written
        self.changed = False
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            read = json.loads(self.path.read_text(encoding="utf-8"))
            files = {str(path): ([int(n) for n in stat], str(sha)) for path, (stat, sha) in read["files"].items()}
            samples = {str(key): [str(sha) for sha in shas] for key, shas in read["samples"].items()}
            self.files, self.samples, self.manifest = files, samples, str(read["manifest"])

    def hash_of(self, path: Path) -> str:
        """sha256 of a delivered file, read only where the listing does not know it.

        Raises:
            UserError: it cannot be read.
        """
        key = str(path.absolute())
        try:
            stat = stat_of(path)
            known = self.files.get(key)
            if known and known[0] == stat:
                return known[1]
            sha = file_hash(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or place it again") from None
        self.add(path, stat, sha)
        return sha

    def add(self, path: Path, stat: Stat, sha: str) -> None:
        self.files[str(path.absolute())] = stat, sha
        self.changed = True

    def of_sample(self, item: Item) -> list[str]:
        """Hashes of the files that an item is made of now."""
        return [self.hash_of(path) for path in item.files]

    def knew(self, item: Item) -> list[str] | None:
        """Hashes of the files that its sample was made of."""
        return self.samples.get(key_of(item))

    def save(self, items: Iterable[Item], manifest: str = "") -> None:
        """Keep what concerns these items, and the hash of the manifest, where that is new."""
        items, self.manifest = list(items), manifest or self.manifest
        wanted = {str(path.absolute()) for item in items for path in item.files}
        self.files = {path: known for path, known in self.files.items() if path in wanted}
        self.samples = {key_of(item): self.of_sample(item) for item in items}
        write_text(self.path, json.dumps({"files": self.files, "samples": self.samples, "manifest": self.manifest}))
        self.changed = False

    def digest(self, items: Iterable[Item]) -> str:
        """Of all files of these items, wherever they lie."""
        content = {key_of(item): self.of_sample(item) for item in items}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def key_of(item: Item) -> str:
    return f"{item.split}/{item.name}"
