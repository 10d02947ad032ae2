"""What a training says while it runs: a bar on a terminal, lines in a log."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from udaseg.engine import training


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    watch = training.Watcher(None, None, ["road"])
    loop: Any = SimpleNamespace(
        p=SimpleNamespace(steps=100, validate_every=0, batch=4), history=[], seconds=10.0, device=torch.device("cpu")
    )
    loop.take_found = lambda: [0.0]
    for step in (50, 100):
        loop.step = step
        loop.history.append({"step": step, "learning_rate": 0.1, "source": 1.25})
        watch(loop, 8.0)


def test_a_terminal_gets_one_line_that_moves(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    screen = Screen()
    with caplog.at_level(logging.INFO):
        said(screen, monkeypatch)
    half, full = screen.getvalue().split("\r")[1:]
    assert half.startswith("[##########..........]  50/100  25 s left  8.0 images/s  source 1.250") and len(half) == 79
    assert full.startswith("[####################] 100/100  0 s left") and full.endswith("\n") and not caplog.records


def test_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    log = io.StringIO()
    with caplog.at_level(logging.INFO):
        said(log, monkeypatch)
    assert not log.getvalue() and [record.getMessage()[:12] for record in caplog.records] == [
        "step  50/100",
        "step 100/100",
    ]


def test_a_narrow_terminal_cuts_the_line() -> None:
    assert len(training.bar(1, 10, "x" * 100, 40)) == 39 and len(training.bar(1, 10, "x", 60)) == 59
