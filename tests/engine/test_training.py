"""The loop's promises: same bits whatever the workers and interruptions, same losses on any number of ranks."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import forked
from tiny_project import ROOT, Project
from udaseg import params
from udaseg.artifacts import file_hash
from udaseg.checking import LARGEST_SEED
from udaseg.engine import checkpoint, provenance, runtime, trainer, training
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


def test_the_longest_temporary_folder(
    project: Project, undisturbed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers work where the path is as long as can be, and a longer one is refused before anything starts."""
    monkeypatch.chdir(project.folder)
    from_scratch(project)
    project.set("run/workers", 1)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        deep = Path(short, "t" * (training.LONGEST_TMPDIR - len(short) - 1))
        deep.mkdir()
        monkeypatch.setattr("tempfile.tempdir", f"{deep}t")
        with pytest.raises(UserError, match="has 76 bytes, expected at most 75"):
            train(project)
        assert not Path("results").exists()
        monkeypatch.setattr("tempfile.tempdir", str(deep))
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


def test_signals(make_project: Callable[[str], Project]) -> None:
    """Killed or asked to stop, again and again, each time after a save: the rerun goes on from there and ends with the same bits."""
    whole, broken = make_project("whole"), make_project("broken")
    for project in (whole, broken):
        from_scratch(project, steps=60)
        project.set("benchmarks/streets/train/log_every", 1)
        project.set("run/workers", 1)
    os.chdir(whole.folder)
    expected = content(train(whole))
    step = broken.folder / "results/.restart/streets/self_training/seed0/step"
    saved = 0
    for sign in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process = subprocess.Popen(broken.command("train", *RUN), cwd=broken.folder, stderr=subprocess.PIPE, text=True)
        for _ in range(4800):
            if (step.exists() and int(step.read_text() or 0) > saved) or process.poll() is not None:
                break
            time.sleep(0.0125)
        process.send_signal(sign)
        text = process.communicate(timeout=120)[1]
        assert process.returncode == (-9 if sign == signal.SIGKILL else 75), (sign, text)
        assert f"going on from step {saved} " in text if saved else "going on" not in text, (sign, text)
        if sign != signal.SIGKILL:
            assert "the same command goes on" in text and "Traceback" not in text
        saved = int(step.read_text())
    done = broken.udaseg("train", *RUN)
    assert done.returncode == 0 and f"going on from step {saved} " in done.stderr, done.stderr
    assert content(broken.folder / "results/streets/self_training/seed0") == expected


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_loader_costs_nothing(make_project: Callable[[str], Project], accumulate: int) -> None:
    """As the system does when memory is short: one line, the state of the step before is saved, and the bits stay."""
    whole, broken = make_project("whole"), make_project("broken")
    for project in (whole, broken):
        from_scratch(project, steps=40)
        project.set("benchmarks/streets/train/log_every", 5)
        project.set("benchmarks/streets/train/save_every", 1000)
        project.set("benchmarks/streets/train/accumulate", accumulate)
        project.set("run/workers", 1)
    os.chdir(whole.folder)
    expected = content(train(whole))
    process = subprocess.Popen(broken.command("train", *RUN), cwd=broken.folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = [next(process.stderr) for _ in range(3)]  # how it starts, and two rows of the history
    assert "step 10/40" in said[-1].replace("  ", " "), said
    (loader,) = psutil.Process(process.pid).children()
    loader.kill()
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 2
    lines = [line for line in rest.splitlines() if not line.startswith("step ")]
    assert len(lines) == 1, rest
    assert lines[0].startswith("udaseg train: a data-loading process was killed at step ")
    assert "run.workers" in lines[0] and "train.batch" in lines[0]
    step = int((broken.folder / "results/.restart/streets/self_training/seed0/step").read_text())
    assert step >= 10 and f"at step {step} of 40" in lines[0]
    done = broken.udaseg("train", *RUN)
    assert f"going on from step {step} of 40" in done.stderr
    assert content(broken.folder / "results/streets/self_training/seed0") == expected


def test_several_ranks_train_like_one(make_project: Callable[[str], Project]) -> None:
    """Same global batch, so the same q, classes, batch statistics, dropout and losses, to rounding. (Two: methods/test_on_ranks.py.)"""
    found = {}
    for ranks in (1, 3):
        project = make_project(f"ranks{ranks}")
        from_scratch(project, steps=4)
        project.set("benchmarks/streets/train/log_every", 1)
        project.set("benchmarks/streets/train/batch", 6)
        assert project.raw["benchmarks"]["streets"]["model"]["dropout"] > 0
        project.set("methods/self_training/variant", "released")  # q and classes of the whole batch
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [*start, "-m", "udaseg", "train", *RUN] if ranks > 1 else project.command("train", *RUN)
        done = forked.run(command, project.folder, os.environ, timeout=300)
        assert done.returncode == 0, done.stderr
        found[ranks] = project.folder / "results/streets/self_training/seed0"
        assert json.loads((found[ranks] / "run.json").read_text())["ranks"] == ranks
    one, other = (load_model_file(found[ranks] / "model.safetensors")[0] for ranks in (1, 3))
    for left, right in zip(rows(found[1]), rows(found[3]), strict=True):
        assert left == pytest.approx(right, rel=1e-5), (left, right)
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=1e-2, atol=5e-4, msg=lambda text, name=name: f"{name}: {text}"
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
        assert not list(Path("results/.restart").glob("*/source_only/*"))  # nor lock nor state is left
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
    project.set("benchmarks/streets/train/save_every", 40)
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


@pytest.mark.parametrize(
    ("refused", "crop", "train_block", "model"),
    [
        (True, "32x32", {"batch": 1}, {}),
        (True, "32x32", {"batch": 2, "accumulate": 2}, {}),
        (False, "32x32", {"batch": 2}, {}),
        (False, "33x32", {"batch": 1}, {}),
        (False, "32x32", {"batch": 1}, {"batch_norm": "eval"}),  # the head sees the finest map
        (False, "32x32", {"batch": 1}, {"backbone": "pvt_v2_b0"}),  # no batch normalisation in it
        (False, "32x32", {"batch": 1}, {"backbone_args": {"output_stride": 8}, "head": "deeplabv2", "dilations": [6]}),
    ],
)
def test_one_value_of_a_channel_is_refused_before_training_and_nothing_else(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    refused: bool,
    crop: str,
    train_block: dict[str, int],
    model: dict[str, Any],
) -> None:
    """What is refused fails in torch, and what is not is trained."""
    from_scratch(project, 2)
    for key, value in {"crop": crop, **train_block}.items():
        project.set(f"benchmarks/streets/train/{key}", value)
    for key, value in model.items():
        project.set(f"benchmarks/streets/model/{key}", value)
    if refused:
        with pytest.raises(UserError, match="one value of a channel; expected two: raise"):
            train(project)
        monkeypatch.setattr(training, "check_crop", lambda *_: None)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            train(project)
    else:
        assert (train(project) / "model.safetensors").is_file()


def test_a_term_with_batch_normalisation_of_its_own_is_looked_at(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_scratch(project, 2)
    shipped = params.load(ROOT / "params.yaml").raw["methods"]["sepico"]
    project.set("methods/sepico", shipped)
    for key, value in {"crop": "32x32", "batch": 1}.items():
        project.set(f"benchmarks/streets/train/{key}", value)
    for key, value in {"batch_norm": "eval", "head": "deeplabv2", "dilations": [1]}.items():
        project.set(f"benchmarks/streets/model/{key}", value)
    with pytest.raises(UserError, match="one value of a channel"):
        train(project, "sepico")
    monkeypatch.setattr(training, "check_crop", lambda *_: None)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        train(project, "sepico")


def test_a_look_at_the_crop_leaves_no_trace(
    make_project: Callable[[str], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("looked", "not-looked"):
        project = make_project(name)
        from_scratch(project, 2)
        project.set("benchmarks/streets/train/batch", 1)
        found.append(content(train(project)))
        monkeypatch.setattr(training, "check_crop", lambda *_: None)
    assert found[0] == found[1]


def test_a_crop_that_the_network_cannot_take_is_one_line(project: Project) -> None:
    from_scratch(project, 2)
    project.set("benchmarks/streets/train/crop", "2x2")
    project.set("benchmarks/streets/model/backbone", "convnext_atto")  # patches of 4 pixels, without padding
    with pytest.raises(
        UserError, match=r"found train\.crop 2x2, which convnext_atto cannot take \(.*\); raise it to 32"
    ) as caught:
        train(project, "source_only")
    assert "\n" not in str(caught.value)


def test_a_seed_that_is_a_date_trains(project: Project) -> None:
    """Case 10; the seeds of torch's generators stay what they were where these fitted."""
    from_scratch(project, 2)
    run = params.load(project.folder / "params.yaml").resolve("streets", "self_training", 20261128155321)
    training.train(run, run.folder)
    assert (run.folder / "model.safetensors").is_file()
    assert trainer.step_seed(7, 40_000) == (7 * 1_000_003 + 40_000) * 1009
    seeds = [trainer.step_seed(seed, step) for seed in (LARGEST_SEED, LARGEST_SEED - 1) for step in range(3)]
    assert len({*seeds}) == 6 and min(seeds) >= 0 and max(seeds) <= LARGEST_SEED
    with pytest.raises(UserError, match=f"expected 0 to {LARGEST_SEED}"):
        run.params.resolve("streets", "self_training", LARGEST_SEED + 1)


FREED = """
import resource, torch
from udaseg.engine.runtime import keep_freed_memory
keep_freed_memory()
def faults():
    torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = [faults(), faults(), faults()]
print(before[2] - before[1])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_memory_is_kept() -> None:
    # in pages of 4 KiB; 16 384 where the kernel gives them anew, which it also does where it has put something behind the heap
    runs = (subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True) for _ in range(4))
    assert any(int(done.stdout) < 1000 for done in runs)
