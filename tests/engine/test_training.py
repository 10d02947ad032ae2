"""The loop's promises: same bits whatever the workers and interruptions, same losses on any number of ranks."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tiny_project import Project
from udaseg import params
from udaseg.artifacts import file_hash
from udaseg.engine import checkpoint, provenance, runtime, training
from udaseg.errors import Interrupted, UserError
from udaseg.models import load_model_file
from udaseg.workflow import plan

RUN = ("--benchmark", "streets", "--method", "self_training")


def run_of(project: Project, method: str = "self_training") -> params.Run:
    return params.load(project.folder / "params.yaml").resolve("streets", method, 0)


def from_scratch(project: Project, steps: int = 6) -> None:
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("benchmarks/streets/train/steps", steps)
    project.set("benchmarks/streets/train/save_every", 2)
    project.set("benchmarks/streets/train/log_every", 3)


def train(project: Project, method: str = "self_training") -> Path:
    run = run_of(project, method)
    training.train(run, run.folder)
    return project.folder / run.folder


def content(folder: Path) -> tuple[str, str]:
    return file_hash(folder / "model.safetensors"), (folder / "history.csv").read_text()


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open() as handle:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(handle)]


@pytest.fixture
def undisturbed(make_project: Callable[[str], Project]) -> tuple[str, str]:
    project = make_project("undisturbed")
    from_scratch(project)
    return content(train(project))


def test_workers_change_nothing(make_project: Callable[[str], Project], undisturbed: tuple[str, str]) -> None:
    for workers in (0, 2):
        project = make_project(f"workers{workers}")
        from_scratch(project)
        project.set("run/workers", workers)
        assert content(train(project)) == undisturbed


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_stopped_and_continued_is_undisturbed(
    make_project: Callable[[str], Project],
    undisturbed: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
) -> None:
    project = make_project("stopped")
    from_scratch(project)
    calls = []

    def stop(self: runtime.StopRequest, where: torch.device) -> bool:
        calls.append(1)
        return len(calls) == stop_after

    with monkeypatch.context() as patch:
        patch.setattr(runtime.StopRequest, "on_any_rank", stop)
        with pytest.raises(Interrupted, match=f"step {stop_after} of 6"):
            train(project)
    run = run_of(project)
    assert not (run.folder / "model.safetensors").exists()
    assert content(train(project)) == undisturbed
    assert not Path("results/.restart/streets/self_training/seed0").exists()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals(make_project: Callable[[str], Project], sign: signal.Signals) -> None:
    """Killed at some moment after the first save, the rerun goes on from there and ends with the same bits."""
    whole, broken = make_project("whole"), make_project("broken")
    for project in (whole, broken):
        from_scratch(project, steps=30)
        project.set("benchmarks/streets/train/log_every", 1)
        project.set("run/workers", 1)
    os.chdir(whole.folder)
    expected = content(train(whole))
    process = subprocess.Popen(broken.command("train", *RUN), cwd=broken.folder, stderr=subprocess.PIPE, text=True)
    state = broken.folder / "results/.restart/streets/self_training/seed0/state.pt"
    for _ in range(1200):
        if state.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(sign)
    text = process.communicate(timeout=120)[1]
    assert process.returncode == (-9 if sign == signal.SIGKILL else 75), text
    if sign != signal.SIGKILL:
        assert "the same command goes on" in text and "Traceback" not in text
    done = broken.udaseg("train", *RUN)
    assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
    assert content(broken.folder / "results/streets/self_training/seed0") == expected


def test_two_ranks_train_like_one(make_project: Callable[[str], Project]) -> None:
    """Same global batch, so the same q, classes, batch statistics and losses, to rounding."""
    found = {}
    for ranks in (1, 2):
        project = make_project(f"ranks{ranks}")
        from_scratch(project, steps=4)
        project.set("benchmarks/streets/train/log_every", 1)
        project.set("benchmarks/streets/model/dropout", 0.0)  # drop-out draws differ by rank
        project.set("methods/self_training/variant", "released")  # q and classes of the whole batch
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [*start, "-m", "udaseg", "train", *RUN]
        done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found[ranks] = project.folder / "results/streets/self_training/seed0"
    for one, two in zip(rows(found[1]), rows(found[2]), strict=True):
        assert one == pytest.approx(two, rel=2e-3), (one, two)
    assert rows(found[1])[0] == pytest.approx(rows(found[2])[0], rel=1e-5)
    assert json.loads((found[2] / "run.json").read_text())["ranks"] == 2
    states = [load_model_file(found[n] / "model.safetensors")[0] for n in (1, 2)]
    for name, value in states[0].items():
        torch.testing.assert_close(
            value, states[1][name], rtol=2e-2, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_target_labels_are_never_opened(make_project: Callable[[str], Project], undisturbed: tuple[str, str]) -> None:
    project = make_project("unreadable")
    from_scratch(project)
    target = project.folder / "data/streets" / params.uses(run_of(project).benchmark)[1].prepared / "labels.zip"
    with zipfile.ZipFile(target) as archive:
        assert any(name.startswith("train/") for name in archive.namelist())
    size = target.stat().st_size
    target.write_bytes(b"\0" * size)
    assert content(train(project)) == undisturbed
    with pytest.raises(UserError):
        train(project, "oracle")


def test_not_finite_loss_stops_before_the_optimizer(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from_scratch(project)
    from udaseg.methods.self_training import SelfTrainingMethod

    losses = SelfTrainingMethod.losses

    def broken(self, batch, step):  # type: ignore[no-untyped-def]
        for named in losses(self, batch, step):
            if step == 3 and "mixed" in named:
                named["mixed"] = named["mixed"] * float("nan")
            yield named

    monkeypatch.setattr(SelfTrainingMethod, "losses", broken)
    with pytest.raises(UserError, match=r"step 3, pairs \[6, 7\]: the loss is not finite \(mixed\)"):
        train(project)
    run = run_of(project)
    fingerprint = provenance.fingerprint_of(run)
    state = checkpoint.load(Path("results/.restart/streets/self_training/seed0"), fingerprint)
    assert state is not None and state["step"] == 2
    assert all(v.isfinite().all() for v in state["method"].values() if v.is_floating_point())


def test_no_resume_across_parameters(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    from_scratch(project)
    run = run_of(project)
    folder = Path("results/.restart/streets/self_training/seed0")
    folder.mkdir(parents=True)
    checkpoint.save(folder, {"step": 5}, {**provenance.fingerprint_of(run), "params": "x", "code": "x"})
    with caplog.at_level("INFO", "udaseg"):
        train(project)
    assert "belongs to other params, code: ignored" in caplog.text


def test_source_only_adopts_its_pretraining_and_others_start_from_it(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.set("benchmarks/streets/train/steps", 2)
    run = run_of(project, "source_only")
    with pytest.raises(UserError, match="udaseg pretrain --benchmark streets --seed 0"):
        train(project)
    training.train(run, run.pretrained.parent)
    with caplog.at_level("INFO", "udaseg"):
        folder = train(project, "source_only")
        assert "which has the same recipe" in caplog.text
        assert content(folder) == content(project.folder / run.pretrained.parent)
        train(project)
        assert f"training starts from {run.pretrained}" in caplog.text
        train(project)
        assert "is trained already" in caplog.text


def test_one_training_serves_all_runs_of_a_recipe(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    from_scratch(project, steps=2)
    project.set("methods/pipa-off", dict(project.raw["methods"]["self_training"]))
    project.set("run/methods", ["self_training", "pipa-off"])
    first, second = run_of(project), run_of(project, "pipa-off")
    assert first.hash == second.hash and first.twins == second.twins == [first.folder, second.folder]
    assert plan.start(first) == [] and plan.start(second) == [f"{first.folder}/model.safetensors"]
    train(project)
    with caplog.at_level("INFO", "udaseg"):
        assert content(train(project, "pipa-off")) == content(project.folder / first.folder)
    assert f"taken from {first.folder}, which has the same recipe" in caplog.text
    made = json.loads((project.folder / second.folder / "run.json").read_text())
    assert made["method"] == "pipa-off" and made["taken_from"] == str(first.folder)
    project.set("methods/pipa-off/threshold", 0.9)
    assert run_of(project, "pipa-off").twins == [second.folder]


@pytest.mark.parametrize("method", ["source_only", "oracle", "self_training"])
def test_losses_fall(project: Project, method: str) -> None:
    from_scratch(project, steps=40)
    project.set("benchmarks/streets/train/log_every", 10)
    project.set("benchmarks/streets/train/optimizer/lr", 0.005)
    history = rows(train(project, method))
    name = "source" if method == "self_training" else "supervised"
    assert history[-1][name] < 0.8 * history[0][name]


def test_unsplittable_batch_is_refused() -> None:
    from udaseg.data.sampling import Steps

    with pytest.raises(UserError, match="global batch of 2 cannot be split over 4 processes"):
        Steps(0, 1, batch=2, accumulate=1, rank=0, world=4)


def test_ranks_and_accumulation_share_out_the_same_pairs() -> None:
    from udaseg.data.sampling import Steps

    whole = list(Steps(3, 5, batch=8, accumulate=1, rank=0, world=1))
    assert whole == [list(range(24, 32)), list(range(32, 40))]
    parts = [list(Steps(3, 5, batch=8, accumulate=2, rank=r, world=2)) for r in (0, 1)]
    for step in (0, 1):
        shared = [n for micro in (0, 1) for r in (0, 1) for n in parts[r][2 * step + micro]]
        assert shared == whole[step]
