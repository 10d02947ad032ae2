"""A small project on procedural scenes, prepared once per test session, copied for each test."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_project import RAW, ROOT, Project, stand_in
from udaseg import params
from udaseg.params import Params

# Started in the background of a script, tests inherit that Ctrl-C is ignored, and so would the commands that they interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ of the test parameters."""
    folder = tmp_path_factory.mktemp("prepared")
    if importlib.util.find_spec("scipy") is None:  # `make gpu-check`: no scenes can be drawn
        RAW["datasets"] |= stand_in(folder)["datasets"]
    project = Project(folder, copy.deepcopy(RAW))
    done = project.udaseg("prepare", "--benchmark", "streets")
    assert done.returncode == 0, done.stderr
    return folder / "data"


@pytest.fixture
def make_project(tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Project]:
    """Make a project by name; the working directory becomes its folder."""

    def make(name: str = "project") -> Project:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(prepared_data, folder / "data")
        monkeypatch.chdir(folder)
        return Project(folder, copy.deepcopy(RAW))

    return make


@pytest.fixture
def make_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Params]:
    """`make_params(seeds=[0, 1], test={...}, ...)`: the repository's parameters, changed; the working folder is a new one."""
    monkeypatch.chdir(tmp_path)

    def make(*, evaluate: list[str] | None = None, test: dict[str, Any] | None = None, **run: Any) -> params.Params:
        raw = yaml.safe_load((ROOT / "params.yaml").read_text())
        raw["run"] |= {"methods": ["source_only", "self_training", "oracle"], "seeds": [0], "device": "cpu"} | run
        raw["select"] = {"benchmark": "streets", "method": "self_training"}
        raw["benchmarks"]["streets"]["test"] |= test or {}
        if evaluate is not None:
            raw["benchmarks"]["streets"]["evaluate"] = evaluate
        return params.parse(raw)

    return make


@pytest.fixture
def project(make_project: Callable[[str], Project]) -> Project:
    return make_project("project")


# Files of minutes, whose tests share what is dear to make and so stay on one worker: first, that none is left alone at the end.
LONG = (
    "workflow/test_ledgers.py",  # makes the finished repository for all of tests/workflow
    "drill/test_drill.py",
    "engine/test_training.py",
    "workflow/test_interruptions.py",
    "workflow/test_edits.py",
    "methods/test_on_ranks.py",
    "bench/test_fake.py",
    "fuzz/test_fuzz.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where UDASEG_STRICT_SKIPS is set (CI), a skipped test fails the run unless it waits for CUDA."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("UDASEG_STRICT_SKIPS") or reporter is None or hasattr(session.config, "workerinput"):
        return
    reasons = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    if unexplained := [reason for reason in reasons if "CUDA" not in reason]:
        reporter.write_line(f"skipped for another reason than a missing CUDA device: {unexplained}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
