"""Archives for the test servers: what the official script reads, and nothing that a server would refuse."""

from __future__ import annotations

import copy
import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udaseg.classes import CITYSCAPES
from udaseg.deploy import predict, submit
from udaseg.errors import UserError

MakeModel = Callable[..., Path]
SIZE = (40, 20)
BERLIN = [f"berlin/berlin_{n:06d}_000019_leftImg8bit.png" for n in range(2)]
BONN = ["bonn/bonn_000000_000019_leftImg8bit.png"]
NIGHT = [f"GOPR0364/GOPR0364_frame_{n:06d}_rgb_anon.png" for n in (1, 63)] + [
    "GP010365/GP010365_frame_000001_rgb_anon.png"
]
ORIGINAL = dict(submit.SERVERS)
CITYSCAPES_IDS = {row[1] for row in CITYSCAPES}


@pytest.fixture(autouse=True)
def small_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers' rules for three small images."""
    monkeypatch.chdir(tmp_path)
    city, night = submit.SERVERS["cityscapes"], submit.SERVERS["dark_zurich"]
    monkeypatch.setitem(
        submit.SERVERS, "cityscapes", dataclasses.replace(city, parts={"berlin": 2, "bonn": 1}, count=3, size=SIZE)
    )
    monkeypatch.setitem(submit.SERVERS, "dark_zurich", dataclasses.replace(night, count=3, size=SIZE))


def images(names: list[str], folder: str = "test", size: tuple[int, int] = SIZE) -> None:
    for n, name in enumerate(names):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(n)
        Image.fromarray(
            rng.integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
        ).save(path)


def send(model: Path, server: str, out: str = "out.zip", folder: str = "test") -> str:
    return submit.submit(model, Path(folder), server, Path(out), device="cpu")


