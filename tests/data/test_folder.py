"""Any folder of images as a data set."""

from __future__ import annotations

from pathlib import Path

import delivered
import numpy as np
import pytest
from delivered import (
    H,
    W,
    find,
)
from PIL import Image

from udaseg.data import formats, images
from udaseg.errors import UserError
from udaseg.params import Dataset


def test_a_bare_folder_is_one_unlabelled_split(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", ".hidden.png"):
        delivered.photograph(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    found = find("folder", tmp_path)
    assert [(i.name, i.label) for i in found.splits["train"]] == [("b", None), ("c", None)]
    assert not found.labelled("train")


def test_folder_patterns_pair_images_with_labels(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("x", "y"):
            delivered.photograph(tmp_path / "leftImg8bit" / split / "city" / f"{name}_leftImg8bit.png")
            delivered.grey(tmp_path / "gt" / split / "city" / f"{name}_gt_ids.png", np.zeros((H, W), np.uint8))
    found = find(
        "folder",
        tmp_path,
        images="leftImg8bit/{split}/*/*_leftImg8bit.png",
        labels="gt/{split}/**/*_gt_ids.png",
        classes=("road", "sky"),
        ids={0: "sky", 9: "void"},
    )
    assert {split: [i.name for i in items] for split, items in found.splits.items()} == {
        "train": ["x", "y"],
        "val": ["x", "y"],
    }
    assert all(i.label and i.label.name == f"{i.name}_gt_ids.png" for i in found.splits["val"])
    assert found.encoding.table == {0: 1, 9: 255, 255: 255} and found.classes == ("road", "sky")


def test_one_split_of_a_folder_may_be_unlabelled(tmp_path: Path) -> None:
    for split in ("day", "night"):
        delivered.photograph(tmp_path / "images" / split / "x.png")
    delivered.grey(tmp_path / "labels" / "day" / "x.png", np.zeros((H, W), np.uint8))
    found = find("folder", tmp_path, images="images/{split}", labels="labels/{split}")
    assert found.labelled("day") and not found.labelled("night")


def test_folder_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder"):
        find("folder", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"found no image below"):
        find("folder", tmp_path)
    delivered.photograph(tmp_path / "a" / "x.png")
    delivered.photograph(tmp_path / "b" / "x.jpg")
    with pytest.raises(UserError, match=r"a/x.png and b/x.jpg would both be sample 'x'"):
        find("folder", tmp_path)
    with pytest.raises(UserError, match=r"found no image that fits 'photos'"):
        find("folder", tmp_path, images="photos")
    with pytest.raises(UserError, match=r"found no label that fits 'lables'"):
        find("folder", tmp_path, images="a", labels="lables")
    with pytest.raises(UserError, match=r"`labels` needs `images`"):
        find("folder", tmp_path, labels="b")
    with pytest.raises(UserError, match=r"so `images` must name it too"):
        find("folder", tmp_path, images="a", labels="{split}")
    with pytest.raises(UserError, match=r"expected a path below root"):
        find("folder", tmp_path, images="../elsewhere/*.png")
    with pytest.raises(UserError, match=r"unknown class 'raod'; did you mean 'road'"):
        find("folder", tmp_path, images="a", ids={0: "raod"})
    delivered.photograph(tmp_path / "a" / "y.png")
    with pytest.raises(UserError, match=r"1 of 2 images of train have no label, first .*a/y.png"):
        find("folder", tmp_path, images="a", labels="b")
    assert len(find("folder", tmp_path, images="a", labels="b", exclude=("y",)).splits["train"]) == 1
    with pytest.raises(UserError, match=r"root is missing"):
        formats.find_delivered("mine", Dataset(format="folder"))


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turn a quarter to the right
    image.save(tmp_path / "a.jpg", exif=exif)
    assert images.open_image(tmp_path / "a.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_images_of_any_kind_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (4, 3)).save(path)
    assert images.open_image(path).mode == "RGB"


def test_deep_images(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 40000, np.uint16)).save(tmp_path / "a.png")
    assert (np.asarray(images.open_image(tmp_path / "a.png")) == 40000 >> 8).all()
    for values, what in (
        (np.full((3, 4), 200, np.int32), "its white is not known"),
        (np.ones((3, 4), np.float32), "floating point"),
    ):
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(images.Unusable, match=what):
            images.open_image(tmp_path / "a.tif")
