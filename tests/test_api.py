"""The public Python API: the labels of the command, clear errors, a quick import, and a page whose code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import udaseg
from tiny_project import ROOT
from udaseg import cli
from udaseg.artifacts import write_json
from udaseg.errors import UserError
from udaseg.models import load_model_file, save_model

sys.path.insert(0, str(ROOT / "tests/deploy"))
from tiny_model import write_model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and three photographs of two sizes."""
    write_model(tmp_path)
    (tmp_path / "photographs").mkdir()
    for k, size in enumerate([(90, 60), (90, 60), (48, 70)]):
        small = np.random.default_rng(k).integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"photographs/{k}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_labels_are_those_of_the_command_in_every_form(here: Path) -> None:
    assert (
        cli.main(["predict", "model.safetensors", "photographs", "--out", "out", "--probabilities", "--device", "cpu"])
        == 0
    )
    model = udaseg.load("model.safetensors", device="cpu")
    for k, found in enumerate(model.predict("photographs", probabilities=True)):
        expected = np.asarray(Image.open(f"out/ids/{k}.png"))
        assert (found.labels == expected).all() and found.labels.dtype == np.uint8
        shares = np.load(f"out/probabilities/{k}.npy")
        assert found.probabilities is not None and np.abs(found.probabilities - shares).max() < 1e-3
        picture = Image.open(f"photographs/{k}.jpg")
        array = np.asarray(picture)
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
        for form in (picture, array, tensor, tensor / 255, f"photographs/{k}.jpg", Path(f"photographs/{k}.jpg")):
            assert (model.predict(form).labels == expected).all()
        overlay = model.overlay(picture, found.labels)
        assert (np.asarray(overlay) == np.asarray(model.overlay(array))).all()
        bare = np.asarray(model.overlay(picture, found.labels, legend=False))
        assert bare.shape == array.shape and overlay.height > picture.height
        assert (np.asarray(overlay)[: picture.height] == bare).all()
        assert (np.asarray(model.overlay(picture, found.labels, opacity=0.1, legend=False)) != bare).any()
    assert model.classes[0] == "road" and model.palette.shape == (19, 3) and model.header["method"] == "source_only"
    looked = model.predict("photographs/0.jpg", size="32x32").labels
    assert looked.shape == (60, 90) and (looked != model.predict("photographs/0.jpg").labels).any()


def test_a_run_folder_is_a_model_and_one_without_is_named(here: Path) -> None:
    assert udaseg.load(here).predict("photographs/0.jpg").labels.shape == (60, 90)
    with pytest.raises(UserError, match="File name too long; expected a model file or the folder of a trained run"):
        udaseg.load("x" * 300)
    with pytest.raises(UserError, match=r"photographs: found a folder without model.safetensors"):
        udaseg.load("photographs")


