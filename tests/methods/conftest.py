"""Fixtures for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from steps import run_of, train

from tiny_project import Project
from udaseg.engine import runtime
from udaseg.errors import Interrupted

Interrupt = Callable[[Project, str, int], None]


@pytest.fixture
def train_until(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """`train_until(project, method, step)`: a training that is asked to stop there, and does."""

    def until(project: Project, method: str, step: int) -> None:
        asked: list[int] = []
        steps = run_of(project, method).train.steps
        with monkeypatch.context() as patch:
            patch.setattr(runtime.StopRequest, "on_any_rank", lambda *_: asked.append(1) or len(asked) == step)
            with pytest.raises(Interrupted, match=f"step {step} of {steps}"):
                train(project, method)

    return until
