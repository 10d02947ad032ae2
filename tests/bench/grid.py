"""The whole grid of tests/bench/test_fake.py: every block of `methods` on every network of params.yaml, at full size.

Half an hour on two cores; `make plan-check` runs it. A method may refuse a network with one line, nothing else.
"""

from __future__ import annotations

import json

import pytest

from tiny_project import ROOT
from udaseg import params
from udaseg.bench import fake
from udaseg.checking import essential
from udaseg.errors import UserError

PARAMS = params.load(ROOT / "params.yaml")


def networks() -> list[str]:
    """One benchmark for each network and size of crop."""
    found: dict[str, str] = {}
    for name, block in PARAMS.benchmarks.items():
        found.setdefault(json.dumps([essential(block.model), str(block.train.crop), block.train.precision]), name)
    return list(found.values())


def recipes() -> list[str]:
    """One method for each recipe; a name beside it trains the same."""
    found: dict[str, str] = {}
    for name in PARAMS.methods:
        resolved = PARAMS.resolve("gta2cityscapes", name, 0).resolved
        found.setdefault(json.dumps([resolved["kind"], resolved["method"]], default=str), name)
    return list(found.values())


@pytest.mark.parametrize("benchmark", networks())
@pytest.mark.parametrize("method", recipes())
def test_nothing_waits_and_losses_are_single_precision(benchmark: str, method: str) -> None:
    run = PARAMS.resolve(benchmark, method, 0)
    try:
        assert fake.faults(run) == []
        if benchmark == "gta2cityscapes":
            assert fake.faults(run, step=0) == []
    except UserError as error:
        pytest.skip(f"refused: {error}")
