"""Bad input is named in one line with exit code 2, and nothing already computed is lost."""

from __future__ import annotations

import errno
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import delivered
import numpy as np
import pytest
from delivered import (
    FILES,
    SMALL,
    contents,
    photos,
    stand_in,
    with_params,
)

from udaseg import cli
from udaseg.data import convert, prepare
from udaseg.data.prepared import Prepared
from udaseg.errors import UserError
from udaseg.params import Dataset


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must end with exit code 2."""
    capsys.readouterr()
    assert cli.main(["prepare", *words]) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("prepare ")]
    assert len(message) == 1 and message[0].startswith("udaseg prepare: ")
    return message[0]


def truncate(root: Path) -> None:
    path = root / "images" / "train" / "001.png"
    path.write_bytes(path.read_bytes()[:-40])


def unknown_id(root: Path) -> None:
    delivered.grey(root / "labels" / "train" / "001.png", np.full((24, 32), 7, np.uint8))


def other_size(root: Path) -> None:
    delivered.grey(root / "labels" / "train" / "001.png", np.zeros((24, 30), np.uint8))


def no_image(root: Path) -> None:
    (root / "images" / "train" / "001.png").write_text("<html>log in first</html>")


def truncated_label(root: Path) -> None:
    path = root / "labels" / "train" / "001.png"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (truncate, r"train/001: 001.png cannot be read \(.*\); replace it"),
        (truncated_label, r"train/001: label 001.png cannot be read \(.*\); replace it"),
        (no_image, "train/001: 001.png is no image of a known kind; replace it"),
        (unknown_id, "train/001: label 001.png holds the value 7, expected 0 to 2 or 255"),
        (other_size, "train/001: image is 32x24, but its label 30x24"),
        (
            lambda root: (root / "labels" / "train" / "001.png").unlink(),
            "1 of 3 images of train have no label, first .*001.png",
        ),
        (lambda root: shutil.rmtree(root), "no folder .*raw; name the folder"),
        (lambda root: shutil.rmtree(root / "images"), "found no image that fits 'images/{split}'"),
    ],
)
def test_bad_input_is_named_in_one_line(
    spoil: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = photos(tmp_path / "raw", 3)
    monkeypatch.chdir(with_params(tmp_path, mine=dataset))
    spoil(tmp_path / "raw")
    text = fails(capsys, "mine", "--size", "16x12", "--jobs", "1")
    assert re.search(message, text), text
    out = tmp_path / "data" / "mine-16x12"
    assert not any((out / name).exists() for name in FILES)
    if "cannot be prepared" in text:
        assert "1 of 3 images cannot be prepared" in text and 'exclude in params.yaml: ["001"]' in text
        assert len(list(out.glob(".part/*/train/*.part"))) == 2
        monkeypatch.chdir(with_params(tmp_path, mine=Dataset(**{**vars(dataset), "exclude": ("001",)})))
        assert cli.main(["prepare", "mine", "--size", "16x12", "--jobs", "1"]) == 0
        assert [sample.name for sample in Prepared(out).samples("train")] == ["000", "002"]


def test_many_bad_images_are_summed_up(tmp_path: Path) -> None:
    dataset = photos(tmp_path / "raw", 6)
    bad = Dataset(**{**vars(dataset), "classes": ("road", "sky")})
    with pytest.raises(UserError, match=r"6 of 6 images cannot be prepared: .*; and 3 more; mend them"):
        prepare.prepare_dataset("mine", bad, SMALL, tmp_path / "out", jobs=1)


def test_gta5_pairs_of_unequal_size_are_all_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "gta5", tmp_path / "raw")
    for name in ("00001", "00003"):
        delivered.photograph(tmp_path / "raw" / "images" / f"{name}.png", (delivered.W, delivered.H - 2))
    dataset = Dataset("gta5", str(tmp_path / "raw"))
    with pytest.raises(
        UserError, match=r'image is 48x25, but its label 48x27;.*exclude in params.yaml: \["00001", "00003"\]'
    ):
        prepare.prepare_dataset("gta5", dataset, SMALL, tmp_path / "out", jobs=1)
    dataset = Dataset("gta5", str(tmp_path / "raw"), exclude=("00001", "00003"))
    data = Prepared(prepare.prepare_dataset("gta5", dataset, SMALL, tmp_path / "out", jobs=1))
    assert [sample.name for sample in data.samples("train")] == ["00002"]


@pytest.mark.parametrize("when", ["part", "zip"])
def test_a_full_disk_loses_nothing(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, folder = photos(tmp_path / "raw", 3), tmp_path / "out"
    undisturbed = contents(prepare.prepare_dataset("mine", dataset, SMALL, tmp_path / "undisturbed", jobs=1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if when == "zip":
            patch.setattr(zipfile.ZipFile, "writestr", full)
        else:
            write, left = convert.write_part, [2]

            def write_part(path: Path, part: convert.Part, sources: list[list[int]]) -> None:
                if not left[0]:
                    patch.setattr(Path, "open", full)
                left[0] -= 1
                write(path, part, sources)

            patch.setattr(convert, "write_part", write_part)
        with pytest.raises(UserError, match=r"no space left on the disk; free some and run again"):
            prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1)
    parts = [path for path in folder.glob(".part/*/train/*")]
    assert len(parts) == (3 if when == "zip" else 2)
    assert [path.name for path in folder.iterdir()] == [".part"]
    assert contents(prepare.prepare_dataset("mine", dataset, SMALL, folder, jobs=1)) == undisturbed


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = photos(tmp_path / "raw", 1)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"out/.part: cannot be written \(Permission denied\)"):
        prepare.prepare_dataset("mine", dataset, SMALL, tmp_path / "out", jobs=1)
