"""`udaseg new-target`: a folder of photographs becomes a benchmark that trains; the rest of params.yaml stays as written."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_model import DAMAGED_EXIF

from tiny_project import ROOT, Project
from udaseg import cli, params
from udaseg.artifacts import read_json

SHIPPED = (ROOT / "params.yaml").read_text()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped params.yaml and three photographs of 480x360, one of them upright by its EXIF orientation alone."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(SHIPPED)
    photographs((480, 360), (480, 360), (480, 360))
    return tmp_path


def photographs(*sizes: tuple[int, int], folder: str = "photos") -> None:
    for number, size in enumerate(sizes):
        path = Path(folder, "a walk", f"{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 120, 150)).save(path)


def new_target(*words: str) -> int:
    return cli.main(["new-target", "photos", "--name", "mine", *words])


def added() -> list[str]:
    """Lines of params.yaml that the command added; it may remove none but a key line that gets an anchor."""
    changes = list(difflib.ndiff(SHIPPED.splitlines(), Path("params.yaml").read_text().splitlines()))
    removed = [line[2:] for line in changes if line.startswith("- ")]
    new = [line[2:] for line in changes if line.startswith("+ ")]
    for line in removed:
        assert line.endswith(":") and any(other.startswith(f"{line} &") for other in new), line
        new = [other for other in new if not other.startswith(f"{line} &")]
    return new


@pytest.mark.parametrize(
    "like", ["streets", "camvid_day2dusk", "streets2camvid", "gta2cityscapes", "synthia2cityscapes"]
)
def test_the_file_keeps_its_words_and_means_two_blocks_more(here: Path, like: str) -> None:
    photographs((1920, 1440))
    assert new_target("--like", like) == 0
    assert len(added()) == 7
    old, p = yaml.safe_load(SHIPPED), params.load()
    assert p.raw["datasets"] == old["datasets"] | {"mine": {"format": "folder", "root": "photos"}}
    mine, model = p.raw["benchmarks"].pop("mine"), p.benchmarks[like]
    assert p.raw["benchmarks"] == old["benchmarks"]
    changed = {key for key in mine if mine[key] != p.raw["benchmarks"][like][key]}
    assert changed <= {"target", "evaluate", "size"} and mine["evaluate"] == []
    size = p.benchmarks["mine"].size.target
    assert size.width % 32 == size.height % 32 == 0 and size.width >= model.train.crop.width


def test_two_targets_of_one_source_share_its_anchor(here: Path) -> None:
    assert new_target() == 0
    assert cli.main(["new-target", "photos", "--name", "ours"]) == 0
    assert Path("params.yaml").read_text().count("&streets\n") == 1
    assert params.load().benchmarks["mine"].train == params.load().benchmarks["ours"].train


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 360), "192x160"), ((360, 480), "192x256"), ((1920, 800), "256x96"), ((1024, 512), "192x96")],
)
def test_the_size_holds_a_crop_and_has_the_shape_of_the_photographs(
    here: Path, size: tuple[int, int], expected: str
) -> None:
    photographs(size, size, size)
    assert new_target() == 0
    assert str(params.load().benchmarks["mine"].size.target) == expected


def test_photographs_count_as_they_are_seen_and_odd_ones_are_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open("photos/a walk/0.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save("photos/a walk/0.jpg", exif=exif)
    assert new_target() == 0
    text = capsys.readouterr().out
    assert "3 photographs, learned at 192x144 beside streets_game/train" in text
    assert "note: 1 of them have another shape" in text


def test_a_folder_name_of_any_kind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "strange: {#} 'é'"
    photographs((480, 360), folder=name)
    assert cli.main(["new-target", name, "--name", "mine"]) == 0
    assert params.load().datasets["mine"].root == name
    assert "'strange: {#} '\"'\"'é'\"'\"''" in capsys.readouterr().out


def test_a_file_that_a_program_wrote_and_one_that_cannot_be_extended(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = yaml.safe_load(SHIPPED)
    Path("params.yaml").write_text(yaml.safe_dump(raw))  # sorted, with anchors of its own
    assert new_target() == 0
    assert params.load().benchmarks["mine"].train == params.load().benchmarks["streets"].train
    text = yaml.safe_dump(raw, default_flow_style=True)
    Path("params.yaml").write_text(text)
    capsys.readouterr()
    assert new_target() == 2
    assert "one indented entry after the other" in capsys.readouterr().err
    assert Path("params.yaml").read_text() == text


def test_what_cannot_be_done_is_told_in_one_line_and_changes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.jpg").write_text("no image")
    Path("damaged").mkdir()
    Image.new("RGB", (480, 360)).save("damaged/a.jpg", exif=DAMAGED_EXIF)
    photographs((64, 48), folder="small")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "params.yaml")
    for words, expected in {
        ("nowhere", "--name", "mine"): "no such folder",
        ("empty", "--name", "mine"): "found no image",
        ("broken", "--name", "mine"): "cannot be used, first broken/a.jpg is no image of a known kind",
        ("damaged", "--name", "mine"): "cannot be used, first damaged/a.jpg has a damaged EXIF block",
        ("small", "--name", "mine"): "the largest photograph has 64x48 pixels, expected at least 192x160",
        ("photos", "--name", "My Town"): "expected small letters",
        **{("photos", "--name", name): "holds something else; choose another name" for name in params.RESERVED},
        ("photos", "--name", "camvid"): "is a data set of params.yaml already",
        ("photos", "--name", "streets"): "is a benchmark of params.yaml already",
        ("photos", "--name", "mine", "--like", "street"): "did you mean 'streets'?",
        ("photos", "--name", "mine", "--params", "other.yaml"): "other.yaml: no such file",
        ("photos", "--name", "mine"): "params.yaml: cannot be written",
    }.items():
        assert cli.main(["new-target", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line, line
    assert Path("params.yaml").read_text() == SHIPPED


def test_the_new_benchmark_trains(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    photographs((96, 72), (96, 72), (96, 72))
    assert new_target() == 0
    assert "udaseg predict results/mine/self_training/seed0/model.safetensors photos --out" in capsys.readouterr().out
    project.raw = params.load().raw
    project.set("benchmarks/mine/init", {"default": "none"})
    assert cli.main(["prepare", "--benchmark", "mine", "--jobs", "1"]) == 0
    sets = read_json(project.folder / "data/mine/data.json", "the record of prepared data")["sets"]
    assert sets["mine-64x64"]["splits"] == {"train": 3}
    assert cli.main(["train", "--benchmark", "mine", "--method", "self_training"]) == 0
    assert Path("results/mine/self_training/seed0/model.safetensors").is_file()