def refused(model: Path, server: str, out: str = "out.zip", folder: str = "test") -> str:
    with pytest.raises(UserError) as caught:
        send(model, server, out, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(out: str = "out.zip") -> dict[str, Image.Image]:
    with zipfile.ZipFile(out) as archive:
        return {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def labels(model: Path) -> dict[str, np.ndarray]:
    """What `predict` says of the same images, by stem."""
    predict.predict(model, [Path("test")], Path("predicted"), size=None, probabilities=False, device="cpu")
    return {path.stem: np.array(Image.open(path)) for path in Path("predicted/ids").rglob("*.png")}


def test_the_real_rules() -> None:
    """Counts and sizes of the published test sets (docs/data.md)."""
    assert {name: (server.count, server.size) for name, server in ORIGINAL.items()} == {
        "cityscapes": (1525, (2048, 1024)),
        "dark_zurich": (151, (1920, 1080)),
    }
    assert sum(ORIGINAL["cityscapes"].parts.values()) == 1525


def test_cityscapes_gets_label_ids_that_the_official_script_finds(make_model: MakeModel, tmp_path: Path) -> None:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import trainId2label

    images([*BERLIN, *BONN])
    model = make_model()
    said = send(model, "cityscapes")
    assert said.startswith("out.zip: 3 test images of cityscapes")
    with zipfile.ZipFile("out.zip") as archive:
        archive.extractall("unpacked")
    args = copy.copy(official.args)
    args.predictionPath, args.predictionWalk = str(tmp_path / "unpacked"), None
    expected = labels(model)
    for name in (*BERLIN, *BONN):
        stem = Path(name).stem
        found = official.getPrediction(args, f"{stem.removesuffix('_leftImg8bit')}_gtFine_labelIds.png")
        image = Image.open(found)
        assert image.mode == "L" and image.size == SIZE
        ids = np.vectorize(lambda value: trainId2label[value].id)(expected[stem])
        np.testing.assert_array_equal(np.array(image), ids)
        assert set(np.unique(ids)) <= CITYSCAPES_IDS and len(np.unique(ids)) > 1


def test_dark_zurich_gets_three_folders(make_model: MakeModel) -> None:
    images(NIGHT)
    model = make_model()
    send(model, "dark_zurich")
    found, expected = read(), labels(model)
    folders = ("labelTrainIds", "labelTrainIds_invalid", "confidence")
    assert set(found) == {f"{folder}/{Path(name).name}" for folder in folders for name in NIGHT}
    for name in NIGHT:
        stem = Path(name).stem
        for folder in folders[:2]:
            np.testing.assert_array_equal(np.array(found[f"{folder}/{stem}.png"]), expected[stem])
        confidence = found[f"confidence/{stem}.png"]
        assert confidence.mode == "I;16" and confidence.size == SIZE
        values = np.array(confidence) / 65535
        assert 1 / 19 - 0.01 <= values.min() < values.max() <= 1


def test_equal_labels_give_equal_bytes(make_model: MakeModel) -> None:
    images(NIGHT)
    model = make_model()
    send(model, "dark_zurich", "one.zip")
    send(model, "dark_zurich", "two.zip")
    assert Path("one.zip").read_bytes() == Path("two.zip").read_bytes()


def test_training_cities_beside_the_test_images_do_not_matter(make_model: MakeModel) -> None:
    images([f"test/{name}" for name in (*BERLIN, *BONN)] + ["train/ulm/ulm_000000_000019_leftImg8bit.png"])
    send(make_model(), "cityscapes")
    assert len(read()) == 3


@pytest.mark.parametrize(
    ("server", "names", "said"),
    [
        ("cityscapes", [], "found 0 test images of cityscapes, expected 3 (berlin 0 of 2, bonn 0 of 1)"),
        ("cityscapes", BERLIN, "found 2 test images of cityscapes, expected 3 (bonn 0 of 1)"),
        ("cityscapes", NIGHT, "found 0 test images of cityscapes, expected 3"),
        ("dark_zurich", [*NIGHT, "GOPR0364/GOPR0364_frame_000064_rgb_anon.png"], "found 4 test images of dark_zurich"),
        ("dark_zurich", [*NIGHT[:2], f"again/{Path(NIGHT[0]).name}"], "twice the same test image"),
    ],
)
def test_another_number_of_images(make_model: MakeModel, server: str, names: list[str], said: str) -> None:
    Path("test").mkdir()
    images(names)
    assert said in refused(make_model(), server)
    assert not Path("out.zip").exists()


def test_images_of_another_size_and_files_that_are_none(make_model: MakeModel) -> None:
    model = make_model()
    images(NIGHT)
    images(NIGHT[:1], size=(20, 10))
    assert "found 20x10, expected 40x20; take the images as delivered" in refused(model, "dark_zurich")
    Path("test", NIGHT[1]).write_text("no image")
    images(NIGHT[:1])
    assert "is no image of a known kind; replace it; fetch the file again" in refused(model, "dark_zurich")
    assert "no such folder; expected the test images of dark_zurich" in refused(model, "dark_zurich", folder="nowhere")


def test_an_image_that_breaks_off_leaves_no_archive(make_model: MakeModel) -> None:
    images(NIGHT)
    path = Path("test", NIGHT[1])
    path.write_bytes(path.read_bytes()[:-60])  # its size can still be read
    assert "cannot be read (image file is truncated); replace it; fetch the file again" in refused(
        make_model(), "dark_zurich"
    )
    assert not list(Path().glob("*.zip")) and not list(Path().glob(".*.part"))


def test_a_model_of_other_classes_and_another_ending(make_model: MakeModel) -> None:
    images(NIGHT)
    message = refused(make_model("sixteen", classes="cityscapes16"), "dark_zurich")
    assert "the server wants the 19 of Cityscapes" in message
    assert "expected a file name ending in .zip" in refused(make_model(), "dark_zurich", out="out.tar")


@pytest.mark.parametrize(
    ("out", "said"),
    [("folder.zip", "found the folder folder.zip"), ("notes/out.zip", "found the file notes, expected a folder")],
)
def test_an_archive_without_a_place_is_refused_before_anything_is_labelled(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, out: str, said: str
) -> None:
    images(NIGHT)
    Path("folder.zip").mkdir()
    Path("notes").touch()
    monkeypatch.setattr(submit, "Labeller", None)
    assert said in refused(make_model(), "dark_zurich", out)


def rewritten(change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile("out.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile("changed.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return Path("changed.zip")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("said", "image"),
    [
        ("values [5]", Image.new("L", SIZE, 5)),  # no id that is scored
        ("mode RGB", Image.new("RGB", SIZE)),
        ("found 20x10", Image.new("L", (20, 10), 7)),
        ("holds 2 files, expected 3", None),
    ],
)
def test_a_wrong_archive_does_not_pass_the_check(make_model: MakeModel, said: str, image: Image.Image | None) -> None:
    images([*BERLIN, *BONN])
    send(make_model(), "cityscapes")
    name = Path(BONN[0]).name
    files, wanted = sorted(Path("test").rglob("*.png")), submit.SERVERS["cityscapes"]
    submit.check_archive(rewritten(lambda members: None), files, wanted)
    bad = rewritten(lambda members: members.update({name: png(image)}) if image else members.pop(name))
    with pytest.raises(UserError) as caught:
        submit.check_archive(bad, files, wanted)
    assert said in str(caught.value)
