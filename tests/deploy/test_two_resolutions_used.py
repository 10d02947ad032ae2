"""What is done with a trained network of two resolutions: its file alone is enough, in windows as it was scored."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_project import Project
from udaseg import cli
from udaseg.deploy import export, predict, submit
from udaseg.evaluation import inference
from udaseg.models.hrda import HrdaSegmenter
from udaseg.models.trained import load, load_run
from udaseg.params import Hrda, Size
from udaseg.params import load as load_params

RUN = ["--benchmark", "streets", "--method", "self_training"]
SWITCHES = {"detail": "32x16", "variant": "released", "box_step": 4, "detail_weight": 0.2, "fusion": "cluda"}


@pytest.fixture
def trained(make_project: Callable[[str], Project]) -> Path:
    """The model file of a training in a project of its own."""
    project = make_project("trained")
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("benchmarks/streets/model/hrda", SWITCHES)
    window = {"mode": "slide", "window": "48x32", "stride": "24x16"}
    project.set("benchmarks/streets/test", {**project.raw["benchmarks"]["streets"]["test"], **window})
    assert cli.main(["train", *RUN]) == 0
    return project.folder / "results/streets/self_training/seed0/model.safetensors"


def test_scored_analysed_and_read_back(trained: Path) -> None:
    assert cli.main(["evaluate", *RUN]) == cli.main(["analyse", *RUN]) == 0
    metrics = json.loads((trained.parent / "metrics.json").read_text())
    assert 0 <= metrics["miou"] <= 100 and "teacher" in metrics["other"]
    alone, run = load(trained), load_params("params.yaml").resolve("streets", "self_training", 0)
    of_run = load_run(run, torch.device("cpu"))
    assert isinstance(alone.student, HrdaSegmenter) and isinstance(of_run.teacher, HrdaSegmenter)
    assert alone.student.p == Hrda(Size(32, 16), "released", 4, 0.2, fusion="cluda") == run.benchmark.model.hrda
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(alone.student.predict(images, (32, 64)), of_run.student.predict(images, (32, 64)))


def test_photographs_are_looked_at_in_windows_of_two_resolutions(trained: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "a.png")
    predict.predict(trained, [photos], tmp_path / "out", size=None, probabilities=False, device="cpu")
    found = load(trained)
    look = inference.from_test(found.student.predict, found.test)
    image = found.student.normalise(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])
    with torch.no_grad():
        expected = look(image, (32, 64)).argmax(1)[0].numpy()
    assert (np.asarray(Image.open(tmp_path / "out/ids/a.png")) == expected).all()


def test_programs_of_one_size_only(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="udaseg")
    said = export.export(trained, None, size=None).splitlines()
    assert [line.split("model-")[1].split(":")[0] for line in said] == ["64x32.pt2", "64x32.onnx"]
    assert "only programs of fixed size: this network resizes images to multiples of 8" in caplog.text


def test_test_servers_get_it_too(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    night = dataclasses.replace(submit.SERVERS["dark_zurich"], count=1, size=(40, 20))
    monkeypatch.setitem(submit.SERVERS, "dark_zurich", night)
    name = Path("test/GOPR0364/GOPR0364_frame_000001_rgb_anon.png")
    name.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(name)
    submit.submit(trained, Path("test"), "dark_zurich", Path("out.zip"), device="cpu")
    names = zipfile.ZipFile("out.zip").namelist()
    assert "labelTrainIds/GOPR0364_frame_000001_rgb_anon.png" in names
