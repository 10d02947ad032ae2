"""The same work on many items over several processes, with progress; stops cleanly, and never outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from udaseg.errors import UserError

SMALL = 32  # items below which starting processes takes longer than it saves
T = TypeVar("T")
R = TypeVar("R")


def results(work: Callable[[T], R], items: Sequence[T], jobs: int) -> Generator[R, None, None]:
    """`work(item)` for each item, in order, over `jobs` processes; closing it stops the work after the items at hand.

    Raises:
        UserError: a process was killed; and what `work` raises.
    """
    if jobs <= 1 or len(items) < SMALL:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield from pool.map(work, items, chunksize=max(1, min(16, len(items) // (4 * jobs))))
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed (out of memory?); run again, with fewer --jobs if it repeats; nothing finished is lost"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone (a killed parent cannot tell its workers)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


class Progress:
    """Count, rate and remaining time on stderr: one line rewritten in a terminal, sparse lines in a log."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done, self.reused = title, total, done, done
        self.start = self.shown_at = time.monotonic()
        self.shown = done
        self.terminal = sys.stderr.isatty()

    def step(self) -> None:
        self.done += 1
        now = time.monotonic()
        waited = now - self.shown_at
        if waited >= 0.5 if self.terminal else waited >= 2 and (self.done - self.shown) * 20 >= self.total:
            self.shown, self.shown_at = self.done, now
            rate = (self.done - self.reused) / (now - self.start)
            left = f"{rate:.0f}/s, {(self.total - self.done) / rate:.0f} s left"
            self._print(f"{self.title}: {self.done}/{self.total} images, {left}")

    def finish(self) -> None:
        kept = f" ({self.reused} from an earlier run)" if self.reused else ""
        self._print(f"{self.title}: {self.done}/{self.total} images{kept} in {time.monotonic() - self.start:.0f} s")
        if self.terminal:
            print(file=sys.stderr)

    def _print(self, text: str) -> None:
        if self.terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
