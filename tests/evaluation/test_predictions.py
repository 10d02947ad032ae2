"""Scores and class maps of single images, from the pass that fills the confusion matrix."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_project import Project
from udaseg import params
from udaseg.classes import class_space
from udaseg.data.prepared import find_prepared
from udaseg.evaluation import confusion, evaluate, predictions, scores
from udaseg.models import build_model, save_model
from udaseg.params import Run, uses

SPACE = class_space("cityscapes19")


def untrained(project: Project) -> Run:
    """A run with random weights instead of a training."""
    run = params.load().resolve("streets", "self_training", 0)
    torch.manual_seed(0)
    state = build_model(run.benchmark.model, len(run.classes)).state_dict()
    save_model(
        run.folder / "model.safetensors", state, {"params_hash": run.hash, "classes": ",".join(run.classes.names)}
    )
    return run


def class_maps(folder: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(folder / "predictions.zip") as archive:
        return {n.removesuffix(".png"): np.array(Image.open(io.BytesIO(archive.read(n)))) for n in archive.namelist()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open() as handle:
        return list(csv.DictReader(handle))


def naive(truth: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """mIoU over the classes of the truth and pixel accuracy, in percent, pixel by pixel sets."""
    scored = truth != 255
    ious = [
        ((truth == c) & (found == c)).sum() / (((truth == c) | (found == c)) & scored).sum()
        for c in np.unique(truth[scored])
    ]
    return 100 * float(np.mean(ious)), 100 * float((truth == found)[scored].mean())


def test_class_maps_and_scores_are_those_of_the_confusion_matrix(project: Project) -> None:
    run = untrained(project)
    evaluate.evaluate_run(run)
    use = uses(run.benchmark)[-1]
    prepared = find_prepared("streets", use)
    maps, total = class_maps(run.folder), confusion.empty(19)
    names = [sample.name for sample in prepared.samples(use.split)]
    assert list(maps) == names == [row["image"] for row in rows(run.folder)] and len(names) == 4
    for sample, row in zip(prepared.samples(use.split), rows(run.folder), strict=True):
        truth = prepared.label(sample)
        confusion.update(total, torch.from_numpy(maps[sample.name])[None], torch.from_numpy(truth)[None])
        expected = naive(truth, maps[sample.name])
        assert (float(row["miou"]), float(row["pixel_accuracy"])) == pytest.approx(expected, abs=1e-4)
    assert evaluate.confusion_csv(total, run.classes) == (run.folder / "confusion.csv").read_text()
    with zipfile.ZipFile(run.folder / "predictions.zip") as archive:
        info = archive.infolist()[0]
        picture = Image.open(io.BytesIO(archive.read(info)))
        assert (info.compress_type, info.date_time[:3]) == (zipfile.ZIP_STORED, (1980, 1, 1))
        palette = picture.getpalette()
    assert picture.mode == "P" and palette is not None
    assert palette[: 3 * 19] == [value for colour in run.classes.colours for value in colour]


def test_two_ranks_write_the_files_of_one(make_project: Callable[[str], Project]) -> None:
    folders = []
    for count in (1, 2):
        project = make_project(f"{count}")
        project.set("run/device", "cpu")
        folders.append(project.folder / untrained(project).folder)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        words = ["-m", "udaseg", "evaluate", "--benchmark", "streets", "--method", "self_training"]
        done = subprocess.run([*launch, *words], cwd=project.folder, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert {"images.csv", "predictions.zip", "metrics.json"} < set(one)
    assert two == one


def test_an_image_without_scored_pixel_has_no_score(tmp_path: Path) -> None:
    found = torch.zeros(2, 3, 4, dtype=torch.int64)
    label = torch.zeros(2, 3, 4, dtype=torch.uint8)
    label[0] = 255
    with predictions.Recorder(SPACE) as recorder:
        recorder.add(["void", "road"], found, scores.by_image(confusion.by_image(found, label, 19)))
        predictions.write(tmp_path, recorder.predictions())
    assert (tmp_path / "images.csv").read_text() == "image,miou,pixel_accuracy\nvoid,,\nroad,100.0,100.0\n"
    assert list(class_maps(tmp_path)) == ["void", "road"]


def test_scores_by_image_by_hand() -> None:
    # truth: 3 road, 1 sidewalk; found: 2 road, 1 sidewalk, 1 car. road 2/3, sidewalk 0/2; car is not in the truth
    truth = torch.tensor([[[0, 0, 0, 1, 255]]], dtype=torch.uint8)
    found = torch.tensor([[[0, 0, 1, 13, 5]]])
    miou, accuracy = scores.by_image(confusion.by_image(found, truth, 19))[0].tolist()
    assert miou == pytest.approx((2 / 3 + 0) / 2) and accuracy == pytest.approx(0.5)
    assert math.isnan(scores.by_image(torch.zeros(1, 21, 19, dtype=torch.int64))[0, 0])


def test_matrices_by_image_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 256, (5, 7, 9), generator=generator).to(torch.uint8)
    found = torch.randint(0, 19, (5, 7, 9), generator=generator)
    every = confusion.by_image(found, label, 19)
    for k in range(5):
        matrix = confusion.empty(19)
        confusion.update(matrix, found[k : k + 1], label[k : k + 1])
        assert torch.equal(every[k], matrix)


@pytest.mark.parametrize("size", [(960, 720), (1024, 512), (2048, 1024), (513, 3), (640, 1)])
def test_large_maps_keep_the_class_under_the_centre(size: tuple[int, int]) -> None:
    label = np.random.default_rng(0).integers(0, 19, size[::-1], dtype=np.uint8)
    small = (512, max(1, round(size[1] * 512 / size[0])))
    expected = np.array(Image.fromarray(label).resize(small, Image.Resampling.NEAREST))
    np.testing.assert_array_equal(predictions.reduced(label), expected)
    found = torch.from_numpy(label).long()[None]
    with predictions.Recorder(SPACE) as recorder:
        recorder.add(["wide"], found, torch.zeros(1, 2))
        (one,) = recorder.predictions()
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(one.png))), expected)


def test_small_maps_stay_as_they_are() -> None:
    label = np.random.default_rng(0).integers(0, 19, (300, 512), dtype=np.uint8)
    np.testing.assert_array_equal(predictions.reduced(label), label)
