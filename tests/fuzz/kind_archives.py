"""zip and tar files with paths, links, devices, bombs and damage."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import mutate
from sandbox import Wrong, watched

from udaseg.data import archives
from udaseg.errors import UserError

NAMES = [
    "images/1.png", "images/2.png", "labels/1.png", "../outside/x", "/tmp/x", "a/../../outside/x", "a/../b", "C:\\x", "a\\..\\..\\x", "\\\\host\\x", "./a", "a//b", "",
    ".", "a/", "a", "a/b", "x" * 300, "e\u0301", "é", "a\nb", "-rf", "$(touch x)", "A", "con", "a:b", "a/" * 200 + "b", "~/x", "a\x1b[31mb", "images", ".hidden", "..",
    "a/./b", " ", "a /b", "*",
]  # fmt: skip
KINDS = ["file"] * 8 + ["dir", "link", "hard", "device", "fifo", "bomb"]
ENDINGS = {".zip": None, ".tar": None, ".tar.gz": gzip, ".tgz": gzip, ".tar.bz2": bz2, ".tar.xz": lzma}


def draw(rng: Random, number: int) -> dict[str, Any]:
    safe = rng.random() < 0.35
    return {
        "ending": rng.choice(list(ENDINGS)),
        "members": [
            {
                "name": f"images/{k}.png" if safe else rng.choice(NAMES),
                "kind": "file" if safe else rng.choice(KINDS),
                "target": rng.choice(["/etc/passwd", "../outside", "images/1.png", "..", "."]),
                "size": rng.choice([0, 1, 10, 1000, 70000]),
                "compress": rng.choice([0, 8, 8, 12, 14]),
            }
            for k in range(rng.choice([1, 2, 3, 6]))
        ],
        "edits": mutate.damages(rng) if rng.random() < 0.45 else [],
        "lie": rng.choice([None, None, None, "size", "crc", "encrypted", "offset", "method"]),
        "there": rng.choice(["", "", "", "file", "folder"]),
        "only": rng.choice(["", "", "", "images"]),
    }


def content(member: dict[str, Any], number: int) -> bytes:
    return bytes((number * 31 + k * 7) % 251 for k in range(member["size"]))


def build(recipe: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    if recipe["ending"] == ".zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for number, member in enumerate(recipe["members"]):
                info = zipfile.ZipInfo("x")
                info.filename = member["name"] + ("/" if member["kind"] == "dir" else "")
                info.create_system, info.compress_type = 3, member["compress"]
                modes = {"link": 0o120777, "device": 0o060666, "fifo": 0o010666, "dir": 0o040755}
                info.external_attr = modes.get(member["kind"], 0o100644) << 16
                data = (
                    content(member, number)
                    if member["kind"] == "file"
                    else member["target"].encode()
                    if member["kind"] == "link"
                    else b""
                )
                if member["kind"] == "bomb":
                    info.compress_type, data = 8, bytes(300 << 20)
                archive.writestr(info, data)
        data = buffer.getvalue()
        return lied(recipe["lie"], data)
    compress: Any = ENDINGS[recipe["ending"]]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as opened:
        for number, member in enumerate(recipe["members"]):
            info_tar = tarfile.TarInfo(member["name"])
            kinds = {
                "dir": tarfile.DIRTYPE,
                "link": tarfile.SYMTYPE,
                "hard": tarfile.LNKTYPE,
                "device": tarfile.BLKTYPE,
                "fifo": tarfile.FIFOTYPE,
            }
            info_tar.type = kinds.get(member["kind"], tarfile.REGTYPE)
            info_tar.linkname = member["target"] if member["kind"] in ("link", "hard") else ""
            data = content(member, number) if member["kind"] == "file" else b""
            info_tar.size = len(data)
            if member["kind"] == "bomb":
                info_tar.size = 1 << 40  # more than there is
            opened.addfile(info_tar, io.BytesIO(data) if member["kind"] == "file" else None)
    data = buffer.getvalue()
    return compress.compress(data) if compress else data


def lied(lie: str | None, data: bytes) -> bytes:
    """A zip whose first central entry says what is not so."""
    place = data.find(b"PK\1\2")
    if lie is None or place < 0:
        return data
    where, what = {
        "size": (24, struct.pack("<I", 2**31)), "crc": (16, b"\1\2\3\4"), "encrypted": (8, b"\1\0"), "offset": (42, struct.pack("<I", 2**31 - 1)),
        "method": (10, struct.pack("<H", 99)),
    }[lie]  # fmt: skip
    return data[: place + where] + what + data[place + where + len(what) :]


def play(recipe: dict[str, Any], home: Path) -> bool:
    try:
        data = build(recipe)
    except (ValueError, OSError, struct.error, UnicodeEncodeError):
        return False
    archive, out = Path(f"a{recipe['ending']}"), Path("out")
    archive.write_bytes(mutate.damaged(data, recipe["edits"]))
    out.mkdir()
    outside = home.parent / "outside"
    outside.mkdir(exist_ok=True)
    if recipe["there"] == "file":
        (out / "images").write_text("in the way")
    elif recipe["there"] == "folder":
        (out / "images/1.png").mkdir(parents=True)
    try:
        with watched():
            archives.unpack(archive, out, only=recipe["only"])
        accepted = True
    except UserError as error:
        if "\n" in str(error):
            raise Wrong(f"several lines: {error}") from None
        accepted = False
    if any(outside.iterdir()):
        raise Wrong("a file outside the folder")
    for path in out.rglob("*"):
        if path.is_symlink():
            raise Wrong(f"a link was made: {path}")
        if path.name.endswith(".part"):
            raise Wrong(f"a half-written file is left: {path}")
    if not accepted:
        plain = all(m["kind"] == "file" and m["name"].startswith("images/") for m in recipe["members"])
        names = [m["name"] for m in recipe["members"]]
        if (
            plain
            and len(set(names)) == len(names)
            and not recipe["edits"]
            and not recipe["there"]
            and (recipe["lie"] is None or recipe["ending"] != ".zip")
        ):
            raise Wrong("a good archive is refused")
        return False
    if recipe["edits"] or recipe["lie"]:
        return True
    last = {
        os.path.normpath(m["name"]): content(m, k)
        for k, m in enumerate(recipe["members"])
        if m["kind"] == "file" and recipe["only"] in m["name"]
    }
    for name, wanted in last.items():
        path = out / name
        if not path.is_file() or path.read_bytes() != wanted:
            raise Wrong(f"accepted, but {name!r} is not what the archive holds")
    return True