def test_a_model_of_an_earlier_or_later_version_is_told_in_one_line(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, header = load_model_file(here / "model.safetensors")
    path = here / "other.safetensors"
    for form, drop, said in (
        ("1", ("format", "test"), "header format 1 of 3): it does not say how its images were scored"),
        ("2", (), "header format 2 of 3): it has no hash of its content"),
    ):
        caplog.clear()
        save_model(path, state, {k: form if k == "format" else v for k, v in header.items() if k not in drop})
        found = udaseg.load(path, device="cpu").predict("photographs/0.jpg").labels
        assert (found == udaseg.load(here, device="cpu").predict("photographs/0.jpg").labels).all()
        (line,) = caplog.messages
        assert said in line and "\n" not in line
    for change, said in (
        (
            {"format": "4"},
            "its header has format 4, this version reads up to 3; use the version of udaseg that wrote it",
        ),
        (
            {"colours": None},
            "written by an older version, its header lacks colours; train again: `udaseg train --benchmark",
        ),
    ):
        save_model(path, state, {k: v for k, v in (header | change).items() if v is not None})
        with pytest.raises(UserError) as error:
            udaseg.load(path)
        assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given, said",
    [
        (None, "found NoneType, expected an image"),
        ([], r"found \[\] without an image"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"found an array of shape \(3, 8, 8\) and type uint8, expected \(height, width, 3\)",
        ),
        (np.zeros((8, 8, 3)), "type float64, expected"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"found an array of shape \(1, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), r"found an image of shape \(0, 8, 3\), expected one with pixels"),
        (Image.new("RGB", (0, 8)), "found an image of 0x8, expected one with pixels"),
        ([None], "found NoneType, expected an image"),
        (torch.zeros(1, 3, 8, 8), r"found a tensor of shape \(1, 3, 8, 8\), expected \(3, height, width\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "found a tensor of torch.int64, expected uint8, or floats in 0..1"),
        (torch.full((3, 8, 8), float("nan")), "found a tensor with nan to nan, expected 0 to 1"),
        (torch.zeros(8, 8, 3), r"found a tensor of shape \(8, 8, 3\), expected \(3, height, width\)"),
        (torch.full((3, 8, 8), 200.0), "found a tensor with 200 to 200, expected 0 to 1"),
        ("nowhere.jpg", "nowhere.jpg: no such file or folder"),
        ("empty", "found 'empty' without an image"),
        ("notes.png", "notes.png is no image of a known kind"),
    ],
)
def test_what_is_no_image_is_said_in_one_line(given: Any, said: str, here: Path) -> None:
    Path("empty").mkdir()
    Path("notes.png").write_text("no image")
    with pytest.raises(UserError, match=said) as error:
        udaseg.load(here, device="cpu").predict(given)
    assert "\n" not in str(error.value)


def test_an_overlay_is_of_one_image(here: Path) -> None:
    with pytest.raises(UserError, match="overlay: found 3 images, expected one"):
        udaseg.load(here).overlay("photographs")


def test_labels_of_another_size_have_no_overlay(here: Path) -> None:
    with pytest.raises(UserError, match=r"labels of shape \(2, 2\), expected \(60, 90\)"):
        udaseg.load(here).overlay("photographs/0.jpg", np.zeros((2, 2), np.uint8))


SCORES = {
    **{"miou": 31.5, "iou": {"road": 33.0, "car": 30.0}, "absent": ["bus"], "other": {}},
    **{"pixel_accuracy": 80.0, "images": 2, "pixels": 100},
}


def test_damaged_results_are_told_in_one_line(here: Path) -> None:
    folder = here / "results/streets/sepico/seed3"
    (folder / "metrics.json").parent.mkdir(parents=True)
    for name, read in (
        ("metrics.json", lambda run: run.scores),
        ("history.csv", lambda run: run.curves),
        ("features.npz", lambda run: run.features),
        ("run.json", lambda run: run.made),
    ):
        for content in ("[", "7", "a,b\n1", '{"miou": 77.7, "seed": "x"}'):
            (folder / name).write_text(content)
            with pytest.raises(UserError, match=rf"{name}: damaged"):
                read(udaseg.runs()[0])
    write_json(folder / "metrics.json", SCORES | {"miou": 77.7})
    with pytest.raises(UserError, match=r"found 77\.7, but the mean of its classes' IoU is 31\.5"):
        _ = udaseg.runs()[0].scores


def test_runs_are_tables(here: Path) -> None:
    folder = here / "results/streets/sepico/seed3"
    write_json(folder / "metrics.json", SCORES)
    (folder / "history.csv").write_text("step,source,mixed\n10,1.5,\n20,1.25,2\n")
    with (folder / "features.npz").open("wb") as handle:
        np.savez(handle, feature=np.ones((2, 4), np.float16))
    (here / "results/.trained/streets/sepico/seed3").mkdir(parents=True)
    (run,) = udaseg.runs()
    assert (run.benchmark, run.method, run.seed, run.scores) == ("streets", "sepico", 3, SCORES)
    assert run.curves["step"].tolist() == [10, 20] and np.isnan(run.curves["mixed"][0]) and run.curves["mixed"][1] == 2
    assert run.features["feature"].shape == (2, 4) and run.made == {}
    with pytest.raises(UserError, match="found no such folder, expected one of results"):
        udaseg.runs("nowhere")
    assert len(udaseg.runs(ROOT / "results/reference")) > 20


def test_the_import_is_quick_and_loads_no_torch() -> None:
    code = "import time; a = time.perf_counter(); import udaseg, sys; print(time.perf_counter() - a, 'torch' in sys.modules)"
    seconds, torch_there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert float(seconds) < 0.3 and torch_there == "False"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = udaseg.nothing


def test_the_code_of_the_page_runs(here: Path) -> None:
    write_json(here / "results/streets/sepico/seed0/metrics.json", SCORES)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S):
        exec(block, names)
    assert Path("overlay.png").exists()
