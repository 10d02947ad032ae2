"""Unpacking archives that a user or a server delivered: nothing outside the folder, no links, no half-written file."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from udaseg import artifacts
from udaseg.data.delivered import stat_of
from udaseg.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, RuntimeError, NotImplementedError, KeyError,
    OSError,
)  # fmt: skip
Member = tuple[str, int, int | None]  # path inside the archive, size in bytes, its CRC-32 (None in a tar)
Opened = zipfile.ZipFile | tarfile.TarFile


def find_archives(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The archives directly in `root` whose names fit one of the patterns (without suffix), sorted."""
    found = {
        path
        for pattern in patterns
        for suffix in SUFFIXES
        for path in root.glob(pattern + suffix)
        if not path.name.startswith(".")
    }
    return sorted(found)


def unpack(archive: Path, folder: Path, *, only: str = "", again: bool = False) -> int:
    """Unpack what is not there yet or differs, and return how many files that was.

    Every file appears under its name only when it is whole, so an interrupted run just goes on. A note beside the archive keeps its
    listing and a digest of its directory: an archive that has not been touched is not opened again.

    Args:
        only: take members whose path contains this text.
        again: look at every file, because some are missing.

    Raises:
        UserError: the archive is damaged, or holds a path outside the folder, a link or a device; nothing of such an
            archive is unpacked.
    """
    note, stat = _note(archive), stat_of(archive)
    known = {} if again else _read_note(note)
    if known.get("stat") == stat:
        return 0
    try:
        with _open(archive) as opened:
            directory = _directory(opened, archive)
            digest = hashlib.sha256(json.dumps(directory).encode()).hexdigest()
            written = 0
            if known.get("directory") != digest:
                members = [member for member in directory if only in member[0]]
                _check_room(archive, folder, members)
                written = sum(_unpacked(opened, member, folder) for member in members)
    except DAMAGED as error:
        # what unpackers raise has no number, or is a place that the file does not have; the disk's own errors have others
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        first = str(error).split(":\n")[0]
        raise UserError(f"{archive}: damaged or incomplete archive ({first}); download it again") from None
    artifacts.write_json(note, {"stat": stat, "directory": digest})
    return written


def is_known(archive: Path) -> bool:
    """Whether it was unpacked here before."""
    return _note(archive).exists()


def is_touched(archive: Path) -> bool:
    """Whether its listing is another than when it was unpacked."""
    return _read_note(_note(archive)).get("stat") != stat_of(archive)


def _note(archive: Path) -> Path:
    return archive.with_name(f".{archive.name}.unpacked.json")


def _read_note(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_room(archive: Path, folder: Path, members: Sequence[Member]) -> None:
    """Raises UserError where the disk cannot hold what the archive says it holds: a bomb, or too small a disk."""
    missing = sum(size for name, size, _ in members if not (folder / name).is_file())
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if missing > free:
        raise UserError(
            f"{archive}: holds {missing / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; free some, or get a clean copy"
        )


def _unpacked(opened: Opened, member: Member, folder: Path) -> bool:
    """Write one member, unless its very content is there."""
    name, size, checksum = member
    path = folder / name
    if path.is_file() and path.stat().st_size == size and checksum is not None and _crc(path) == checksum:
        return False
    with _read(opened, name) as source, artifacts.writing(path, sync=False) as temporary:
        with temporary.open("wb") as target:
            written = _copy(source, target, size)
        if written != size:
            raise EOFError(f"{name}: {written} bytes, {size} promised")
        if checksum is None and path.is_file() and filecmp.cmp(temporary, path, shallow=False):
            return False  # a tar holds no checksums: compared byte by byte
    return True


def _copy(source: IO[bytes], target: IO[bytes], most: int) -> int:
    """Copy, but stop beyond `most` bytes: a member that unpacks to more than its directory says."""
    written = 0
    while written <= most and (piece := source.read(1 << 20)):
        written += target.write(piece)
    return written


def _crc(path: Path) -> int:
    checksum = 0
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            checksum = zlib.crc32(piece, checksum)
    return checksum


@contextmanager
def _open(archive: Path) -> Iterator[Opened]:
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            yield opened
    else:
        with tarfile.open(archive) as opened_tar:
            yield opened_tar


def _directory(opened: Opened, archive: Path) -> list[Member]:
    """The files of an archive, after every member has been found harmless."""
    out: list[Member] = []
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            _refuse_outside(info.filename, archive)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{archive}: refused, member {info.filename!r} is a link or a device; get a clean copy")
            if not info.is_dir():
                out.append((info.filename, info.file_size, info.CRC))
        return out
    for member in opened.getmembers():
        _refuse_outside(member.name, archive)
        if not (member.isreg() or member.isdir()):
            raise UserError(f"{archive}: refused, member {member.name!r} is a link or a device; get a clean copy")
        try:
            tarfile.data_filter(member, str(archive.parent))
        except tarfile.FilterError as error:
            raise UserError(f"{archive}: refused ({error}); get a clean copy") from None
        if member.isreg():
            out.append((member.name, member.size, None))
    return out


def _refuse_outside(name: str, archive: Path) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name or os.path.isabs(name):
        raise UserError(f"{archive}: refused, member {name!r} leads outside the folder; get a clean copy")


def _read(opened: Opened, name: str) -> IO[bytes]:
    source = opened.open(name) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(name)
    assert source
    return source
