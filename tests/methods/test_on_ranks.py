"""Every method on two and three processes, killed and gone on with, has the losses of one process that nobody disturbed."""

from __future__ import annotations

import copy
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from steps import BLOCKS, from_scratch

from tiny_project import RAW, ROOT, Project

# A last bit may turn decisions of these: which pixel is the nearest, which confident enough for a label (docs/workflow.md).
TURNING = ("bcl", "plca")
METHODS = ("source_only", "self_training", "bcl", "plca", "sepico", "pipa", "cluda", "mic")


@pytest.fixture(scope="module")
def folder(prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the histories of all trainings, made by copies of one process."""
    folder = tmp_path_factory.mktemp("on_ranks")
    shutil.copytree(prepared_data, folder / "data")
    project = Project(folder, copy.deepcopy(RAW))
    from_scratch(project, steps=4, batch=6, save_every=1, log_every=1)
    for method in METHODS:
        project.set(f"methods/{method}", copy.deepcopy(BLOCKS[method]))
    # labels of a second one are chosen by networks that differ in the last bit: other labels
    project.set("methods/bcl/rounds", 1)
    project.set("methods/mic/mic/block", 8)
    script = Path(__file__).with_name("on_ranks.py")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, str(script), *METHODS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_method_on_ranks_killed_and_resumed(folder: Path, method: str) -> None:
    found = {}
    for ranks in (1, 2, 3):
        with (folder / f"{method}-{ranks}.csv").open() as handle:
            found[ranks] = [
                {key: float(value) for key, value in row.items() if value} for row in csv.DictReader(handle)
            ]
    assert [row["step"] for row in found[1]] == [1, 2, 3, 4]
    for ranks in (2, 3):
        for one, other in zip(found[1], found[ranks], strict=True):
            assert one == pytest.approx(other, rel=3e-2 if method in TURNING else 1e-3, abs=1e-4), (ranks, one, other)
