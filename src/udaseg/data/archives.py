"""Unpacking archives that a user or a server delivered: nothing outside the folder, no links, no half-written file."""

from __future__ import annotations

import gzip
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
from typing import IO

from udaseg import artifacts
from udaseg.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError,
    NotImplementedError,
)  # fmt: skip
Member = tuple[str, int]  # path inside the archive, size in bytes


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


def unpack(archive: Path, folder: Path, *, only: str = "") -> int:
    """Unpack what is not there yet, and return how many files that was.

    Every file appears under its name only when it is whole, so an interrupted run just goes on.

    Args:
        only: take members whose path contains this text.

    Raises:
        UserError: the archive is damaged, or holds a path outside the folder, a link or a device; nothing of such an
            archive is unpacked.
    """
    try:
        with _open(archive) as opened:
            members = [member for member in _members(opened, archive) if only in member[0]]
            missing = [m for m in members if not _present(folder / m[0], m[1])]
            for name, _ in missing:
                with (
                    _read(opened, name) as source,
                    artifacts.writing(folder / name, sync=False) as temporary,
                    temporary.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
            return len(missing)
    except DAMAGED as error:
        first = str(error).split(":\n")[0]
        raise UserError(f"{archive}: damaged or incomplete archive ({first}); download it again") from None


def _present(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _open(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            yield opened
    else:
        with tarfile.open(archive) as opened_tar:
            yield opened_tar


def _members(opened: zipfile.ZipFile | tarfile.TarFile, archive: Path) -> list[Member]:
    """The files of an archive, after every member has been found harmless."""
    out = []
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            _refuse_outside(info.filename, archive)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{archive}: refused, member {info.filename!r} is a link or a device; get a clean copy")
            if not info.is_dir():
                out.append((info.filename, info.file_size))
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
            out.append((member.name, member.size))
    return out


def _refuse_outside(name: str, archive: Path) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name or os.path.isabs(name):
        raise UserError(f"{archive}: refused, member {name!r} leads outside the folder; get a clean copy")


def _read(opened: zipfile.ZipFile | tarfile.TarFile, name: str) -> IO[bytes]:
    source = opened.open(name) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(name)
    assert source
    return source
