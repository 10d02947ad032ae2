"""How far the work is, and how long it takes: for people alone, part of no result."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

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


class Scoring:
    """Looks on while a split is scored: a line from time to time, and seconds in all and in the network."""

    def __init__(self, what: str, total: int, device: torch.device) -> None:
        self.what, self.total = what, total
        self.lines, self.clock = Progress("scored", total), Clock(device)
        self.began = time.perf_counter()
        self.seconds = self.outside = 0.0

    def network(self) -> AbstractContextManager[None]:
        return self.clock.network()

    def reached(self, done: int) -> None:
        self.lines.reached(done)
        if done == self.total:
            inside = self.clock.seconds()
            self.seconds = time.perf_counter() - self.began
            self.outside = max(0.0, 1 - inside / self.seconds)
            log.info(
                "%s: %d images in %.1f s, %.1f %% of it outside forward pass and up-sampling",
                *(self.what, done, self.seconds, 100 * self.outside),
            )


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
