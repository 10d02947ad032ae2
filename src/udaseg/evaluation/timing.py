"""Seconds in the network, and lines that tell how far the work is."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

log = logging.getLogger("udaseg")
SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """A line from time to time: `scored 120 of 500 images`."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.said = time.perf_counter()

    def reached(self, done: int) -> None:
        if time.perf_counter() - self.said > SECONDS_BETWEEN_LINES:
            self.said = time.perf_counter()
            log.info("%s %d of %d images", self.what, done, self.total)


class Clock:
    """Seconds spent in the network. On CUDA events mark the begin and the end, and only `seconds` waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def network(self) -> Iterator[None]:
        if self.device.type != "cuda":
            began = time.perf_counter()
            yield
            self.spent += time.perf_counter() - began
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self.events.append((begin, end))

    def seconds(self) -> float:
        if self.events:
            torch.cuda.synchronize(self.device)
        return self.spent + sum(begin.elapsed_time(end) for begin, end in self.events) / 1000
