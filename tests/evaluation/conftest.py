"""Parameters for the tests of this folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from udaseg import params

RAW = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())


@pytest.fixture
def make_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., params.Params]:
    """`make_params(seeds=[0, 1], test={...}, ...)`: the repository's parameters, changed; the working folder is a new one."""
    monkeypatch.chdir(tmp_path)

    def make(*, evaluate: list[str] | None = None, test: dict[str, Any] | None = None, **run: Any) -> params.Params:
        raw = copy.deepcopy(RAW)
        raw["run"] |= {"methods": ["source_only", "self_training", "oracle"], "seeds": [0], "device": "cpu"} | run
        raw["select"] = {"benchmark": "streets", "method": "self_training"}
        raw["benchmarks"]["streets"]["test"] |= test or {}
        if evaluate is not None:
            raw["benchmarks"]["streets"]["evaluate"] = evaluate
        return params.parse(raw)

    return make
