"""Device, threads, determinism and stop signals."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch

from udaseg import ranks
from udaseg.devices import choose
from udaseg.params import RunBlock

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: what Slurm sends ahead of a time limit


def setup(run: RunBlock) -> torch.device:
    """Threads, deterministic algorithms, the group of ranks; returns this process's device."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first call
    torch.set_num_threads(run.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads what was never written
    torch.backends.cudnn.benchmark = False
    keep_freed_memory()
    chosen = choose(run.device, "run.device")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    ranks.join(chosen)
    return chosen


def keep_freed_memory() -> None:
    """glibc shall keep what is freed: every step asks for the same large maps again, and new pages from the kernel cost up to a fifth of it.

    Other C libraries have no such call, and nothing changes.
    """
    trim_threshold, mmap_max = -1, -4  # names of mallopt(3)
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # large blocks come from the heap too
        mallopt(trim_threshold, -1)  # and it never shrinks


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGUSR1 instead of dying, so that a step is finished and its state saved."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def on_any_rank(self, where: torch.device) -> bool:
        """The same answer on every rank; with several ranks it is a collective call."""
        if ranks.world() == 1:
            return self.signal is not None
        return bool(ranks.total(torch.tensor(float(self.signal is not None), device=where)).item())


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the stop signals inside the block; the former handlers come back after it."""
    request = StopRequest()
    former = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def peak_memory_mb(where: torch.device) -> int:
    """Largest memory so far: on the device for CUDA, else of this process."""
    if where.type == "cuda":
        return round(torch.cuda.max_memory_allocated(where) / 2**20)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes on macOS, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
