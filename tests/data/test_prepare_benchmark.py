"""Everything that a benchmark uses, taken over from other benchmarks where it is there already."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from pathlib import Path

import delivered
import pytest
from delivered import (
    FILES,
    SMALL,
    contents,
    stand_in,
    stop,
    two_benchmarks,
)

from udaseg import params
from udaseg.data import convert, prepare
from udaseg.data.prepared import Prepared
from udaseg.errors import UserError
from udaseg.params import Dataset, Size


def test_a_benchmark_is_prepared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = two_benchmarks(tmp_path, monkeypatch)
    account = prepare.prepare_benchmark(p, "streets", jobs=1, root=tmp_path / "data").splitlines()
    assert account[0].startswith("source streets_game/train: 3 images of 64x32, ")
    home = tmp_path / "data" / "streets"
    about = json.loads((home / "data.json").read_text())
    assert about["benchmark"] == "streets"
    assert {name: one["splits"] for name, one in about["sets"].items()} == {
        "streets_game-64x32": {"train": 3},
        "streets_photo-64x32": {"test": 2, "train": 2},
    }
    for name, one in about["sets"].items():
        manifest = json.loads((home / name / "manifest.json").read_text())
        assert one["content_sha256"] == prepare.content_hash(manifest)
        assert prepare.content_hash(manifest | {"recipe": "other", "origin": {}}) == one["content_sha256"]
        assert prepare.content_hash(manifest | {"files": {}}) != one["content_sha256"]
    data = Prepared(home / "streets_photo-64x32")
    scene = data.samples("test")[0]
    assert scene.image_size == scene.label_size == (64, 32)
    assert (data.image(scene) != data.image(data.samples("train")[0])).any()
    assert data.manifest["origin"] == {"kind": "rendered"}

    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    prepare.prepare_benchmark(p, "streets", jobs=1, root=tmp_path / "data")
    assert before == {path: path.stat().st_mtime_ns for path in home.rglob("*")}


def test_what_another_benchmark_prepared_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, root = two_benchmarks(tmp_path, monkeypatch), tmp_path / "data"
    prepare.prepare_benchmark(p, "one", jobs=1, root=root)
    monkeypatch.setattr(convert, "convert", stop)  # nothing is converted again
    prepare.prepare_benchmark(p, "two", jobs=1, root=root)
    for name in FILES:
        files = [root / benchmark / "cityscapes-24x14" / name for benchmark in ("one", "two")]
        assert files[0].samefile(files[1])
    records = [json.loads((root / b / "data.json").read_text())["sets"] for b in ("one", "two")]
    assert records[0] == records[1]


def test_part_of_what_another_benchmark_prepared_equals_a_fresh_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = two_benchmarks(tmp_path, monkeypatch)
    prepare.prepare_benchmark(p, "four", jobs=1, root=tmp_path / "fresh")
    prepare.prepare_benchmark(p, "one", jobs=1, root=tmp_path / "data")
    monkeypatch.setattr(convert, "convert", stop)
    prepare.prepare_benchmark(p, "four", jobs=1, root=tmp_path / "data")
    fresh, taken = (tmp_path / root / "four" / "cityscapes-24x14" for root in ("fresh", "data"))
    assert Prepared(taken).splits == ["val"]
    assert contents(fresh) == contents(taken)
    assert not (taken / "images.zip").samefile(tmp_path / "data" / "one" / "cityscapes-24x14" / "images.zip")


def test_a_damaged_copy_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, root = two_benchmarks(tmp_path, monkeypatch), tmp_path / "data"
    prepare.prepare_benchmark(p, "one", jobs=1, root=root)
    path = root / "one" / "streets_game-64x32" / "images.zip"
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(bytes(data))
    prepare.prepare_benchmark(p, "two", jobs=1, root=root)
    data[200] ^= 255
    assert (root / "two" / "streets_game-64x32" / "images.zip").read_bytes() == bytes(data)


def test_benchmark_mistakes_are_all_said_before_converting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = two_benchmarks(tmp_path, monkeypatch)
    raw = copy.deepcopy(p.raw)
    raw["benchmarks"]["one"] |= {"source": "cityscapes/test", "evaluate": ["streets_photo/val", "gta5/train"]}
    raw["datasets"]["gta5"]["root"] = str(tmp_path / "nowhere")
    with pytest.raises(UserError) as error:
        prepare.prepare_benchmark(params.parse(raw), "one", jobs=1, root=tmp_path / "data")
    text = str(error.value)
    assert "streets_photo: found the splits train, test, expected 'val' among them" in text
    assert "gta5: found no folder" in text
    assert "cityscapes/test has no labels" in text
    assert not (tmp_path / "data").exists()


def test_an_absent_licensed_split_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "cityscapes", tmp_path / "raw")
    shutil.rmtree(tmp_path / "raw" / "leftImg8bit" / "train")
    with pytest.raises(
        UserError, match=r"found no train images at .*; expected 2 train images; get them from https://www.city"
    ):
        prepare.prepare_dataset(
            "cityscapes",
            Dataset("cityscapes", str(tmp_path / "raw")),
            SMALL,
            tmp_path / "out",
            jobs=1,
            splits=["train"],
        )


def test_the_target_may_be_unlabelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = two_benchmarks(tmp_path, monkeypatch)
    delivered.photograph(tmp_path / "mine" / "a.jpg")
    raw = copy.deepcopy(p.raw)
    raw["datasets"]["mine"] = {"format": "folder", "root": str(tmp_path / "mine")}
    raw["benchmarks"]["one"] |= {"target": "mine/train"}
    prepare.prepare_benchmark(params.parse(raw), "one", jobs=1, root=tmp_path / "data")
    data = Prepared(tmp_path / "data" / "one" / "mine-24x14")
    assert not data.labelled("train") and zipfile.ZipFile(data.folder / "labels.zip").namelist() == []


def test_a_scene_too_small_to_render_is_one_line(tmp_path: Path) -> None:
    dataset = Dataset("streets", look="game", count={"train": 1})
    with pytest.raises(UserError, match=r"size 16x16 is too small"):
        prepare.prepare_dataset("s", dataset, Size(16, 16), tmp_path / "out", jobs=1)
