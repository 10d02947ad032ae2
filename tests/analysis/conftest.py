"""Parameters and data for the tests of this folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from block_data import FakeData, blocks

from tiny_project import RAW
from udaseg import params
from udaseg.analysis import cells
from udaseg.params import Run, Use


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeData]:
    """What `find` gives, by data set."""
    sets = {
        "streets_game": FakeData([blocks(i, 4) for i in range(5)]),
        "streets_photo": FakeData([blocks(10 + i, 4) for i in range(3)]),
    }

    def find(benchmark: str, use: Use) -> FakeData:
        return sets[use.dataset]

    monkeypatch.setattr(cells, "find_prepared", find)
    return sets


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """`make_run(least=5, ...)`: a run of the test parameters with another block `analysis`; works in a new folder."""
    monkeypatch.chdir(tmp_path)

    def make(**analysis: Any) -> Run:
        raw = copy.deepcopy(RAW)
        raw["analysis"] |= analysis
        return params.parse(raw).resolve("streets", "self_training", 0)

    return make
