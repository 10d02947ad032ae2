"""A small project on procedural scenes, prepared once per test session, copied for each test."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RAW: dict[str, Any] = yaml.safe_load((ROOT / ".test" / "params.yaml").read_text())


class Project:
    """A folder with params.yaml and prepared data; `udaseg` commands run there."""

    def __init__(self, folder: Path, raw: dict[str, Any]) -> None:
        self.folder, self.raw = folder, raw
        self.write()

    def write(self) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.raw, sort_keys=False))

    def set(self, path: str, value: Any) -> None:
        """Change one value of params.yaml, e.g. `set("run/threads", 2)`."""
        *parents, last = path.split("/")
        block = self.raw
        for key in parents:
            block = block[key]
        block[last] = value
        self.write()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "udaseg", *words]

    def udaseg(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ of the test parameters."""
    folder = tmp_path_factory.mktemp("prepared")
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
def project(make_project: Callable[[str], Project]) -> Project:
    return make_project("project")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where UDASEG_STRICT_SKIPS is set (CI), a skipped test fails the run unless it waits for CUDA."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("UDASEG_STRICT_SKIPS") or reporter is None or hasattr(session.config, "workerinput"):
        return
    reasons = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    if unexplained := [reason for reason in reasons if "CUDA" not in reason]:
        reporter.write_line(f"skipped for another reason than a missing CUDA device: {unexplained}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
