"""From delivered files to zips and manifest: exact, repeatable, and going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, TextIO

import delivered
import numpy as np
import pytest
from delivered import (
    FILES,
    KINDS,
    SMALL,
    contents,
    photos,
    stand_in,
    stop,
    with_params,
)
from PIL import Image

from udaseg import artifacts, cli
from udaseg.classes import NAMES, class_space
from udaseg.data import camvid, convert, parallel, prepare, prepared
from udaseg.data.prepared import Prepared
from udaseg.errors import UserError
from udaseg.params import Dataset, Size

MIRROR = Path(os.environ.get("UDASEG_MIRROR") or Path(__file__).parents[3] / "shared")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_base_o12() -> None:
    assert convert.fit(1914, 1052, Size(1280, 720)) == (1280, 704)
    assert convert.fit(1914, 1052, Size(2560, 1440)) == (2560, 1407)
    assert convert.fit(1914, 1046, Size(1280, 720)) == (1280, 700)
    assert convert.fit(1920, 1080, Size(960, 540)) == (960, 540)
    assert convert.fit(9000, 1, Size(960, 540)) == (960, 1)


@pytest.mark.parametrize("old, new", [(27, 14), (48, 24), (1052, 704), (31, 31), (10, 23)])
def test_labels_take_the_value_under_the_centre_of_the_new_pixel(old: int, new: int) -> None:
    column = np.arange(old) % 251
    label = Image.fromarray(np.repeat(column[:, None], 3, 1).astype(np.uint8))
    resized = np.asarray(label.resize((3, new), Image.Resampling.NEAREST))[:, 0]
    assert (resized == column[((2 * np.arange(new) + 1) * old) // (2 * new)]).all()


def test_shrinking_averages_instead_of_skipping(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = convert._resize(Image.fromarray(np.stack([board] * 3, -1)), (16, 16))
    assert np.abs(np.asarray(small).astype(int) - 127).max() <= 2


# --- what comes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_converts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = stand_in(monkeypatch, kind, tmp_path / "raw")
    dataset = Dataset(format=kind, root=str(tmp_path / "raw"))  # type: ignore[arg-type]
    data = Prepared(prepare.prepare_dataset(kind, dataset, SMALL, tmp_path / "out", jobs=1))
    data.check()
    assert data.classes == NAMES and data.splits == sorted(labels)
    for split in data.splits:
        assert [sample.name for sample in data.samples(split)] == sorted(labels[split])
        for sample in data.samples(split):
            delivered_label = labels[split][sample.name]
            assert data.image(sample).shape == (sample.image_size[1], sample.image_size[0], 3) == (14, 24, 3)
            assert sample.image == f"{split}/{sample.name}.png"
            if delivered_label is None:
                assert (sample.label, sample.label_size, sample.counts) == (None, None, None)
                continue
            expected = delivered_label
            if "val" not in split and "test" not in split:
                rows, columns = (((2 * np.arange(n) + 1) * m) // (2 * n) for n, m in ((14, 27), (24, 48)))
                expected = expected[rows][:, columns]
            assert (data.label(sample) == expected).all()
            assert set(np.unique(data.label(sample))) <= {*range(19), 255}
            assert sample.label_size == (expected.shape[1], expected.shape[0])
            assert sample.counts == {
                v: int((delivered_label == v).sum()) for v in np.unique(delivered_label) if v != 255
            }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


def test_references_are_stored_beside_their_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "dark_zurich", tmp_path / "raw")
    dataset = Dataset("dark_zurich", str(tmp_path / "raw"))
    data = Prepared(prepare.prepare_dataset("dz", dataset, SMALL, tmp_path / "out", jobs=1, splits=["train"]))
    known, unknown = data.samples("train")
    assert known.reference == f"train/{known.name}.reference.png" and data.reference(known).shape == (14, 24, 3)
    assert (data.reference(known) != data.image(known)).any()
    assert unknown.reference is None
    with pytest.raises(UserError, match=r"has no day reference"):
        data.reference(unknown)


def test_the_manifest_is_plain_and_relative(tmp_path: Path) -> None:
    dataset = photos(tmp_path / "raw", 3)
    folder = prepare.prepare_dataset("mine", dataset, Size(16, 12), tmp_path / "mine-16x12", jobs=1)
    text = (folder / "manifest.json").read_text()
    manifest = json.loads(text)
    assert str(tmp_path) not in text
    assert list(manifest) == ["format", "dataset", "size", "recipe", "classes", "origin", "files", "splits"]
    assert (manifest["format"], manifest["dataset"], manifest["size"]) == (1, "mine", "16x12")
    assert manifest["classes"] == ["road", "sky", "car"] and manifest["origin"]["kind"] == "user"
    for name in FILES[:2]:
        path = folder / name
        about = manifest["files"][name]
        assert about.pop("directory") == prepared.directory_hash(path)
        assert about == {"sha256": artifacts.file_hash(path), "bytes": path.stat().st_size}
        with zipfile.ZipFile(path) as archive:
            assert all(i.compress_type == zipfile.ZIP_STORED and i.date_time[0] == 1980 for i in archive.infolist())
    assert text.count("\n") < 20  # one line for each sample


def test_a_folder_in_camvid_classes_trains_in_camvid_classes(tmp_path: Path) -> None:
    dataset = photos(tmp_path / "raw", 1)
    dataset = Dataset("folder", dataset.root, images=dataset.images, labels=dataset.labels, classes="camvid11")
    data = Prepared(prepare.prepare_dataset("mine", dataset, SMALL, tmp_path / "out", jobs=1))
    assert list(class_space("camvid11").lut(data.classes)[:11]) == list(range(11))


# --- equal input, equal bytes ---------------------------------------------------------------------------------------


def test_the_same_bytes_with_one_and_two_jobs_and_again(tmp_path: Path) -> None:
    dataset = photos(tmp_path / "raw", parallel.SMALL + 4)
    folders = [
        prepare.prepare_dataset("mine", dataset, Size(16, 12), tmp_path / str(k), jobs=jobs)
        for k, jobs in enumerate((1, 2, 1))
    ]
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])
    before = times(folders[0])
    prepare.prepare_dataset("mine", dataset, Size(16, 12), folders[0], jobs=2)
    assert times(folders[0]) == before


def run(folder: Path, *words: str, **keys: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "udaseg", "prepare", *words]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, **keys)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_to_the_same_bytes(how: signal.Signals, tmp_path: Path) -> None:
    dataset = photos(tmp_path / "raw", 48, (400, 300))
    undisturbed = prepare.prepare_dataset("mine", dataset, Size(160, 120), tmp_path / "undisturbed", jobs=1)
    with_params(tmp_path, mine=dataset)
    folder = tmp_path / "data" / "mine-160x120"

    for _ in range(10):  # on a busy machine the run may be over before this process looks
        shutil.rmtree(folder, ignore_errors=True)
        process = run(tmp_path, "mine", "--size", "160x120", "--jobs", "2")
        while len(list(folder.glob(".part/*/train/*.part"))) < 4 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(how)
        _, text = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == (-how if how == signal.SIGKILL else 130), text
    assert [path.name for path in folder.iterdir() if path.name != ".part"] == []
    finished = len([path for path in folder.glob(".part/*/train/*.part") if not path.name.startswith(".")])
    assert 4 <= finished < 48

    process = run(tmp_path, "mine", "--size", "160x120", "--jobs", "2", stdout=subprocess.DEVNULL)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "from an earlier run" in text
    assert contents(folder) == contents(undisturbed)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_a_damaged_part_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, folder = photos(tmp_path / "raw", 3), tmp_path / "out"
    undisturbed = contents(prepare.prepare_dataset("mine", dataset, SMALL, tmp_path / "undisturbed", jobs=1))
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_pack", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1)
    short, wrong, _ = sorted(folder.glob(".part/*/train/*.part"))
    short.write_bytes(short.read_bytes()[:-1])
    wrong.write_bytes(wrong.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"damaged by an earlier crash, deleted; run the same command again"):
        prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1)
    assert not (folder / "images.zip").exists()
    (folder / ".images.zip.1.part").write_text("left by a process that was killed while packing")
    assert contents(prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1)) == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_parts_of_replaced_images_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, folder = photos(tmp_path / "raw", 2), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_pack", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1)
    delivered.photograph(tmp_path / "raw" / "images" / "train" / "000.png", seed=9, size=(32, 24))
    fresh = prepare.prepare_dataset("mine", dataset, SMALL, tmp_path / "fresh", jobs=1)
    assert contents(prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1)) == contents(fresh)


def test_a_changed_folder_of_images_is_prepared_again(tmp_path: Path) -> None:
    dataset, folder = photos(tmp_path / "raw", 2), tmp_path / "out"
    before = contents(prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1, splits=["train"]))
    photos(tmp_path / "raw", 3)
    after = contents(prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1, splits=["train"]))
    assert before != after and len(Prepared(folder).samples("train")) == 3
    shutil.rmtree(tmp_path / "raw")  # what is prepared can be used without its raw files
    prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1, splits=["train"])
    assert contents(folder) == after


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    dataset = photos(tmp_path / "raw", 1)
    with (
        artifacts.run_lock(tmp_path / "out" / ".part"),
        pytest.raises(UserError, match=r"in use by process"),
    ):
        prepare.prepare_dataset("mine", dataset, SMALL, tmp_path / "out", jobs=1)


# --- for the eye ----------------------------------------------------------------------------------------------------


def test_contact_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(with_params(tmp_path, mine=photos(tmp_path / "raw", 5)))
    assert cli.main(["prepare", "mine", "--size", "32x24", "--jobs", "1", "--show", "3"]) == 0
    lines = capsys.readouterr().out.split()
    assert lines[-2:] == ["data/mine-32x24", "data/mine-32x24/contact.png"]
    with Image.open(lines[-1]) as sheet:
        assert sheet.width == 768 and sheet.height > 3 * 288
    assert prepare.contact_sheet(Path("data/mine-32x24"), 99).is_file()


class Stream:
    def __init__(self, terminal: bool) -> None:
        self.text, self.terminal = "", terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_sparse_in_a_log(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    stream: TextIO = Stream(terminal)  # type: ignore[assignment]
    monkeypatch.setattr(parallel.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", stream)
    progress = parallel.Progress("prepare x", 1000, 100)
    for _ in range(900):
        clock[0] += 0.01
        progress.step()
    progress.finish()
    text: str = stream.text  # type: ignore[attr-defined]
    assert "prepare x: 300/1000 images, 100/s, 7 s left" in text
    assert "1000/1000 images (100 from an earlier run) in 9 s" in text
    assert 17 <= text.count("\r") <= 20 if terminal else "\r" not in text
    assert text.count("\n") == (1 if terminal else 5)


# --- CamVid ---------------------------------------------------------------------------------------------------------


def test_camvid_as_published_is_checked_by_its_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = delivered.camvid_origin(tmp_path / "raw")
    monkeypatch.setattr(camvid, "COUNTS", {split: len(names) for split, names in delivered.CAMVID_NAMES.items()})
    dataset = Dataset("camvid", str(tmp_path / "raw"))
    splits = ["day_train", "dusk_train", "train", "test"]
    with pytest.raises(UserError, match=r"hold .* pixels of value .*, expected .*: not the published labels"):
        prepare.prepare_dataset("camvid", dataset, Size(48, 36), tmp_path / "out", jobs=1, splits=splits)
    assert not (tmp_path / "out" / "images.zip").exists()
    monkeypatch.setattr(camvid, "TOTALS", delivered.totals(labels))
    data = Prepared(prepare.prepare_dataset("camvid", dataset, Size(48, 36), tmp_path / "out", jobs=1, splits=splits))
    night, dusk = (
        next(s for s in data.samples(split) if s.name == "0001TP_006690") for split in ("train", "dusk_train")
    )
    assert (data.label(night) == data.label(dusk)).all()
    test = data.samples("test")[0]
    assert test.label_size == (480, 360) and (data.label(test) == labels["test"][test.name]).all()

    delivered.photograph(tmp_path / "raw" / "train" / "0006R0_f00930.png", (470, 360))
    with pytest.raises(UserError, match=r"image is 470x360, expected 480x360"):
        prepare.prepare_dataset("camvid", dataset, Size(48, 36), tmp_path / "other", jobs=1)


@pytest.mark.skipif(not (MIRROR / "data" / "camvid").is_dir(), reason="no mirror with CamVid (UDASEG_MIRROR)")
def test_the_real_camvid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 701 images. The sums of pixels of docs/data.md are compared by the conversion itself, and here once more."""
    monkeypatch.setenv("UDASEG_MIRROR", str(MIRROR))
    dataset = Dataset("camvid", str(tmp_path / "nothing"))
    official = ["test", "train", "val"]
    data = Prepared(prepare.prepare_dataset("camvid", dataset, Size(64, 48), tmp_path, jobs=2, splits=official))
    assert {split: len(data.samples(split)) for split in data.splits} == {"test": 233, "train": 367, "val": 101}
    assert data.manifest["origin"]["kind"] == "mirror (JPEG)"
    pixels = {"test": 40262400, "train": 63417600, "val": 17452800}
    for split in official:
        sums = np.zeros(256, np.int64)
        for sample in data.samples(split):
            for value, n in (sample.counts or {}).items():
                sums[value] += n
        sums[255] = pixels[split] - sums.sum()
        assert pixels[split] == 480 * 360 * len(data.samples(split))
        assert {value: sums[value] for value in camvid.TOTALS[split]} == camvid.TOTALS[split]
        assert {value for value in range(255) if sums[value]} == {0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13}
    assert data.samples("val")[0].label_size == (480, 360) and data.samples("train")[0].label_size == (64, 48)
