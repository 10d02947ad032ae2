"""Reading prepared data: right pixels, labels left alone until asked for, safe to pickle and fork."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import zipfile
from pathlib import Path

import delivered
import numpy as np
import pytest
from delivered import SMALL, photos

from udaseg.artifacts import write_json
from udaseg.data import prepare, prepared
from udaseg.data.prepared import Prepared
from udaseg.errors import UserError
from udaseg.params import Dataset, Size, Use


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dataset = photos(tmp_path / "raw", 4)
    return prepare.prepare_dataset("mine", dataset, SMALL, tmp_path / "data" / "bench" / f"mine-{SMALL}", jobs=1)


def test_samples_carry_the_manifest(folder: Path) -> None:
    data = Prepared(folder)
    first = data.samples("train")[0]
    assert (first.name, first.image, first.label, first.reference) == ("000", "train/000.png", "train/000.png", None)
    assert first.image_size == first.label_size == (19, 14)
    assert first.counts and set(first.counts) == {0, 1, 2} and sum(first.counts.values()) < 32 * 24
    assert hash(data.classes) and data.classes == ("road", "sky", "car")
    with pytest.raises(UserError, match=r"found the splits train, expected 'val' among them"):
        data.samples("val")


def test_arrays_are_writable_and_fresh(folder: Path) -> None:
    data = Prepared(folder)
    sample = data.samples("train")[1]
    image, label = data.image(sample), data.label(sample)
    assert image.dtype == label.dtype == np.uint8 and image.shape[:2] == label.shape == (14, 19)
    image[:] = 0
    label[:] = 0
    assert data.image(sample).any() and data.label(sample).any()


def test_target_labels_are_never_opened(folder: Path) -> None:
    """What an adaptation run does with its target works without its labels, and with garbage in their place."""

    def use_as_target() -> list[int]:
        data = Prepared(folder)
        samples = data.samples("train")
        return [int(data.image(sample).sum()) for sample in samples]

    before = use_as_target()
    path = folder / "labels.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"garbage")
    assert use_as_target() == before
    data = Prepared(folder)
    with pytest.raises(UserError, match=r"train/000.png cannot be read \(its members are not those of the manifest\)"):
        data.label(data.samples("train")[0])
    path.unlink()
    assert use_as_target() == before
    data = Prepared(folder)
    with pytest.raises(UserError, match=r"labels.zip: train/000.png cannot be read"):
        data.label(data.samples("train")[0])


def test_pickling_after_use(folder: Path) -> None:
    data = Prepared(folder)
    sample = data.samples("train")[0]
    image = data.image(sample)
    copy = pickle.loads(pickle.dumps(data))
    assert (copy.image(sample) == image).all() and copy.folder == folder


def _read_all(data: Prepared, queue: multiprocessing.Queue[int]) -> None:
    queue.put(sum(int(data.image(sample).sum()) for _ in range(30) for sample in data.samples("train")))


def test_forked_processes_do_not_share_a_position(folder: Path) -> None:
    data = Prepared(folder)
    expected = 30 * sum(int(data.image(sample).sum()) for sample in data.samples("train"))
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_read_all, args=(data, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=30) for _ in workers] == [expected] * 3
    for worker in workers:
        worker.join()


def test_check_finds_what_was_cut_short(folder: Path) -> None:
    data = Prepared(folder)
    data.check()
    os.truncate(folder / "images.zip", 100)
    with pytest.raises(
        UserError,
        match=r"images.zip: found 100 bytes, expected \d+ bytes; run `udaseg prepare --benchmark bench` again",
    ):
        data.check()
    (folder / "images.zip").unlink()
    with pytest.raises(UserError, match=r"found no file"):
        data.check()


def test_the_command_that_is_named_is_whole() -> None:
    assert prepared.command_for(Path("data/streets/streets_game-64x32")) == "udaseg prepare --benchmark streets"
    assert prepared.command_for(Path("data/my-photos-256x128")) == "udaseg prepare my-photos --size 256x128"


def test_find(folder: Path, tmp_path: Path) -> None:
    use = Use("target", "mine", "train", SMALL)
    sets = {folder.name: {"content_sha256": prepared.content_hash(Prepared(folder).manifest)}}
    write_json(folder.parent / "data.json", {"sets": sets})
    assert prepared.find_prepared("bench", use, tmp_path / "data").folder == folder
    other = Use("target", "mine", "train", Size(8, 8))
    with pytest.raises(UserError, match=r"mine-8x8: not prepared yet; run `udaseg prepare --benchmark bench`"):
        prepared.find_prepared("bench", other, tmp_path / "data")


def test_damaged_manifests_are_named(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(UserError, match=r"found format 9, expected 1"):
        Prepared(folder)
    path.write_text(text[:100])
    with pytest.raises(UserError, match=r"damaged"):
        Prepared(folder)


def test_unlabelled_samples_say_so(tmp_path: Path) -> None:
    delivered.photograph(tmp_path / "raw" / "a.png")
    data = Prepared(
        prepare.prepare_dataset("mine", Dataset("folder", str(tmp_path / "raw")), SMALL, tmp_path / "out", jobs=1)
    )
    with pytest.raises(UserError, match=r"has no label; choose a labelled split"):
        data.label(data.samples("train")[0])
