"""`udaseg bench` measures every part and prints JSON; no time is asserted."""

from __future__ import annotations

import json

from tiny_project import Project


def test_bench_reports_every_part(project: Project) -> None:
    done = project.udaseg("bench", "--benchmark", "streets", "--method", "self_training", "--steps", "2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for part in ("data_only", "step_only", "data_and_step"):
        assert result[part]["seconds"] > 0 and result[part]["images_per_second"] > 0
    assert 0 <= result["evaluation"]["share_outside_the_network"] <= 1
    assert result["peak_memory_mb"] > 0 and result["parameters"] > 1e5
    assert not (project.folder / "results").exists(), "a benchmark leaves nothing behind"
    assert project.udaseg("bench", "--benchmark", "streets", "--method", "oracle", "--steps", "0").returncode == 2
