"""Halves of files that killed commands have left in results/ and figures/: hidden, read by nothing, as large as models.

Their names are not to be guessed, so no later command writes over them. Every command that writes results shares a lock of the
folder results/ while it works; the one that finds itself alone removes what lies there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

RESULTS, FIGURES = Path("results"), Path("figures")
WRITERS = (
    "pretrain",
    "train",
    "evaluate",
    "analyse",
    "compare",
    "figure",
    "report",
    "select",
    "import-run",
    "resign",
    "score",
)
RESTART = ".restart"  # a training looks after its own, under a lock of its own


@contextlib.contextmanager
def at_work(step: str) -> Iterator[None]:
    """While a command writes results. A file system without locks, or a folder that cannot be made, hinders nothing."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            if step in WRITERS and (RESULTS.exists() or Path("params.yaml").exists()):
                RESULTS.mkdir(exist_ok=True)
                handle = os.open(RESULTS, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, handle)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove()
                fcntl.flock(handle, fcntl.LOCK_SH)  # waits for one that removes
        yield


def remove() -> None:
    for top in (RESULTS, FIGURES):
        for path in top.rglob(".*.part"):
            if RESTART not in path.parts and path.is_file():
                path.unlink(missing_ok=True)
