"""Delivered data is taken by content: what changes is noticed, what cannot be kept exactly is refused, what is left out is said."""

from __future__ import annotations

import io
import json
import os
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import delivered
import numpy as np
import pytest
from delivered import SMALL, contents, find, photos, stand_in, two_benchmarks, zipped
from PIL import Image

from udaseg import params
from udaseg.data import archives, convert, images, prepare, walk, watch
from udaseg.data.folder import encoding
from udaseg.data.prepared import Prepared, find_prepared
from udaseg.errors import UserError
from udaseg.params import Dataset

FIVE = encoding("datasets.x", {}, ("a", "b", "c", "d", "e"))
IDS = np.arange(12, dtype=np.uint8).reshape(3, 4) % 5


def made(dataset: Dataset, folder: Path) -> Prepared:
    return Prepared(prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1))


def label(path: Path, values: np.ndarray, **keys: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **keys)  # type: ignore[arg-type]
    return path


# --- one walker -----------------------------------------------------------------------------------------------------


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "root"
    delivered.photograph(root / "day1" / "a.png")
    delivered.photograph(tmp_path / "elsewhere" / "deep" / "b.png")
    (root / "day2").symlink_to("../elsewhere")
    (root / "day2" / "back").symlink_to(root)
    (root / "day1" / "gone.png").symlink_to("nowhere")
    found = walk.listing(root)
    assert list(found.files) == ["day1/a.png", "day2/deep/b.png"]
    assert found.left_out() == "1 broken link, 1 link to a folder above"
    assert [item.name for item in find("folder", root).splits["train"]] == ["a", "b"]


def test_a_whole_split_may_be_a_link(tmp_path: Path) -> None:
    dataset = photos(tmp_path / "real", 2)
    root = tmp_path / "root"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
        (root / kind / "train").symlink_to(tmp_path / "real" / kind / "train")
    same = Dataset("folder", str(root), images=dataset.images, labels=dataset.labels, classes=dataset.classes)
    assert contents(made(same, tmp_path / "one").folder) == contents(made(dataset, tmp_path / "two").folder)


