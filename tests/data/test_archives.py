"""Archives are unpacked once, whole and never outside their folder."""

from __future__ import annotations

import bz2
import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from delivered import (
    find,
    stand_in,
    zipped,
)

from udaseg.data import archives
from udaseg.errors import UserError


@pytest.mark.parametrize("inside", ["", "SYNTHIA_RAND_CITYSCAPES/"])
def test_archives_are_unpacked_once(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = stand_in(monkeypatch, "synthia", tmp_path / "source")
    root = tmp_path / "root"
    root.mkdir()
    zipped(tmp_path / "source", root / "SYNTHIA_RAND_CITYSCAPES.zip", inside)
    assert len(find("synthia", root).splits["train"]) == len(labels["train"])
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    find("synthia", root)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}


def test_unpacking_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "gta5", tmp_path / "source")
    root = tmp_path / "root"
    root.mkdir()
    zipped(tmp_path / "source" / "images", root / "01_images.zip", "images/")
    with tarfile.open(root / "01_labels.tar.gz", "w:gz") as opened:
        opened.add(tmp_path / "source" / "labels", "labels")
    find("gta5", root)
    (root / "images" / "00002.png").unlink()
    (root / "labels" / "00001.png").write_bytes(b"cut")
    assert len(find("gta5", root).splits["train"]) == 3
    for path in (tmp_path / "source").rglob("*.png"):
        copy = root / path.relative_to(tmp_path / "source")
        assert copy.read_bytes() == path.read_bytes()
    assert archives.unpack(root / "01_labels.tar.gz", root) == 0


def link_in_zip(archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("good.png", b"x")
        info = zipfile.ZipInfo("images")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        opened.writestr(info, "/etc")


def in_zip(name: str) -> object:
    def make(archive: Path) -> None:
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("good.png", b"x")
            opened.writestr(zipfile.ZipInfo(name), b"x")

    return make


def in_tar(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> object:
    def make(archive: Path) -> None:
        with tarfile.open(archive, "w") as opened:
            good = tarfile.TarInfo("good.png")
            good.size = 1
            opened.addfile(good, io.BytesIO(b"x"))
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            opened.addfile(member, io.BytesIO(b""))

    return make


@pytest.mark.parametrize(
    "name, make",
    [
        ("a.zip", in_zip("../outside.png")),
        ("a.zip", in_zip("/tmp/outside.png")),
        ("a.zip", in_zip("c:\\outside.png")),
        ("a.zip", in_zip("images\\..\\..\\outside.png")),
        ("a.zip", link_in_zip),
        ("a.tar", in_tar("../outside.png")),
        ("a.tar", in_tar("/tmp/outside.png")),
        ("a.tar", in_tar("images", tarfile.SYMTYPE, "/etc")),
        ("a.tar", in_tar("images", tarfile.LNKTYPE, "good.png")),
        ("a.tar", in_tar("disk", tarfile.BLKTYPE)),
        ("a.tar", in_tar("pipe", tarfile.FIFOTYPE)),
    ],
)
def test_unsafe_archives_are_refused_whole(name: str, make: object, tmp_path: Path) -> None:
    make(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"refused.*get a clean copy"):
        archives.unpack(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.parent.glob("outside.png"))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_damaged_archives_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no archive at all")
    with pytest.raises(UserError, match=r"damaged or incomplete archive .* download it again"):
        archives.unpack(tmp_path / name, tmp_path / "out")


def second_block_damaged(archive: Path) -> None:
    with tarfile.open(archive, "w") as opened:
        member = tarfile.TarInfo("images/1.png")
        member.size = 2_000_000
        opened.addfile(member, io.BytesIO(random.Random(0).randbytes(member.size)))
    packed = bytearray(bz2.compress(archive.read_bytes()))
    packed[len(packed) * 3 // 4] ^= 255
    archive.write_bytes(packed)


def file_called_like_a_folder(archive: Path) -> None:
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as opened:
        opened.addfile(tarfile.TarInfo("images/1.png"))
        opened.addfile(tarfile.TarInfo("x" * 120 + "/"))


def entry_before_the_file(archive: Path) -> None:
    in_zip("images/1.png")(archive)  # type: ignore[operator]
    data = bytearray(archive.read_bytes())
    end = data.rindex(b"PK\5\6")
    data[end + 16 : end + 20] = (2**31).to_bytes(4, "little")  # where the directory is said to begin
    archive.write_bytes(data)


@pytest.mark.parametrize(
    "name, make",
    [
        ("a.tar.bz2", second_block_damaged),
        ("a.tar", file_called_like_a_folder),
        ("a.zip", entry_before_the_file),
        ("b.zip", in_zip("")),
    ],
)
def test_what_only_a_fuzzer_makes_is_named_too(name: str, make: object, tmp_path: Path) -> None:
    make(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(
        UserError, match=r"damaged or incomplete archive .* download it again|leads outside .* get a clean copy"
    ):
        archives.unpack(tmp_path / name, tmp_path / "out")


def test_rar_is_left_to_the_user(tmp_path: Path) -> None:
    (tmp_path / "SYNTHIA_RAND_CITYSCAPES.rar").write_bytes(b"Rar!")
    with pytest.raises(UserError, match=r"unpack it first: 7z x .*SYNTHIA_RAND_CITYSCAPES.rar"):
        find("synthia", tmp_path)
