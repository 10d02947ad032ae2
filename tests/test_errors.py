"""Every row of docs/errors.md is provoked: exit code 2, one line, no traceback, and the promised words."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tiny_project import ROOT, Project
from udaseg import cli, params
from udaseg.artifacts import run_lock
from udaseg.classes import NAMES
from udaseg.models import build_model, load_model_file, save_model
from udaseg.models import trained as model_files
from udaseg.workflow import lease

TABLE = dict(re.findall(r"^\| ([a-z-]+) \| `(.+)` \|$", (ROOT / "docs/errors.md").read_text(), re.M))
CASES: dict[str, Callable[[Project, pytest.MonkeyPatch], list[str]]] = {}
METHODS = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]
SCORES = {
    **{"miou": 1.0, "iou": {"road": 1.0}, "absent": [name for name in NAMES if name != "road"], "other": {}},
    **{"pixel_accuracy": 2.0, "images": 1, "pixels": 100},
}
TRAIN = ["train", "--benchmark", "streets", "--method", "self_training"]
EVALUATE = ["evaluate", "--benchmark", "streets", "--method", "self_training"]
ANALYSE = ["analyse", "--benchmark", "streets", "--method", "self_training"]


def case(
    function: Callable[[Project, pytest.MonkeyPatch], list[str]],
) -> Callable[[Project, pytest.MonkeyPatch], list[str]]:
    CASES[function.__name__.replace("_", "-")] = function
    return function


def scratch(project: Project) -> None:
    project.set("benchmarks/streets/init", {"default": "none"})


def own_folder(project: Project) -> Path:
    """A data set of the user's own: two images with labels of three classes."""
    folder = project.folder / "mine"
    for name in ("a", "b"):
        for kind, mode in (("images", "RGB"), ("labels", "L")):
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (16, 8)).save(path)
    block = {"format": "folder", "root": "mine", "images": "images", "labels": "labels", "classes": ["x", "y", "z"]}
    project.set("datasets/mine", block)
    return folder


PREPARE = ["prepare", "mine", "--size", "16x8", "--jobs", "1"]


@case
def params_missing(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "params.yaml").unlink()
    return TRAIN


