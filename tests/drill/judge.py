"""Whether a round ended well: same bits, nothing left behind, and no output with a traceback."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterable
from pathlib import Path

from world import WRITTEN, Place

TRACEBACK = "Traceback (most recent call last)"
GRACE = 12  # seconds: a loader process asks every 5 whether its parent lives


def traceback_in(text: str) -> str:
    """What is wrong with an output: "" where nothing is. Names the last file of the traceback and the error."""
    if TRACEBACK not in text:
        return ""
    tail = text[text.rindex(TRACEBACK) :]
    frames = re.findall(r'File "([^"]+)", line (\d+)', tail)
    error = re.findall(r"^(?:\S+: )?(\w+(?:\.\w+)*(?:Error|Exception|Interrupt|Exit|Failed)\b.*)$", tail, re.M)
    where = " ".join(":".join(frame) for frame in frames[-1:])
    return f"a traceback ({where}: {error[0][:200] if error else '?'})"


def is_ours(text: str) -> bool:
    """Whether a traceback goes through the code of the project."""
    return any("/udaseg/" in block.split("\n\n")[0] for block in text.split(TRACEBACK)[1:])


def differences(place: Place, expected: dict[str, str], names: Iterable[str]) -> list[str]:
    """Files that are missing or other than they should be."""
    found = place.content()
    return [
        f"{name} {'differs' if name in found else 'is missing'}"
        for name in sorted(names)
        if found.get(name) != expected.get(name)
    ]


def left_behind(place: Place) -> list[str]:
    """Processes, locks, states and halves of files that no finished command leaves."""
    found = [f"process {p.pid} {' '.join(p.cmdline())[:120]}" for p in place.wait_for_silence(GRACE)]
    halves = [f"{top}/**/{name}" for top in WRITTEN for name in (".part", ".*.part*")]
    for pattern in ("results/.restart/**/*.pt", *halves):
        found += [str(path.relative_to(place.folder)) for path in place.folder.glob(pattern)]
    found += [str(path.relative_to(place.folder)) for path in place.folder.glob("results/.restart/*/*/seed*/lock")]
    found += [f"lock {path.name} of Snakemake" for path in (place / ".snakemake/locks").glob("*")]
    return found + dvc_locks(place)


def dvc_locks(place: Place) -> list[str]:
    found = []
    rwlock = place / ".dvc/tmp/rwlock"
    if rwlock.exists() and any(any(part.values()) for part in json.loads(rwlock.read_text() or "{}").values()):
        found.append("an entry in DVC's rwlock")
    lock = place / ".dvc/tmp/lock"
    if lock.exists() and is_held(lock):
        found.append("DVC's lock is held")
    return found


def is_held(path: Path) -> bool:
    with path.open("r+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
