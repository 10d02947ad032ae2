"""`make gpu-check` as far as a CPU can: order, limits, what is written when, and that it needs no more than it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_project import ROOT, Project, stand_in

sys.path.insert(0, str(ROOT / "tests/gpu"))
import gpu_check
from gpu_check import Part

# What the pins hold beyond torch, torchvision, timm, pytest and what these bring along.
ABSENT = (
    *(
        "scipy",
        "pooch",
        "pandas",
        "matplotlib",
        "seaborn",
        "sklearn",
        "openTSNE",
        "threadpoolctl",
        "jinja2.ext",
        "markdown_it",
    ),
    *("snakemake", "dvc", "onnx", "hypothesis", "psutil", "transformers", "torchmetrics", "xdist", "pytest_timeout"),
)
BLOCKER = f"""
from importlib.machinery import PathFinder
there = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *more: None if name in {ABSENT!r} else there(name, *more))
"""


def code(text: str) -> tuple[str, ...]:
    return ("{python}", "-c", text)


def numbers(**more: Any) -> tuple[str, ...]:
    return code(
        f"print({json.dumps(json.dumps({'seconds_a_step': 2.0, 'loss_of_the_first_step': 1.0, 'sha256_of_the_weights': 'a', **more}))})"
    )


def test_parts_are_written_at_once_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda k: "some card")
    monkeypatch.setattr(gpu_check, "LEAST", 0.0)
    out = tmp_path / "found.json"
    parts = (
        Part("step mit bf16 none", numbers(), 20, cuda=True),
        Part("step mit bf16 none again", numbers(), 20, cuda=True),
        Part("step mit bf16 default", numbers(seconds_a_step=1.0, loss_of_the_first_step=1.5), 20, cuda=True),
        Part("seen", code(f"print(len(__import__('json').load(open({str(out)!r}))['parts']))"), 20),
        Part("slow", code("__import__('time').sleep(60)"), 1),
        Part("broken", code("raise SystemExit('what is wrong')"), 20),
        Part("step streets fp32 none", numbers(), 20, cpu=True),
    )
    found = gpu_check.check(out, 100.0, parts)
    assert json.loads(out.read_text()) == found and found["machine"]["cuda_devices"] == ["some card"]
    assert found["parts"]["seen"]["said"] == "3", "what was found before is in the file already"
    assert found["parts"]["slow"] == {"stopped": "not done in 1 s"}
    assert found["parts"]["broken"]["failed"] == "what is wrong"
    assert "step streets fp32 none" not in found["parts"]
    assert found["verdict"] == {
        "failed": ["slow", "broken"],
        "skipped": [],
        "equal bits twice, step mit bf16 none": True,
        "times faster than eager, step mit bf16 default": 2.0,
        "relative difference of the first loss, step mit bf16 default": 0.5,
    }
    rest = gpu_check.check(out, -1.0, parts[:1])
    assert rest["parts"] == {"step mit bf16 none": {"skipped": "the -1 s are over"}}


def test_without_a_device_it_says_what_it_skipped(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("with CUDA there is nothing to skip")
    parts = (Part("a", numbers(), 20, cuda=True), Part("b", numbers(), 20, cpu=True))
    found = gpu_check.check(tmp_path / "found.json", 100.0, parts)
    assert found["parts"]["a"] == {"skipped": "no CUDA device"} and found["parts"]["b"]["seconds_a_step"] == 2.0
    assert found["verdict"]["skipped"] == ["a"] and not found["verdict"]["failed"]


def test_limits_fit_eight_minutes_in_order_of_worth() -> None:
    """Every part that waits for CUDA is there, and the first ones fit whatever happens."""
    worth = [part for part in gpu_check.PARTS if not part.cpu]
    assert sum(part.seconds for part in worth[:4]) <= 480
    names = " ".join(part.name for part in worth)
    assert all(word in names for word in ("tests", "training", "again", "max-autotune", "-hrda", "fp32", "bf16"))


def test_it_needs_no_more_than_it_says(tmp_path: Path) -> None:
    """A step on random data, and the preparation of the short training's, without all other packages."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src"), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path}
    words = [str(ROOT / "tests/gpu/step.py"), "streets", "self_training", "fp32", "none", "1", "cpu"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        found["seconds_a_step"] > 0
        and found["loss_of_the_first_step"] > 0
        and len(found["sha256_of_the_weights"]) == 16
    )
    project = Project(tmp_path, stand_in(tmp_path))
    prepared = project.udaseg("prepare", "--benchmark", "streets", **environment)
    assert prepared.returncode == 0, prepared.stderr


def test_the_checkout_is_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name] or [*(ROOT / "src").rglob("*.py")]
    assert 0 < sum(path.stat().st_size for path in files if path.is_file()) < 60 * 2**20
