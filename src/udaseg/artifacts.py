"""Files that appear complete or not at all, their hashes, and the lock of a run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udaseg.errors import UserError

MODEL = "model.safetensors"  # of a trained run, in its folder
STEP = "step"  # of a training that is not finished, in its restart folder: how far its newest state is
DENIED = "make the folder writable or choose another"
IN_THE_WAY = "a file lies where a folder belongs, or the other way round: move it or choose another place"
NOT_WRITTEN = {
    **dict.fromkeys((errno.EACCES, errno.EROFS, errno.EPERM), DENIED),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), IN_THE_WAY),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "the file system or a limit (`ulimit -f`) allows no file of this size: choose another disk or raise it",
}


def not_written(path: Path, error: OSError) -> UserError | None:
    """What to say where a file or folder cannot be written, if that is what an error tells."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: no space left on the disk; free some and run again (nothing finished is lost)")
    if error.errno in NOT_WRITTEN:
        return UserError(f"{path}: cannot be written ({error.strerror}); {NOT_WRITTEN[error.errno]}")
    return None


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """What the file system refuses inside the block, in one line about `path`.

    Raises:
        UserError: disk full, read-only folder, a file in place of a folder or a folder in place of the file, too long a name.
    """
    try:
        yield
    except OSError as error:
        if known := not_written(path, error):
            raise known from error
        raise


@contextlib.contextmanager
def writing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success; on failure nothing is left.

    Nobody can guess its name, so no link can lie there that would lead elsewhere.
    `sync=False` does not wait for the disk: for many small files whose content is verified when read.

    Raises:
        UserError: as `changing`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with changing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if sync:
                with temporary.open("rb") as handle:
                    os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # there is none, or its place is what cannot be written
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Sorted, indented, with a final newline: equal values give equal files."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Raises UserError if the file is missing or damaged; `what` says what it should be."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; expected {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); expected {what}; delete it and run the step that makes it"
        ) from None


def check_folder(out: Path) -> None:
    """Raises UserError where results cannot go: `out`, or the folder it would be made in, is a file."""
    first = next(filter(os.path.lexists, (out, *out.parents)), None)
    if first and not os.path.isdir(first):
        raise UserError(f"--out: found the file {first}, expected a folder, which may be a new one")


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. The kernel drops the lock with the process, so none is ever stale.

    Raises:
        UserError: another process holds it, or it cannot be made or written.
    """
    with changing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("ab+", buffering=0)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        owner = handle.read().decode(errors="replace").strip() or "an unknown process"
        handle.close()
        raise UserError(f"{folder}: in use by {owner}; wait for it or stop it, then run again") from None
    except OSError as error:
        handle.close()
        raise UserError(
            f"{folder}: cannot be locked ({error.strerror}); this file system has no locks, put the checkout on another"
        ) from None
    try:
        with changing(folder / "lock"):
            handle.seek(0)
            handle.truncate()
            handle.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        handle.close()
