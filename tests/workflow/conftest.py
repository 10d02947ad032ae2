"""A repository for every test: finished once with the real commands, then copied."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from repository import EVERYTHING, Repository, checkout, jobs_run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.workflow)


@pytest.fixture(scope="session")
def finished_repository(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Everything made by Snakemake, recorded by DVC and committed; one for all test processes."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    folder = base / "finished"
    with (base / "finished.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not (base / "finished.ok").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            repository = checkout(folder)
            text = repository.snakemake()
            assert Counter(jobs_run(text)) == EVERYTHING
            repository.udaseg("record")
            repository.commit()
            (base / "finished.ok").touch()
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> Repository:
    """Nothing made yet."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    return checkout(folder)


@pytest.fixture
def finished(finished_repository: Path, tmp_path: Path) -> Repository:
    """A copy, modification times included, of the finished repository."""
    folder = tmp_path / "finished"
    subprocess.run(["cp", "-a", str(finished_repository), str(folder)], check=True)
    return Repository(folder)