@pytest.mark.parametrize(
    "folder", [".ipynb_checkpoints", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"]
)
def test_what_systems_leave_in_folders_is_skipped(folder: str, tmp_path: Path) -> None:
    dataset = photos(tmp_path, 2)
    for name in ("000-checkpoint.png", "001.png"):
        delivered.photograph(tmp_path / "images" / "train" / folder / name)
    delivered.photograph(tmp_path / "images" / "train" / "._000.png")
    found = find("folder", tmp_path, **{key: getattr(dataset, key) for key in ("images", "labels", "classes")})
    assert len(found.splits["train"]) == 2 and "2 hidden or of a system" in found.notes[-1]


def test_names_are_paired_in_one_unicode_form(tmp_path: Path) -> None:
    for form, kind in (("NFC", "images"), ("NFD", "labels")):
        delivered.grey(tmp_path / kind / unicodedata.normalize(form, "Köln 1.png"), IDS)
    found = find("folder", tmp_path, images="images", labels=unicodedata.normalize("NFD", "labels/**"))
    assert found.labelled("train")
    out = find("folder", tmp_path, images="images", exclude=(unicodedata.normalize("NFD", "Köln 1"),))
    assert not out.splits.get("train")
    delivered.grey(tmp_path / "images" / unicodedata.normalize("NFD", "Köln 1.png"), IDS)
    with pytest.raises(UserError, match="two files whose names look the same; rename one"):
        find("folder", tmp_path)


def test_what_is_left_out_is_counted_in_one_line(tmp_path: Path) -> None:
    dataset = photos(tmp_path, 2)
    delivered.grey(tmp_path / "labels" / "train" / "alone.png", IDS)
    for name in ("IMG_1.HEIC", "IMG_2.heic", "notes.txt", "README"):
        (tmp_path / name).write_bytes(b"x")
    keys = {key: getattr(dataset, key) for key in ("images", "labels", "classes")}
    found = find("folder", tmp_path, **keys, exclude=("001", "1.png", "00l"))
    assert found.notes == [
        f"1 labels belong to no image, first {tmp_path}/labels/train/alone.png",
        f"left out below {tmp_path}: 2 .heic, 1 without ending, 1 .txt",
        "datasets.folder.exclude names no image: 00l, 1.png; names are without folder and ending",
    ]


def test_a_folder_that_cannot_be_walked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.png", os.O_CREAT))
    with pytest.raises(UserError, match=r"found the file name '\\udcff.png', which is no UTF-8; rename it"):
        walk.listing(tmp_path)


# --- one opener for photographs -------------------------------------------------------------------------------------


def test_damaged_exif_stops_one_image_and_not_the_others(tmp_path: Path) -> None:
    bad = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x1a\0\x02\0\0\0\x04abc\0\0\0\0\0"
    for k in range(3):
        delivered.photograph(tmp_path / f"{k}.jpg")
    Image.open(tmp_path / "1.jpg").save(tmp_path / "1.jpg", exif=bad)
    with pytest.raises(UserError, match=r"1 of 3 images cannot be prepared: train/1: 1.jpg has a damaged EXIF block"):
        made(Dataset("folder", str(tmp_path)), tmp_path.parent / "out")
    with pytest.raises(images.Unusable, match="damaged EXIF block"):
        images.size_of(tmp_path / "1.jpg")


@pytest.mark.parametrize("turn", [3, 6])
def test_a_turned_photograph_with_a_label_is_refused(turn: int, tmp_path: Path) -> None:
    dataset = photos(tmp_path, 1, (32, 32))
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.open(tmp_path / "images/train/000.png").save(tmp_path / "images/train/000.png", exif=exif)
    with pytest.raises(UserError, match=rf"000.png is turned by its EXIF orientation {turn}, its label is not; save"):
        made(dataset, tmp_path / "out")


def test_several_pictures_or_too_many_pixels_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        for opener in (images.open_image, images.size_of):
            with pytest.raises(images.Unusable, match=f"{name} holds several pictures, expected one"):
                opener(tmp_path / name)
    monkeypatch.setattr(images, "LARGEST", 50)
    with pytest.raises(images.Unusable, match=r"has 8x8 pixels, expected at most 0 million; reduce it"):
        images.open_image(delivered_photo(tmp_path / "b.png"))


def delivered_photo(path: Path) -> Path:
    delivered.photograph(path, (8, 8))
    return path


def test_programs_are_never_started_for_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(images.Unusable, match=r"a\.png is no image of a known kind"):
        images.open_image(tmp_path / "a.png")


# --- one opener for labels: exact values only -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.gif"])
def test_files_that_keep_values_are_read(name: str, tmp_path: Path) -> None:
    path = label(tmp_path / name, IDS)
    assert (np.asarray(images.open_label(path, FIVE)) == IDS).all()
    deep = label(tmp_path / "deep.png", IDS.astype(np.uint16))
    assert (np.asarray(images.open_label(deep, FIVE)) == IDS).all()


def grey_png(path: Path, depth: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" + bytes([0x12] * (4 * depth // 8 or 1)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def packed_palette(path: Path) -> None:
    """A grey label after a program that shrinks files: index 1 now stands for the value 3."""
    image = Image.fromarray(IDS % 2).convert("P")
    image.putpalette([0, 0, 0, 3, 3, 3])
    image.save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(IDS).save(path, exif=exif)


def white_is_zero(path: Path) -> None:
    Image.fromarray(IDS).save(path, tiffinfo={262: 0})


@pytest.mark.parametrize(
    "name, write, said",
    [
        ("a.jpg", lambda p: Image.fromarray(IDS).save(p, quality=95), "a.jpg is a JPEG file, whose compression alters values"),
        ("a.png", lambda p: Image.fromarray(IDS).save(p, "JPEG"), "a.png is a JPEG file"),
        ("a.tif", lambda p: Image.fromarray(IDS).save(p, compression="jpeg"), "lossy compression"),
        ("a.webp", lambda p: Image.fromarray(IDS).convert("RGB").save(p, lossless=True), "is a WEBP file"),
        ("a.tif", lambda p: Image.fromarray(IDS.astype(np.int32) - 1).save(p), "holds the value -1, expected 0 to 4 or 255"),
        ("a.tif", lambda p: Image.fromarray(IDS.astype(np.float32) + 0.5).save(p), r"floating point numbers, as 0\.5"),
        ("a.png", lambda p: Image.fromarray(IDS.astype(np.uint16) * 257).save(p), "holds the value 1028"),
        ("a.png", lambda p: Image.fromarray(IDS > 2).save(p), "one bit a pixel, so that 1 may mean 1 or 255"),
        ("a.png", lambda p: grey_png(p, 2), r"grey of fewer than 8 bits \(L;2\)"),
        ("a.png", lambda p: grey_png(p, 4), r"grey of fewer than 8 bits \(L;4\)"),
        ("a.png", packed_palette, "a palette of greys in which index 1 is grey 3"),
        ("a.png", turned, "is turned by its EXIF orientation 3"),
        ("a.tif", white_is_zero, "counts from white"),
        ("a.gif", lambda p: Image.fromarray(IDS).save(p, save_all=True, append_images=[Image.fromarray(IDS + 1)]), "several"),
        ("a.png", lambda p: Image.fromarray(np.stack([IDS] * 2, -1), "LA").save(p), "mode LA"),
    ],
)  # fmt: skip
def test_labels_that_are_not_exact_are_refused(
    name: str, write: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(images.Unusable, match=said):
        images.open_label(tmp_path / name, FIVE)


def test_palettes_of_one_data_set_must_agree(tmp_path: Path) -> None:
    dataset = photos(tmp_path / "raw", 2)
    for k, colours in enumerate(([9, 0, 0, 0, 9, 0, 0, 0, 9], [0, 9, 0, 9, 0, 0, 0, 0, 9])):
        path = tmp_path / "raw/labels/train" / f"{k:03d}.png"
        image = Image.open(path).point(lambda v: v % 3).convert("P")
        image.putpalette(colours)
        image.save(path)
    with pytest.raises(
        UserError, match=r"001.png: palette index 0 has colour 000900, but 090000 in the label of train/000"
    ):
        made(dataset, tmp_path / "out")


# --- identity by content --------------------------------------------------------------------------------------------


def pixels(data: Prepared, name: str) -> dict[int, int] | None:
    return next(sample.counts for sample in data.samples("train") if sample.name == name)


def keep_times(path: Path, write: Callable[[], None]) -> None:
    """Other content, with size and time of modification as they were."""
    about = path.stat()
    write()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_a_corrected_label_of_equal_size_and_time_is_noticed(tmp_path: Path) -> None:
    dataset = photos(tmp_path / "raw", 2)
    for k in range(2):
        path = tmp_path / "raw/labels/train" / f"{k:03d}.bmp"
        Image.open(path.with_suffix(".png")).save(path)
        path.with_suffix(".png").unlink()
    folder = tmp_path / "out"
    before = made(dataset, folder)
    assert watch.difference(folder, "mine", dataset) == ""
    keep_times(path, lambda: label(path, np.zeros((24, 32), np.uint8)))
    assert watch.difference(folder, "mine", dataset)
    after = made(dataset, folder)
    assert pixels(after, "000") == pixels(before, "000") and pixels(after, "001") == {0: 24 * 32}
    assert watch.difference(folder, "mine", dataset) == ""


def test_a_touched_file_costs_a_hash_and_no_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, folder = photos(tmp_path / "raw", 2), tmp_path / "out"
    made(dataset, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(convert, "convert", delivered.stop)
    os.utime(tmp_path / "raw/images/train/000.png")
    assert watch.difference(folder, "mine", dataset) == ""
    made(dataset, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_one_changed_file_converts_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, folder = photos(tmp_path / "raw", 3), tmp_path / "out"
    made(dataset, folder)
    delivered.photograph(tmp_path / "raw/images/train/001.png", (32, 24), seed=5)
    done, real = [], convert.convert
    monkeypatch.setattr(convert, "convert", lambda task: (done.append(task.item.name), real(task))[1])
    made(dataset, folder)
    assert done == ["001"]
    assert contents(folder) == contents(made(dataset, tmp_path / "fresh").folder)


def test_another_root_with_equal_content_changes_nothing(tmp_path: Path) -> None:
    dataset, folder = photos(tmp_path / "raw", 2), tmp_path / "out"
    made(dataset, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (tmp_path / "raw").rename(tmp_path / "moved")
    moved = Dataset(**{**vars(dataset), "root": str(tmp_path / "moved")})
    made(moved, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (tmp_path / "moved/images/train/000.png").unlink()
    (tmp_path / "moved/labels/train/000.png").unlink()
    assert len(made(moved, folder).samples("train")) == 1


def test_a_changed_archive_is_unpacked_and_prepared_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "gta5", tmp_path / "source")
    root, folder = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    zipped(tmp_path / "source/images", root / "01_images.zip", "images/")
    archive = zipped(tmp_path / "source/labels", root / "01_labels.zip", "labels/")
    dataset = Dataset("gta5", str(root))
    made(dataset, folder)
    assert watch.difference(folder, "mine", dataset) == ""
    path = tmp_path / "source/labels/00001.png"
    Image.open(path).point(lambda value: 7).save(path)
    keep_times(archive, lambda: zipped(tmp_path / "source/labels", archive, "labels/"))
    assert watch.difference(folder, "mine", dataset).startswith("archives")
    assert pixels(made(dataset, folder), "00001") == {0: delivered.W * delivered.H}
    assert watch.difference(folder, "mine", dataset) == ""


def test_data_whose_files_are_gone_stay(tmp_path: Path) -> None:
    dataset, folder = photos(tmp_path / "raw", 2), tmp_path / "out"
    made(dataset, folder)
    (tmp_path / "raw").rename(tmp_path / "away")
    prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1, splits=["train"])
    assert not (tmp_path / "raw").exists()


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    keep_times(path, lambda: path.write_bytes(bytes(data)) and None)


def exchange(path: Path) -> None:
    """Two members under each other's names: every checksum of the zip is right."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        data = [archive.read(name) for name in names]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, each in zip(names, [data[1], data[0], *data[2:]], strict=True):
            archive.writestr(zipfile.ZipInfo(name), each)
    path.write_bytes(buffer.getvalue())


def test_exchanged_members_are_noticed_where_they_are_read(tmp_path: Path) -> None:
    data = made(photos(tmp_path / "raw", 2), tmp_path / "out")
    exchange(data.folder / "images.zip")
    again = Prepared(data.folder)
    with pytest.raises(UserError, match="its members are not those of the manifest"):
        again.image(again.samples("train")[0])


@pytest.mark.parametrize("damage", [flip, exchange])
def test_the_advised_command_mends_a_damaged_zip(damage: Callable[[Path], None], tmp_path: Path) -> None:
    dataset = photos(tmp_path / "raw", 3)
    data = made(dataset, tmp_path / "out")
    undisturbed = contents(data.folder)
    damage(data.folder / "images.zip")
    made(dataset, tmp_path / "out")
    assert contents(data.folder) == undisturbed


@pytest.mark.parametrize("lost", ["notes", "record"])
def test_a_forged_manifest_is_refused_and_made_anew(lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, root = two_benchmarks(tmp_path, monkeypatch), tmp_path / "data"
    prepare.prepare_benchmark(p, "one", jobs=1, root=root)
    use = params.uses(p.benchmarks["one"])[2]
    path = root / "one" / use.prepared / "manifest.json"
    undisturbed = path.read_text()
    manifest = json.loads(undisturbed)
    manifest["splits"]["val"] = manifest["splits"]["val"] * 2
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json: changed since it was written.*udaseg prepare --benchmark one"):
        find_prepared("one", use, root)
    (root / "one" / (f".delivered/{use.prepared}.json" if lost == "notes" else "data.json")).unlink()
    prepare.prepare_benchmark(p, "one", jobs=1, root=root)
    assert path.read_text() == undisturbed and find_prepared("one", use, root)


# --- counts, before the first step of training ----------------------------------------------------------------------


def with_block(p: params.Params, **changes: object) -> params.Params:
    raw = json.loads(json.dumps(p.raw))
    for key, value in changes.items():
        raw["benchmarks"]["one"][key] = value
    return params.parse(raw)


def test_the_account_and_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, root = two_benchmarks(tmp_path, monkeypatch), tmp_path / "data"
    account = prepare.prepare_benchmark(p, "one", jobs=1, root=root)
    assert account.splitlines()[:2] == [
        "source streets_game/train: 3 images of 64x32, 3 of 3 classes",
        "target cityscapes/train: 2 images of 24x14, 3 of 3 classes",
    ]
    p = with_block(p, classes=["road", "fence"])
    with pytest.raises(
        UserError, match="streets_game/train: no pixel of fence in the source, so they cannot be learned"
    ):
        prepare.prepare_benchmark(p, "one", jobs=1, root=root)
    train = p.raw["benchmarks"]["one"]["train"]
    p = with_block(p, classes=["road", "sky"], train={**train, "crop": "64x32"})
    with pytest.raises(
        UserError, match=r"cityscapes/train: found images of at most 24x14, expected some that hold the crop 64x32"
    ):
        prepare.prepare_benchmark(p, "one", jobs=1, root=root)


def test_a_test_split_of_void_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, root = two_benchmarks(tmp_path, monkeypatch), tmp_path / "data"
    for path in (tmp_path / "raw/gtFine/val").rglob("*.png"):
        label(path, np.zeros((delivered.H, delivered.W), np.uint8))
    with pytest.raises(
        UserError, match=r"cityscapes/val: found 1 images without one pixel of the classes road, building, sky"
    ):
        prepare.prepare_benchmark(p, "one", jobs=1, root=root)


def test_a_zip_bomb_is_refused_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**6))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10**5}))
    with pytest.raises(UserError, match=r"holds 0\.0 GB, .* has 0\.0 GB free"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
