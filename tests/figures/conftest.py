"""A project with the files of many runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import yaml
from fake_runs import LAST, MakeRuns, write_run

from tiny_project import ROOT, Project
from udaseg import params
from udaseg.comparison import compare
from udaseg.params import Params

METHODS = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]


@pytest.fixture
def make_runs(project: Project) -> MakeRuns:
    """`make_runs(methods, seeds)`: the project's parameters with these methods, all files of their runs, and the summary."""

    def make(
        methods: Sequence[str] = ("source_only", "self_training", "sepico"), seeds: Sequence[int] = (0,)
    ) -> Params:
        for method in methods:
            project.raw["methods"].setdefault(method, METHODS[method])
        project.raw["benchmarks"]["streets"]["train"]["steps"] = LAST
        project.raw["run"] |= {"methods": list(methods), "seeds": list(seeds)}
        project.write()
        p = params.load()
        for k, method in enumerate(methods):
            for seed in seeds:
                write_run(p.resolve("streets", method, seed), np.random.default_rng([k, seed]))
        compare.compare_benchmark(p, "streets")
        return p

    return make
