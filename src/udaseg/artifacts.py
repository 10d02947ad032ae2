"""Files that appear complete or not at all, what is read back of them, their hashes, and the lock of a run folder."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from udaseg.errors import UserError

MODEL, RECORD = "model.safetensors", "run.json"  # of a trained run, in its folder
STEP = "step"  # of a training that is not finished, in its restart folder: how far its newest state is
LARGEST = 2**28  # bytes of a file of text: the manifest of 100 000 images has 4e7
# What run.json says, where it says it: the report shows it, other steps decide by it.
TEXTS = (
    *("benchmark", "method", "protocol", "init", "command", "device", "taken_from", "revision"),
    *("params_hash", "code_hash", "data_hash", "start_hash", "model_hash", "history_hash"),
)
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(TEXTS, str),
    **dict.fromkeys(("seed", "steps", "threads", "ranks", "scheme"), int),
    **dict.fromkeys(("seconds", "peak_memory_mb"), (int, float)),
    **dict.fromkeys(("versions", "code", "params"), dict),
    "resigned": list,
    "dirty": bool,
}
RUNS_AS_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # at the start of a cell of a spreadsheet
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


def read_text(path: Path, what: str, command: str = "") -> str:
    """Raises UserError if the file is missing, unreadable, no text or too large.

    Args:
        path: the file.
        what: what it should be.
        command: what makes it.
    """
    try:
        with Path(path).open("rb") as handle:
            data = handle.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise damaged(path, f"more than {LARGEST >> 20} MiB", what, command)
        return data.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; expected {what}{f'; run `{command}` first' if command else ''}") from None
    except OSError as error:  # a folder, or a file of another user
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), expected {what}; move away what lies there, or make it readable"
            f"{f'; then run `{command}` again' if command else ''}"
        ) from None
    except UnicodeDecodeError as error:
        raise damaged(path, str(error), what, command) from None


def read_json(path: Path, what: str, command: str = "") -> dict[str, Any]:
    """A JSON object. Arguments and errors as in `read_text`; anything but an object is damaged too."""
    try:
        found = parse_json(read_text(path, what, command))
    except ValueError as error:
        raise damaged(path, str(error), what, command) from None
    if not isinstance(found, dict):
        raise damaged(path, f"a JSON {type(found).__name__}, no object", what, command)
    return found


def read_record(path: Path, command: str = "") -> dict[str, Any]:
    """run.json. Raises UserError as `read_json`, and for a value of another kind than `provenance.record` writes."""
    found = read_json(path, "the record of a training run", command)
    for key, kind in KINDS.items():
        value = found.get(key)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise damaged(path, f"{key}: found {value!r:.60}", "the record of a training run", command)
    return found


def damaged(path: Path, found: str, what: str = "", command: str = "") -> UserError:
    """The answer to a file that is not what a step left there."""
    expected = f"; expected {what}" if what else ""
    advice = f"run `{command}` again" if command else "delete it and run the step that makes it"
    return UserError(f"{path}: damaged ({' '.join(found.split())[:300]}){expected}; {advice}")


def parse_json(text: str) -> Any:
    """Raises ValueError for what is no JSON, holds a number that is none, a key twice, or is nested too deeply."""
    try:
        return json.loads(text, parse_constant=no_number, object_pairs_hook=without_doubles)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def no_number(text: str) -> None:
    raise ValueError(f"found {text}, expected a number")


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"found the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """A table as CSV. Texts that a spreadsheet would run as a formula get an apostrophe in front; `cell_text` takes it off."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(cell, row) for row in rows)
    return text.getvalue()


def cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("'", *RUNS_AS_FORMULA)) else value


def cell_text(text: str) -> str:
    """A text that `csv_text` has written."""
    return text.removeprefix("'")


def check_folder(out: Path) -> None:
    """Raises UserError where results cannot go: `out`, or the folder it would be made in, is a file."""
    first = next(filter(os.path.lexists, (out, *out.parents)), None)
    if first and not os.path.isdir(first):
        raise UserError(f"--out: found the file {first}, expected a folder, which may be a new one")


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes.

    Raises:
        UserError: a folder, or a file that may not be read.
    """
    try:
        with Path(path).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected a file: move what lies there away, or make it readable"
        ) from None


def checked_hash(model: Path, command: str = "") -> str:
    """sha256 of a trained model, which is that of the record beside it, where that holds one.

    Args:
        model: the file.
        command: what makes it; else the record says.

    Raises:
        UserError: it is another file than was recorded, or the record is damaged.
    """
    found, made = file_hash(model), model.parent / RECORD
    if model.name != MODEL or not made.exists():
        return found
    record = read_record(made, command)
    expected = record.get("model_hash")
    if expected is not None and expected != found and not in_dvc_lock(model):
        step = "pretrain" if model.parent.parent.name == "pretrained" else f"train --method {record.get('method')}"
        command = command or f"udaseg {step} --benchmark {record.get('benchmark')} --seed {record.get('seed')}"
        raise UserError(
            f"{model}: damaged or replaced (sha256 {found[:12]}, expected {expected[:12]} as in {RECORD} beside it); run "
            f"`{command}` again, which makes it anew, or fetch both files again from where they were made"
        )
    return found


def is_recorded(path: Path, expected: str) -> bool:
    """Whether a file is what run.json beside it says, or what dvc.lock says."""
    return file_hash(path) == expected or in_dvc_lock(path)


def in_dvc_lock(path: Path) -> bool:
    """Whether dvc.lock names this very file: `dvc checkout` of another revision brings it, and leaves run.json as it was."""
    lock = Path("dvc.lock")
    if not lock.is_file():
        return False
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "md5").hexdigest()
    entry = rf"path: {re.escape(path.as_posix())}\n\s+hash: md5\n\s+md5: {digest}\n"
    return re.search(entry, read_text(lock, "DVC's record")) is not None


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
