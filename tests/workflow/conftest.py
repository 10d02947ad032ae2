"""A repository for every test: finished once with the real commands, then copied."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import EVERYTHING, FIGURES, Repository, checkout, jobs_run, with_two_figures

from udaseg.workflow import plan

FAILED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.workflow)


@pytest.fixture(scope="session")
def finished_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything made by Snakemake, recorded by DVC and committed; one for all test processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "finished"
    with (base / "finished.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not (base / "finished.ok").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            repository = checkout(folder)
            with_two_figures(repository)
            text = repository.snakemake()
            assert Counter(jobs_run(text)) == EVERYTHING
            repository.udaseg("record")
            repository.commit()
            (base / "finished.ok").touch()
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def planned_here_as_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "FIGURES", FIGURES)


@pytest.fixture
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where a repository is to lie; after a test that passed nobody waits for the disk to forget it."""
    folder = tmp_path / "repository"
    yield folder
    if not request.node.stash[FAILED]:
        done = tmp_path_factory.mktemp("done")
        subprocess.Popen(["rm", "-rf", str(folder.rename(done / "repository")), str(done)])


@pytest.fixture
def fresh(place: Path) -> Repository:
    """Nothing made yet."""
    place.mkdir()
    repository = checkout(place)
    with_two_figures(repository)
    return repository


@pytest.fixture
def finished(finished_repository: Path, place: Path) -> Repository:
    """A copy, modification times included, of the finished repository."""
    subprocess.run(["cp", "-a", str(finished_repository), str(place)], check=True)
    return Repository(place)