@case
def params_unknown_key(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("methods/self_training/treshold", 0.9)
    return TRAIN


@case
def params_wrong_type(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("methods/self_training/threshold", "high")
    return TRAIN


@case
def unknown_method(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["train", "--benchmark", "streets", "--method", "sorce_only"]


@case
def unknown_benchmark(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["train", "--benchmark", "street", "--method", "self_training"]


@case
def unknown_backbone(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    project.set("benchmarks/streets/model/backbone", "resnet10x")
    return TRAIN


@case
def data_missing_folder(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("datasets/mine", {"format": "folder", "root": "nowhere"})
    return PREPARE


@case
def data_empty_folder(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "empty").mkdir()
    project.set("datasets/mine", {"format": "folder", "root": "empty"})
    return PREPARE


@case
def data_image_without_label(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (own_folder(project) / "labels/b.png").unlink()
    return PREPARE


@case
def data_unknown_id(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    Image.fromarray(np.full((8, 16), 7, np.uint8)).save(own_folder(project) / "labels/b.png")
    return PREPARE


@case
def data_sizes_differ(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    Image.new("L", (20, 10)).save(own_folder(project) / "labels/b.png")
    return PREPARE


@case
def data_truncated_png(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    path = own_folder(project) / "images/b.png"
    path.write_bytes(path.read_bytes()[:50])
    return PREPARE


@case
def data_lossy_label(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    Image.new("L", (16, 8)).save(own_folder(project) / "labels/b.png", "JPEG")
    return PREPARE


@case
def data_turned_photograph(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (16, 8)).save(own_folder(project) / "images/b.png", exif=exif)
    return PREPARE


@case
def data_damaged_exif(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    block = b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x1a\0\x02\0\0\0\x04abc\0\0\0\0\0"
    Image.new("RGB", (16, 8)).save(own_folder(project) / "images/b.png", exif=block)
    return PREPARE


@case
def data_forged_manifest(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    path = next((project.folder / "data/streets").glob("streets_photo*/manifest.json"))
    manifest = json.loads(path.read_text())
    manifest["splits"]["test"] = manifest["splits"]["test"][1:]
    path.write_text(json.dumps(manifest))
    scratch(project)
    return TRAIN


@case
def data_void_test(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    for path in (own_folder(project) / "labels").iterdir():
        Image.new("L", (16, 8), 255).save(path)
    project.set("datasets/mine/classes", "cityscapes19")
    project.set("benchmarks/streets/evaluate", ["streets_photo/test", "mine/train"])
    (project.folder / "data/streets/data.json").unlink()  # says that all is prepared
    return ["prepare", "--benchmark", "streets", "--jobs", "1"]


@case
def data_not_prepared(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    (project.folder / "data/streets/data.json").unlink()
    return TRAIN


@case
def data_cut_short(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    project.set("run/workers", 1)  # the error comes from the loading process
    path = next((project.folder / "data/streets").glob("streets_game*/images.zip"))
    path.write_bytes(path.read_bytes()[:100])
    return TRAIN


@case
def disk_full(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr("os.fsync", full)
    return TRAIN


@case
def read_only_folder(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)

    def denied(*_: object) -> None:  # root may write anywhere, so the refusal is simulated
        raise OSError(errno.EACCES, "Permission denied")

    patch.setattr("os.fsync", denied)
    return TRAIN


@case
def no_cuda(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    patch.setattr("torch.cuda.is_available", lambda: False)
    project.set("run/device", "cuda")
    return TRAIN


@case
def second_process(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    lock = run_lock(project.folder / "results/.restart/streets/self_training/seed0")
    lock.__enter__()
    patch.setattr(project, "lock", lock, raising=False)  # held until the test ends
    return TRAIN


@case
def weights_missing(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/streets/init", {"default": "imagenet"})
    project.set("benchmarks/streets/model/weights", "weights/none.safetensors")
    return TRAIN


@case
def weights_of_another_shape(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("resnet18").state_dict(), "other.safetensors")
    project.set("benchmarks/streets/init", {"default": "imagenet"})
    project.set("benchmarks/streets/model/backbone", "resnet10t")
    project.set("benchmarks/streets/model/weights", "other.safetensors")
    return TRAIN


@case
def no_pretrained_model(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return TRAIN


@case
def model_of_other_parameters(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    assert cli.main(TRAIN) == 0
    project.set("methods/self_training/threshold", 0.5)
    return EVALUATE


@case
def model_damaged(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    assert cli.main(TRAIN) == 0
    path = project.folder / "results/streets/self_training/seed0/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return EVALUATE


def flipped(path: Path) -> None:
    """In the last tensor, which is one of the head's."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:])


@case
def model_with_a_flipped_bit(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    flipped(Path(trained(project)))
    return EVALUATE


@case
def pretrained_with_a_flipped_bit(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    assert cli.main(["pretrain", "--benchmark", "streets"]) == 0
    flipped(Path("results/streets/pretrained/seed0/model.safetensors"))
    return TRAIN


@case
def copied_model_with_a_flipped_bit(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.png")
    shutil.copy(trained(project), "copy.safetensors")
    flipped(Path("copy.safetensors"))
    return ["predict", "copy.safetensors", "photos", "--out", "labels"]


@case
def model_header_that_names_a_file(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.png")
    state, header = load_model_file(trained(project))
    model = json.loads(header["model"]) | {"backbone_args": {"checkpoint_path": "params.yaml"}}
    save_model("other.safetensors", state, header | {"model": json.dumps(model)})
    return ["predict", "other.safetensors", "photos", "--out", "labels"]


@case
def model_in_a_folder(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    Path("results/streets/self_training/seed0/model.safetensors").mkdir(parents=True)
    return TRAIN


@case
def restart_in_a_folder(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    Path("results/.restart/streets/self_training/seed0/state.pt").mkdir(parents=True)
    return TRAIN


@case
def lock_in_a_read_only_folder(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)

    def denied(*_: object, **__: object) -> None:  # root may write anywhere, so the refusal is simulated
        raise OSError(errno.EACCES, "Permission denied")

    patch.setattr("pathlib.Path.mkdir", denied)
    return TRAIN


@case
def restart_damaged(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    folder = project.folder / "results/.restart/streets/self_training/seed0"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"half")
    return TRAIN


@case
def restart_folder_in_the_way(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    (project.folder / "results/.restart/streets/self_training/seed0/lock").mkdir(parents=True)
    return TRAIN


@case
def loader_killed(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    """As torch says it; tests/engine/test_training.py kills one."""

    def batches(loop: object) -> Iterator[None]:
        raise RuntimeError("DataLoader worker (pid(s) 17) exited unexpectedly")
        yield

    scratch(project)
    project.set("run/workers", 1)
    patch.setattr("udaseg.engine.trainer.Loop.loader", batches)
    return TRAIN


@case
def temporary_folder_too_deep(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    project.set("run/workers", 1)
    deep = project.folder / ("t" * 75)
    deep.mkdir()
    patch.setattr("tempfile.tempdir", str(deep))
    return TRAIN


@case
def out_of_memory(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
        )

    scratch(project)
    patch.setattr("udaseg.engine.trainer.Loop.backward", refuse)
    return TRAIN


@case
def gpu_locks_of_others(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    patch.setattr("tempfile.tempdir", str(project.folder))
    patch.setenv("UDASEG_GPU_POOL", "0")
    lease.lock_folder().mkdir()
    lease.lock_folder().chmod(0o755)
    return ["with-gpus", "1", "--", "true"]


@case
def record_of_an_altered_result(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    """What the two tools say is made up; tests/workflow/test_ledgers.py has them say it."""
    path = "results/streets/oracle/seed0/history.csv"
    patch.setattr("udaseg.workflow.bridges.SNAKEMAKE", ("echo", "Nothing to be done"))
    patch.setattr(
        "udaseg.workflow.bridges.status", lambda: {"train@streets-oracle-0": [{"changed outs": {path: "modified"}}]}
    )
    return ["record"]


@case
def batch_cannot_be_split(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    patch.setattr("udaseg.ranks.world", lambda: 3)
    patch.setattr("udaseg.ranks.use_global_batch", lambda module: module)
    return TRAIN


@case
def not_trained(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return EVALUATE


@case
def not_scored(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["compare", "--benchmark", "streets"]


def scored(project: Project) -> Path:
    """A run that was scored, the only one of `run`, and its metrics.json."""
    trained(project)
    assert cli.main(EVALUATE) == 0
    project.set("run/methods", ["self_training"])
    return Path("results/streets/self_training/seed0/metrics.json")


@case
def scores_forged(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    path = scored(project)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"miou": 77.7}))
    return ["compare", "--benchmark", "streets"]


@case
def scores_in_a_folder(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    Path("results/streets/self_training/seed0/metrics.json").mkdir(parents=True)
    project.set("run/methods", ["self_training"])
    return ["compare", "--benchmark", "streets"]


@case
def scores_nested_deeply(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    path = Path("results/streets/self_training/seed0/metrics.json")
    path.parent.mkdir(parents=True)
    path.write_text("[" * 100_000)
    project.set("run/methods", ["self_training"])
    return ["compare", "--benchmark", "streets"]


@case
def select_of_cut_scores(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    path = scored(project)
    assert cli.main(ANALYSE) == 0
    path.write_text(path.read_text()[:40])
    project.set("select/method", "self_training")
    return ["select"]


@case
def verify_of_no_reference(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["verify", "results/reference/streets"]


def shipped(project: Project, name: str, **changes: object) -> list[str]:
    """Train a method of the shipped params.yaml, with changes to its block."""
    scratch(project)
    project.set(f"methods/{name}", copy.deepcopy(METHODS[name]) | changes)
    return ["train", "--benchmark", "streets", "--method", name]


@case
def unknown_variant(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return shipped(project, "plca", variant="papr")


@case
def unknown_term(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return shipped(project, "sepico", terms=["sepicco"])


@case
def term_without_block(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return shipped(project, "sepico", terms=["sepico", "pipa"])


@case
def term_named_twice(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return shipped(project, "cluda", terms=["cluda", "cluda"])


@case
def terms_for_a_method_without(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return shipped(project, "bcl", terms=["pipa"])


@case
def terms_that_want_another_recipe(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return shipped(project, "pipa", terms=["pipa", "sepico"], sepico=METHODS["sepico"]["sepico"])


@case
def feature_that_the_head_lacks(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/streets/model/head", "deeplabv2")
    project.set("benchmarks/streets/model/dilations", [6, 12])
    return shipped(project, "bcl", feature="decoder")


@case
def class_not_in_source(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    path = next((project.folder / "data/streets").glob("streets_game*/manifest.json"))
    manifest = json.loads(path.read_text())
    for sample in manifest["splits"]["train"]:
        sample["counts"].pop("16", None)
    project.forge(path, manifest)
    scratch(project)
    return TRAIN


@case
def patch_crops_that_do_not_fit(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    parts = copy.deepcopy(METHODS["pipa"]["pipa"])
    parts["patch"]["crop"] = 0.1
    return shipped(project, "pipa", pipa=parts)


def two_resolutions(project: Project, detail: str, **model: object) -> list[str]:
    scratch(project)
    for key, value in {"hrda": {"detail": detail}, **model}.items():
        project.set(f"benchmarks/streets/model/{key}", value)
    return TRAIN


@case
def crop_without_whole_cells(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/streets/train/crop", "44x32")
    return two_resolutions(project, "32x16")


@case
def detail_larger_than_the_crop(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return two_resolutions(project, "64x32")


@case
def detail_without_whole_cells(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return two_resolutions(project, "24x16")


@case
def stages_that_the_head_lacks(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return two_resolutions(project, "32x16", backbone_args={"out_indices": [1, 2]})


@case
def masks_larger_than_the_image(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return shipped(project, "mic", mic={**METHODS["mic"]["mic"], "block": 64})


@case
def half_of_an_odd_batch(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/streets/train/accumulate", 2)
    return shipped(project, "mic-night", mic={**METHODS["mic-night"]["mic"], "block": 8})


@case
def no_day_reference(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return shipped(project, "sepico-night")


@case
def import_of_other_parameters(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    folder = project.folder / "from-elsewhere"
    folder.mkdir()
    run = {
        "benchmark": "streets",
        "method": "self_training",
        "seed": 0,
        "scheme": 2,
        "params_hash": "other",
        "code_hash": "",
        "data_hash": "",
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "metrics.json").write_text(json.dumps(SCORES))
    (folder / "history.csv").write_text("step\n")
    return ["import-run", str(folder), "--reference"]


@case
def report_not_compared(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["report", "--benchmark", "streets"]


@case
def report_of_a_damaged_summary(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "results/streets").mkdir(parents=True)
    (project.folder / "results/streets/summary.json").write_text('{"methods": {')
    return ["report", "--benchmark", "streets"]


@case
def report_of_other_methods(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "results/streets").mkdir(parents=True)
    (project.folder / "results/streets/summary.json").write_text('{"methods": {"oracle": {}}, "seeds": [0]}')
    return ["report", "--benchmark", "streets"]


@case
def analysis_numbers(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("analysis/per_class", 3)
    return ANALYSE


@case
def nothing_to_analyse(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ANALYSE


@case
def too_few_pure_cells(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    assert cli.main(TRAIN) == 0
    project.set("analysis/per_class", 10_000)
    project.set("analysis/least", 10_000)
    return ANALYSE


@case
def nothing_labelled_to_analyse(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    project.set("benchmarks/streets/evaluate", [])
    assert cli.main(TRAIN) == 0
    return ANALYSE


@case
def nothing_labelled_to_compare(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/streets/evaluate", [])
    return ["compare", "--benchmark", "streets"]


@case
def features_of_a_diverged_run(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    assert cli.main(TRAIN) == 0
    path = project.folder / "results/streets/self_training/seed0/model.safetensors"
    path.with_name("run.json").unlink()
    state, header = load_model_file(path)
    save_model(
        path,
        {name: value * float("nan") if value.is_floating_point() else value for name, value in state.items()},
        header,
    )
    return ANALYSE


@case
def figure_without_features(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["figure", "tsne", "--benchmark", "streets"]


@case
def figure_of_a_damaged_table(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    path = project.folder / "results/streets/source_only/seed0/images.csv"
    path.parent.mkdir(parents=True)
    path.write_text("image,miou,pixel_accuracy\n")
    return ["figure", "qualitative", "--benchmark", "streets"]


@case
def figure_of_other_runs(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    path = project.folder / "results/streets/summary.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"methods": {"oracle": {}}, "seeds": [0]}')
    return ["figure", "gain", "--benchmark", "streets"]


@case
def target_name_taken(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["new-target", "data", "--name", "streets_game"]


@case
def target_without_photographs(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (own_folder(project) / "images/c.jpg").write_text("no image")
    return ["new-target", "mine/images", "--name", "photographs"]


@case
def target_too_small(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "small").mkdir()
    Image.new("RGB", (8, 8)).save(project.folder / "small/a.png")
    return ["new-target", "small", "--name", "small"]


@case
def target_with_another_layout(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "large").mkdir()
    Image.new("RGB", (128, 64)).save(project.folder / "large/a.png")
    (project.folder / "params.yaml").write_text(yaml.safe_dump(project.raw, default_flow_style=True))
    return ["new-target", "large", "--name", "large"]


@case
def tensorboard_missing(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    project.set("run/tensorboard", True)
    patch.setitem(sys.modules, "torch.utils.tensorboard", None)
    return TRAIN


@case
def publish_uncommitted(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    subprocess.run(["git", "init", "--quiet"], cwd=project.folder, check=True)
    (project.folder / "results").mkdir()
    (project.folder / "results/note.txt").touch()
    return ["publish-methods"]


def photos(project: Project, *names: str) -> None:
    for name in names:
        path = project.folder / "photos" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 8)).save(path)


def trained(project: Project) -> str:
    scratch(project)
    assert cli.main(TRAIN) == 0
    return "results/streets/self_training/seed0/model.safetensors"


@case
def predict_model_not_ours(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.png")
    save_model(project.folder / "foreign.safetensors", {}, {"format": "pt"})
    return ["predict", "foreign.safetensors", "photos", "--out", "labels"]


@case
def predict_model_of_an_older_version(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.png")
    header = {"benchmark": "streets", "method": "oracle", "seed": "0", "params_hash": "", "classes": "road,car"}
    save_model(project.folder / "old.safetensors", {}, header)
    return ["predict", "old.safetensors", "photos", "--out", "labels"]


@case
def predict_no_image(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "photos").mkdir()
    return ["predict", "model.safetensors", "photos", "--out", "labels"]


@case
def predict_two_images_for_one_result(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.png", "a.jpg")
    return ["predict", "model.safetensors", "photos", "--out", "labels"]


@case
def predict_into_the_images(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.png")
    return ["predict", "model.safetensors", "photos", "--out", "photos"]


@case
def predict_not_an_image(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.png")
    (project.folder / "photos/b.jpg").write_text("no image")
    return ["predict", trained(project), "photos", "--out", "labels"]


@case
def export_without_its_packages(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    patch.setitem(sys.modules, "onnxruntime", None)
    return ["export", "model.safetensors"]


@case
def submit_other_classes(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/streets/classes", "cityscapes16")
    return ["submit", trained(project), "photos", "--server", "dark_zurich", "--out", "out.zip"]


@case
def submit_incomplete(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.png")
    return ["submit", trained(project), "photos", "--server", "cityscapes", "--out", "out.zip"]


@case
def parameters_in_a_folder(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return [*TRAIN, "--params", "."]


@case
def reserved_benchmark(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/reference", project.raw["benchmarks"]["streets"])
    return TRAIN


@case
def comma_in_a_class(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/streets/classes", ["road, wet", "car"])
    return TRAIN


@case
def class_called_void(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    own_folder(project)
    project.set("datasets/mine/classes", ["void", "x", "y"])
    project.set("datasets/mine/ids", {0: "void", 1: "x", 2: "y"})
    return PREPARE


@case
def class_called_like_the_rest(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/streets/classes", ["road", "other classes"])
    return TRAIN


@case
def name_that_is_too_long(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    own_folder(project)
    return ["predict", "x" * 300, "mine/images", "--out", "y"]


@case
def reference_of_two_protocols(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    for seed, protocol in enumerate(("matched", "native")):
        folder = Path(f"results/reference/streets/self_training/seed{seed}")
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(SCORES))
        (folder / "run.json").write_text(json.dumps({"protocol": protocol}))
    return ["compare", "--benchmark", "streets", "--reference"]


def from_elsewhere(project: Project) -> Path:
    """A finished run of this project's own parameters, code and data, in another folder, and nothing that it began from."""
    assert cli.main(["pretrain", "--benchmark", "streets"]) == 0
    assert cli.main(TRAIN) == 0
    folder = Path("from-elsewhere")
    Path("results/streets/self_training/seed0").rename(folder)
    shutil.rmtree("results/streets")
    (folder / "metrics.json").write_text(json.dumps(SCORES))
    return folder


@case
def import_before_its_start(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["import-run", str(from_elsewhere(project))]


@case
def import_of_a_cut_model(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    model = from_elsewhere(project) / "model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    return ["import-run", str(model.parent)]


@case
def out_below_a_file(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.png")
    (project.folder / "notes").touch()
    return ["predict", "model.safetensors", "photos", "--out", "notes/labels"]


@case
def out_in_the_way(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    photos(project, "a.jpg")
    (project.folder / "labels/ids/a.png").mkdir(parents=True)
    return ["predict", trained(project), "photos", "--out", "labels"]


@case
def export_not_traceable(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    def refuses(*_: object) -> None:
        raise RuntimeError("no such operator")

    patch.setattr("udaseg.deploy.export.convert", refuses)
    return ["export", trained(project), "--size", "64x32"]


@case
def submit_onto_a_folder(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "out.zip").mkdir()
    return ["submit", "model.safetensors", "photos", "--server", "cityscapes", "--out", "out.zip"]


@case
def target_name_reserved(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["new-target", "photos", "--name", "raw"]


@case
def params_number_out_of_its_range(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("benchmarks/streets/train/optimizer/lr", -1.0)
    return TRAIN


@case
def params_key_twice(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    path = project.folder / "params.yaml"
    path.write_text(f"{path.read_text()}\nrun: {{}}\n")
    return TRAIN


@case
def params_that_refer_to_themselves(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "params.yaml").write_text("run: &run {run: *run}\n")
    return TRAIN


@case
def params_with_a_tag(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    (project.folder / "params.yaml").write_text("run: !!python/object/apply:os.getcwd []\n")
    return TRAIN


@case
def params_too_large(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    with (project.folder / "params.yaml").open("ab") as file:
        file.truncate(100 * 2**20)
    return TRAIN


@case
def data_set_name(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.set("datasets/my.set", {"format": "folder", "root": "mine"})
    return ["prepare", "my.set", "--size", "16x8"]


@case
def data_variable_not_set(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    patch.delenv("NO_SUCH", raising=False)
    project.set("datasets/mine", {"format": "folder", "root": "${NO_SUCH}/photos"})
    return PREPARE


@case
def two_runs_of_one_name(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    project.raw["methods"]["self_training-self_training"] = project.raw["methods"]["self_training"]
    project.raw["benchmarks"]["streets-self_training"] = project.raw["benchmarks"]["streets"]
    project.set("run/benchmarks", ["streets", "streets-self_training"])
    project.set("run/methods", ["self_training", "self_training-self_training"])
    return TRAIN


@case
def seed_too_large(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return [*TRAIN, "--seed", str(2**64)]


@case
def no_such_option(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return [*TRAIN, "--sed", "1"]


@case
def no_process_at_all(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["prepare", "streets_game", "--size", "16x8", "--jobs", "0"]


@case
def size_too_large(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["prepare", "streets_game", "--size", "100000x100000"]


@case
def crop_of_one_value(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    project.set("benchmarks/streets/train/batch", 1)
    project.set("benchmarks/streets/train/crop", "32x32")
    return TRAIN


@case
def crop_below_the_blur(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    scratch(project)
    project.set("benchmarks/streets/train/crop", "4x4")
    return TRAIN


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("owned",)


def published(**state: object) -> list[str]:
    """A checkpoint of somebody else, with these below `state_dict`."""
    torch.save({"state_dict": state}, "latest.pth")
    return ["import-checkpoint", "latest.pth", "--like", "streets"]


@case
def checkpoint_with_code(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return published(x=Hostile())


@case
def checkpoint_of_another_network(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return published(**{"classifier.0.convs.0.0.weight": torch.zeros(1)})


@case
def checkpoint_not_whole(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    command = published(x=torch.zeros(100))
    Path("latest.pth").write_bytes(Path("latest.pth").read_bytes()[:300])
    return command


@case
def checkpoint_with_unknown_tensors(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return published(**{"backbone.extra.weight": torch.zeros(1), "decode_head.conv_seg.bias": torch.zeros(19)})


@case
def scored_without_a_method(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["evaluate", "--benchmark", "streets"]


@case
def scored_under_a_wrong_name(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    return ["evaluate", "--benchmark", "streets", "--model", "m.safetensors", "--name", "a/b"]


@case
def scored_with_other_classes(project: Project, patch: pytest.MonkeyPatch) -> list[str]:
    block = {**project.raw["benchmarks"]["streets"], "classes": ["road", "sky"]}
    p = params.parse({**project.raw, "benchmarks": {"streets": block}})
    model = build_model(p.benchmarks["streets"].model, 2)
    model_files.save(Path("m.safetensors"), p.resolve("streets", "source_only", 0), {"": model})
    return ["evaluate", "--benchmark", "streets", "--model", "m.safetensors"]


def test_every_row_is_provoked() -> None:
    assert set(TABLE) == set(CASES) and len(TABLE) >= 38


@pytest.mark.parametrize("name", CASES)
def test_error(name: str, project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    command = CASES[name](project, monkeypatch)
    before = {path: path.stat().st_size for path in Path("data").rglob("*") if path.is_file()}
    capfd.readouterr()
    try:
        code = cli.main(command)
    except SystemExit as error:  # what the words themselves lack
        code = int(error.code or 0)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(f"udaseg {command[0]}: ")]
    assert code == 2
    assert len(lines) == 1 and TABLE[name].replace("\\`", "`") in lines[0], lines
    assert str(ROOT) not in lines[0] or name.startswith("weights")
    for path, size in before.items():
        assert path.stat().st_size == size, f"{path} was lost"
    assert not [p for p in project.folder.rglob("*.part") if p.is_file() and ".part" not in p.parts[:-1]], (
        "a half-written file is left"
    )
    assert os.getcwd() == str(project.folder)
