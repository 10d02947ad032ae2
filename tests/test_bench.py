"""`udaseg bench` measures every part and prints JSON; no time is asserted."""

from __future__ import annotations

import json

import pytest
import yaml

from tiny_project import ROOT, Project
from udaseg import params
from udaseg.bench import losses as bench_losses


@pytest.mark.parametrize("method", ["self_training", "bcl"])
def test_bench_reports_every_part(project: Project, method: str) -> None:
    project.set("methods/bcl", yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]["bcl"])
    done = project.udaseg("bench", "--benchmark", "streets", "--method", method, "--steps", "2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for part in ("data_only", "step_only", "data_and_step"):
        assert result[part]["seconds"] > 0 and result[part]["images_per_second"] > 0
    assert 0 <= result["evaluation"]["share_outside_the_network"] <= 1
    assert result["peak_memory_mb"] > 0 and result["parameters"] > 1e5
    assert not (project.folder / "results").exists(), "a benchmark leaves nothing behind"
    assert project.udaseg("bench", "--benchmark", "streets", "--method", "oracle", "--steps", "0").returncode == 2
    bare = project.udaseg("bench")
    assert bare.returncode == 2 and "name --benchmark and --method" in bare.stderr


def test_each_loss_is_measured_against_a_form_of_the_same_value() -> None:
    found = json.loads(bench_losses.bench_losses(params.load(ROOT / "params.yaml"), shrink=64))
    assert list(found["losses"]) == list(bench_losses.CASES)
    # 2 + 2 crops, two student passes forward and backward, teacher and frozen encoder of 252.6 and 138.8 GFLOP an image
    assert found["step_gigaoperations"] == pytest.approx(2 * 2 * 3 * 252.6 + 2 * 252.6 + 2 * 138.8, rel=0.03)
    for name, row in found["losses"].items():
        assert row["seconds"] > 0 and 0 < row["share_of_step"] < 0.01, name
        assert row.get("difference", 0) < 1e-5, name
