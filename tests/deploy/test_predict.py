"""`udaseg predict`: what the evaluation sees, for images of any kind, and nothing lost."""

from __future__ import annotations

import csv
import errno
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import DAMAGED_EXIF

from udaseg import params
from udaseg.classes import class_space
from udaseg.data.prepare import prepare_dataset
from udaseg.data.prepared import Prepared
from udaseg.deploy import predict as step
from udaseg.deploy.overlay import overlay
from udaseg.errors import UserError
from udaseg.evaluation import confusion, inference
from udaseg.evaluation.loading import batches
from udaseg.models import load_model_file, save_model
from udaseg.models.trained import load
from udaseg.params import Size

MakeModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photo(path: str | Path, width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    """Coloured squares, saved at `path` without loss where the format allows."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    image = Image.fromarray(tiles.repeat(8, 0).repeat(8, 1)[:height, :width])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return image


def predict(model: Path, *images: str, out: str = "out", **options: Any) -> str:
    options = {"size": None, "probabilities": False, "device": "cpu"} | options
    return step.predict(model, [Path(name) for name in images], Path(out), **options)


def refused(model: Path, *images: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        predict(model, *images, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ids(name: str, out: str = "out") -> np.ndarray:
    return np.array(Image.open(f"{out}/ids/{name}.png"))


def written(out: str = "out") -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in Path(out).rglob("*") if path.is_file())


WINDOWS = {"mode": "slide", "window": "32x32", "stride": "16x16", "flip": False, "scales": [1.0], "teacher": True}


@pytest.mark.parametrize("test", [None, WINDOWS])
def test_labels_are_those_of_the_evaluation(test: dict[str, object] | None, make_model: MakeModel) -> None:
    """Whole, and in windows where the model file says so."""
    for n, size in enumerate([(100, 50), (100, 50), (80, 60), (30, 90), (64, 32)]):
        photo(f"raw/images/test/{n}.png", *size, seed=n)
        path = Path(f"raw/labels/test/{n}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(path)
    dataset = params.Dataset("folder", "raw", images="images/{split}", labels="labels/{split}")
    prepared = Prepared(prepare_dataset("mine", dataset, Size(64, 32), Path("prepared"), jobs=1))
    model = make_model()
    if test:
        state, header = load_model_file(model)
        save_model(model, state, header | {"test": json.dumps(test)})
    trained = load(model)
    assert trained.test.mode == ("slide" if test else "whole")
    scored = inference.from_test(trained.student.predict, trained.test)
    predict(model, "raw/images/test")
    expected = []
    with torch.inference_mode():
        for images, label in batches(prepared, prepared.samples("test"), class_space("cityscapes19")):
            logits = scored(trained.student.normalise(images), tuple(label.shape[1:]))
            expected += list(confusion.most_likely(logits).numpy())
    for n, label in enumerate(expected):
        assert len(np.unique(label)) > 1
        np.testing.assert_array_equal(ids(str(n)), label)


def test_what_is_written(make_model: MakeModel) -> None:
    image = photo("photos/a.png")
    line = predict(make_model(classes="camvid11"), "photos", probabilities=True)
    assert re.fullmatch(r"out: 1 images in \d+\.\d s, \d+ % of it outside the network", line)
    assert written() == ["classes.csv", "colours/a.png", "ids/a.png", "overlays/a.jpg", "probabilities/a.npy"]
    label, space = ids("a"), class_space("camvid11")
    assert label.shape == (24, 40) and label.dtype == np.uint8 and label.max() < 11
    palette = np.array(space.colours, np.uint8)
    np.testing.assert_array_equal(np.array(Image.open("out/colours/a.png").convert("RGB")), palette[label])
    shown = np.array(Image.open("out/overlays/a.jpg"), float)
    expected = np.array(overlay(Image.fromarray(np.array(image)), label, space), float)
    assert shown.shape == expected.shape and np.abs(shown - expected).mean() < 8  # JPEG loses a little
    probabilities = np.load("out/probabilities/a.npy")
    assert probabilities.shape == (11, 24, 40) and probabilities.dtype == np.float16
    np.testing.assert_allclose(probabilities.astype(float).sum(0), 1, atol=0.01)
    chosen = np.take_along_axis(probabilities, label[None].astype(int), 0)[0]
    assert (chosen == probabilities.max(0)).all()
    rows = list(csv.DictReader(Path("out/classes.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == list(space.names) and rows[3]["id"] == "3"
    assert tuple(int(rows[3][key]) for key in ("red", "green", "blue")) == space.colours[3]


def test_equal_inputs_give_equal_bytes_and_a_rerun_replaces(make_model: MakeModel) -> None:
    model = make_model()
    for n in range(3):
        photo(f"photos/{n}.png", seed=n)
    predict(model, "photos", probabilities=True)
    first = {name: Path("out", name).read_bytes() for name in written()}
    Path("out/ids/1.png").write_bytes(b"")
    predict(model, "photos", probabilities=True)
    assert first == {name: Path("out", name).read_bytes() for name in written()}


def test_the_size_decides_what_the_network_sees(make_model: MakeModel) -> None:
    model = make_model()
    image = photo("a.png", 100, 80)
    predict(model, "a.png", size=Size(128, 96))
    trained = load(model)
    view = torch.from_numpy(np.array(image.resize((120, 96), Image.Resampling.BILINEAR)).transpose(2, 0, 1))[None]
    with torch.inference_mode():
        logits = trained.student.predict(trained.student.normalise(view), (80, 100))
    np.testing.assert_array_equal(ids("a"), confusion.most_likely(logits)[0].numpy())


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "I"])
def test_every_kind_of_image_is_read_as_rgb(make_model: MakeModel, mode: str) -> None:
    image = photo("rgb/a.png")
    if mode in ("I;16", "I"):
        grey = np.array(image.convert("L"))
        odd, plain = Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey)
        odd = odd if mode == "I;16" else odd.convert("I")
    else:
        odd = image.convert(mode)
        plain = odd.convert("RGB")
    Path("odd").mkdir()
    odd.save("odd/a.tif")
    assert Image.open("odd/a.tif").mode == mode
    plain.save("rgb/a.png")
    model = make_model()
    predict(model, "odd", out="from_odd")
    predict(model, "rgb", out="from_rgb")
    np.testing.assert_array_equal(ids("a", "from_odd"), ids("a", "from_rgb"))


@pytest.mark.parametrize("kind", ["RGB", "I;16"])
def test_a_photograph_taken_sideways_is_turned_upright(make_model: MakeModel, kind: str) -> None:
    image = photo("upright/a.png")
    if kind == "I;16":
        image = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)
        image.save("upright/a.png")
    sideways = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Path("sideways").mkdir()
    sideways.save("sideways/a.png", exif=exif)
    model = make_model()
    predict(model, "sideways", out="turned")
    predict(model, "upright", out="plain")
    assert ids("a", "turned").shape == (24, 40)
    np.testing.assert_array_equal(ids("a", "turned"), ids("a", "plain"))


@pytest.mark.parametrize("head", [{}, {"head": "deeplabv2", "dilations": [6, 12]}])
def test_any_size(make_model: MakeModel, head: dict[str, Any]) -> None:
    sizes = [(1, 1), (3, 200), (513, 7), (64, 32), (65, 33)]
    for n, size in enumerate(sizes):
        photo(f"photos/{n}.png", *size)
    predict(make_model(**head), "photos")
    assert [ids(str(n)).shape[::-1] for n in range(len(sizes))] == sizes


def test_a_few_classes_at_a_time_give_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0))
    logits[:, 4] = logits[:, 1]  # equals: the first wins
    whole = step.most_likely(logits, (23, 31))
    np.testing.assert_array_equal(whole, step.resized(logits, (23, 31)).argmax(1))
    for classes in (1, 2, 3):
        monkeypatch.setattr(step, "LARGEST_MAPS", classes * 2 * 23 * 31)
        assert torch.equal(step.most_likely(logits, (23, 31)), whole)


def test_neighbours_of_equal_sizes_share_a_pass(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, size in enumerate([(40, 24)] * 10 + [(24, 40)] * 2 + [(40, 24)]):
        photo(f"photos/{n:02d}.png", *size)
    passes: list[int] = []
    look = step.Labeller.look
    monkeypatch.setattr(step.Labeller, "look", lambda self, photos: passes.append(len(photos)) or look(self, photos))
    predict(make_model(), "photos")
    assert passes == [8, 2, 2, 1]


def test_folders_are_searched_at_any_depth_and_mirrored(make_model: MakeModel) -> None:
    for name in ("b.png", "a/c.JPG", "a/deep/d.jpeg", ".hidden.png", ".thumbnails/e.png"):
        photo(f"photos/{name}")
    Path("photos/notes.txt").write_text("no image")
    photo("single.v2.png")
    predict(make_model(), "photos", "single.v2.png", "photos/b.png")
    assert [name for name in written() if name.startswith("ids")] == [
        "ids/a/c.png",
        "ids/a/deep/d.png",
        "ids/b.png",
        "ids/single.v2.png",
    ]


def test_results_inside_the_folder_of_images_are_not_read_again(make_model: MakeModel) -> None:
    photo("photos/a.png")
    model = make_model()
    predict(model, "photos", out="photos/labels")
    first = written("photos")
    assert "photos/labels: 1 images" in predict(model, "photos", out="photos/labels")
    assert written("photos") == first


def test_two_images_for_one_result_are_refused_before_anything_is_written(make_model: MakeModel) -> None:
    photo("photos/a.png")
    photo("photos/a.jpg")
    photo("other/a.png")
    model = make_model()
    assert "photos/a.jpg and photos/a.png would both become a" in refused(model, "photos")
    assert "would both become a" in refused(model, "photos/a.png", "other")
    assert not Path("out").exists()


def test_an_image_is_never_replaced_by_a_result(make_model: MakeModel) -> None:
    photo("out/ids/a.png")
    before = Path("out/ids/a.png").read_bytes()
    assert "a result would replace it" in refused(make_model(), "out/ids/a.png")
    assert "the folder of the images" in refused(make_model(), "out")
    assert Path("out/ids/a.png").read_bytes() == before and written() == ["ids/a.png"]


def test_what_is_no_image_is_named_and_the_rest_is_done(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "c.png"):
        photo(f"photos/{name}")
    Path("photos/b.jpg").write_text("no image")
    Path("photos/d.png").write_bytes(Path("photos/a.png").read_bytes()[:60])
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save("photos/e.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save("photos/f.tif")
    message = refused(make_model(), "photos")
    assert (
        "4 of 6 files cannot be labelled, first photos/b.jpg is no image of a known kind; replace it; the other 2 are labelled in out"
        in message
    )
    assert [name for name in written() if name.startswith("ids")] == ["ids/a.png", "ids/c.png"]
    left_out = [record.message for record in caplog.records if record.message.startswith("left out")]
    assert len(left_out) == 4
    assert "floating point" in left_out[2] and "holds 70000 to 70000" in left_out[3]


def test_a_photograph_with_a_damaged_exif_block_does_not_stop_the_others(make_model: MakeModel) -> None:
    photo("photos/a.png")
    Image.new("RGB", (40, 24)).save("photos/b.jpg", exif=DAMAGED_EXIF)
    photo("photos/c.png")
    assert "1 of 3 files cannot be labelled, first photos/b.jpg has a damaged EXIF block" in refused(
        make_model(), "photos"
    )
    assert [name for name in written() if name.startswith("ids")] == ["ids/a.png", "ids/c.png"]


def test_no_such_path_and_no_image(make_model: MakeModel) -> None:
    Path("empty").mkdir()
    model = make_model()
    assert "found no image in empty; expected files ending in .png" in refused(model, "empty")
    assert "nowhere.png: no such file" in refused(model, "nowhere.png")


def test_a_folder_that_cannot_be_written(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png")
    model = make_model()

    def denied(*_: object) -> None:  # root may write anywhere, so the refusal is simulated
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.replace", denied)
    assert "out/classes.csv: cannot be written" in refused(model, "a.png")
    assert written() == []


@pytest.mark.parametrize(("file", "out"), [("out", "out"), ("out", "out/sub/deep"), ("out/ids", "out")])
def test_a_file_in_place_of_a_folder_is_kept(make_model: MakeModel, file: str, out: str) -> None:
    photo("a.png")
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("mine")
    assert f"--out: found the file {file}, expected a folder" in refused(make_model(), "a.png", out=out)
    assert Path(file).read_text() == "mine" and not Path("out/classes.csv").exists()


@pytest.mark.parametrize(
    ("images", "given", "said"),
    [
        (["photos/a.jpg", "photos/a.png/b.jpg"], ["photos"], "a file lies where a folder belongs"),
        (["a.jpg", "photos/a.png/b.jpg"], ["photos", "a.jpg"], "a file lies where a folder belongs"),
        ([f"photos/{'x' * 248}.png"], ["photos"], "choose a shorter name"),
    ],
)
def test_a_result_without_a_place_is_told_in_one_line(
    make_model: MakeModel, images: list[str], given: list[str], said: str
) -> None:
    for name in images:
        photo(name)
    message = refused(make_model(), *given)
    assert "cannot be written" in message and said in message
    assert not [name for name in written() if name.endswith(".part")]


def test_a_full_disk_while_results_are_written(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png")
    model = make_model()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "no space left on the disk" in refused(model, "a.png")
    assert written() == ["classes.csv"]


def test_progress_is_told_in_lines(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(3):
        photo(f"photos/{n}.png")
    monkeypatch.setattr("udaseg.progress.SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO, logger="udaseg")
    predict(make_model(), "photos")
    assert "labelled 2 of 3 images" in caplog.messages
