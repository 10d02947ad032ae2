"""One image and its label, from the file as delivered to the prepared PNG. This runs in worker processes.

Pillow does all of it: at 1914x1052 -> 1280x704 it is within a sixth of torchvision, and a worker need not import torch (two
seconds, and more than a small data set takes).
Images are shrunk with Pillow's bilinear filter, whose support grows with the factor (antialias). Labels take the value under
the centre of the new pixel, so image and label stay aligned: source index = floor((i + 0.5) * old / new).
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from udaseg import artifacts
from udaseg.classes import IGNORE
from udaseg.data.found import Encoding, Item
from udaseg.errors import UserError
from udaseg.params import Size

# zlib level of prepared images: level 6 takes three times as long for 20 % less space, and both decode equally fast
IMAGE_LEVEL = 1
LABEL_LEVEL = 6
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, Image.DecompressionBombError)


class Unusable(Exception):
    """What is wrong with one sample, in a few words; collected, so that one run names all of them."""


@dataclass(frozen=True)
class Task:
    """One sample to convert into one part file.

    Attributes:
        size: requested size of the image; the aspect is kept (`fit`).
        delivered: (width, height) that the delivered image must have, or None.
        keep_label: the label keeps its size (evaluation), or takes that of the prepared image (training).
    """

    item: Item
    encoding: Encoding
    size: Size
    delivered: tuple[int, int] | None
    keep_label: bool
    part: Path


@dataclass
class Part:
    """A converted sample: its manifest entry and its members as (zip file, member name, bytes)."""

    entry: dict[str, Any]
    members: list[tuple[str, str, bytes]] = field(default_factory=list)


def fit(width: int, height: int, size: Size) -> tuple[int, int]:
    """Width and height of an image after the aspect-preserving resize to `size` (the rule of mmsegmentation)."""
    long, short = max(size.width, size.height), min(size.width, size.height)
    factor = min(long / max(width, height), short / min(width, height))
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def keeps_label_size(split: str) -> bool:
    """Evaluation splits are scored at delivered size."""
    return "val" in split or "test" in split


def convert(task: Task) -> str | None:
    """Convert one sample and write its part file, or say what is wrong with it.

    Raises:
        UserError: the part cannot be written (disk full).
    """
    try:
        part = render(task) if task.item.scene else read(task)
    except Unusable as problem:
        return f"{task.item.split}/{task.item.name}: {problem}"
    write_part(task.part, part, fingerprint(task.item.files))
    return None


def read(task: Task) -> Part:
    """Raises Unusable: a file is damaged, sizes differ, or a label value has no meaning."""
    item, member = task.item, f"{task.item.split}/{task.item.name}"
    assert item.image
    image = read_image(item.image)
    if task.delivered and image.size != task.delivered:
        raise Unusable(f"image is {_x(image.size)}, expected {_x(task.delivered)}")
    size = fit(*image.size, task.size)
    part = Part(_entry(item.name, member, size))
    part.members.append(("images.zip", f"{member}.png", png(_resize(image, size), IMAGE_LEVEL)))
    if item.reference:
        reference = read_image(item.reference)
        reference = _resize(reference, fit(*reference.size, task.size))
        part.entry["reference"] = f"{member}.reference.png"
        part.members.append(("images.zip", f"{member}.reference.png", png(reference, IMAGE_LEVEL)))
    if item.label:
        label = read_label(item.label, task.encoding)
        if label.size != image.size:
            raise Unusable(f"image is {_x(image.size)}, but its label {_x(label.size)}")
        _add_label(part, member, label, None if task.keep_label else size)
    return part


def render(task: Task) -> Part:
    """A procedural scene, drawn at the prepared size."""
    from udaseg.data import streets

    item, member, scene = task.item, f"{task.item.split}/{task.item.name}", task.item.scene
    assert scene
    width, height = task.size.width, task.size.height
    try:
        image, label = streets.render(scene.index, seed=scene.seed, width=width, height=height, look=scene.look)
    except ValueError as error:  # a size that is too small, the same for every scene
        raise UserError(f"streets: {error}") from None
    part = Part(_entry(item.name, member, (width, height)))
    part.members.append(("images.zip", f"{member}.png", png(Image.fromarray(image), IMAGE_LEVEL)))
    _add_label(part, member, Image.fromarray(label), None)
    return part


def _entry(name: str, member: str, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "name": name,
        "image": f"{member}.png",
        "label": None,
        "image_size": list(size),
        "label_size": None,
        "reference": None,
        "counts": None,
    }


def _add_label(part: Part, member: str, label: Image.Image, size: tuple[int, int] | None) -> None:
    """Count the full-size label, then store it, at `size` if given."""
    counts = {str(value): n for value, n in enumerate(label.histogram()[:IGNORE]) if n}
    if size:
        label = label.resize(size, Image.Resampling.NEAREST)
    part.entry |= {"label": f"{member}.png", "label_size": list(label.size), "counts": counts}
    part.members.append(("labels.zip", f"{member}.png", png(label, LABEL_LEVEL)))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def png(image: Image.Image, level: int) -> bytes:
    """The image as PNG; equal pixels give equal bytes with one version of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def read_image(path: Path) -> Image.Image:
    """An image of any common kind as 8-bit RGB, turned upright as its EXIF orientation says.

    Raises:
        Unusable: truncated, no image, or more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode[0] in "IF":
                raise Unusable(f"{path.name} has mode {image.mode}, expected 8 bits a channel")
            upright: Image.Image = ImageOps.exif_transpose(image)
            return upright if upright.mode == "RGB" else upright.convert("RGB")
    except UNREADABLE as error:
        raise Unusable(f"{path.name} cannot be read ({_line(error)}); replace it") from None


def read_label(path: Path, encoding: Encoding) -> Image.Image:
    """A delivered label as 8-bit grey image of prepared values.

    Raises:
        Unusable: damaged, several channels, or a value that the encoding does not know.
    """
    try:
        values = _sixteen_bit(path) if encoding.sixteen_bit else _indices(path)
    except UNREADABLE as error:
        raise Unusable(f"label {path.name} cannot be read ({_line(error)}); replace it") from None
    if values.dtype != np.uint8:
        if (high := int(values.max(initial=0))) > IGNORE:
            raise Unusable(f"label {path.name} holds the value {high}, expected {_values(encoding)}")
        values = values.astype(np.uint8)
    label = Image.fromarray(values)
    unknown = [value for value, n in enumerate(label.histogram()) if n and value not in encoding.table]
    if unknown:
        found = ", ".join(map(str, unknown[:5]))
        raise Unusable(f"label {path.name} holds the value {found}, expected {_values(encoding)}")
    return label.point(encoding.lut)


def _indices(path: Path) -> np.ndarray:
    """(H, W) values of a grey or palette file; a palette file holds the index, not the colour."""
    with Image.open(path) as image:
        image.load()
        if image.mode not in ("L", "P", "1", "I", "I;16", "I;16B"):
            raise Unusable(f"label {path.name} has mode {image.mode}, expected one value a pixel (grey or palette)")
        values = np.asarray(image)
    return values.astype(np.uint8) if values.dtype == bool else values


def _sixteen_bit(path: Path) -> np.ndarray:
    """(H, W) uint16 first channel of a 16-bit RGB PNG.

    Pillow reads such a file as 8-bit RGB, keeping each value's high byte ("RGB;16B"); told that the bytes lie the other way
    round, it keeps the low one. torchvision's decoder reads all 16 bits, but is deprecated since 0.29.
    """
    halves = []
    for order in ("RGB;16B", "RGB;16L"):
        with Image.open(path) as image:
            if image.format != "PNG" or image.tile[0].args != "RGB;16B":
                raise Unusable(f"label {path.name} has other than 3 channels of 16 bits; take the file as delivered")
            image.tile = [tile._replace(args=order) for tile in image.tile]
            image.load()
            halves.append(np.asarray(image.getchannel(0), np.uint16))
    return halves[0] << 8 | halves[1]


def _x(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _line(error: BaseException) -> str:
    return (str(error).split("\n")[0] or type(error).__name__)[:120]


def _values(encoding: Encoding) -> str:
    """The known values in words: `0 to 33`, or the list."""
    known = sorted(encoding.table)
    low = [value for value in known if value != IGNORE]
    text = f"0 to {low[-1]}" if low == list(range(len(low))) and low else ", ".join(map(str, low))
    return text + (" or 255" if IGNORE in known else "")


# --- parts: finished samples that a later run takes over ------------------------------------------------------------


def fingerprint(files: Iterable[Path]) -> list[list[int]]:
    """Size and time of each file: a part made from other files is made again."""
    return [[stat.st_size, stat.st_mtime_ns] for stat in (path.stat() for path in files)]


def write_part(path: Path, part: Part, sources: list[list[int]]) -> None:
    """One file for one sample: a line of JSON, then the members' bytes."""
    head = {
        "sources": sources,
        "entry": part.entry,
        "members": [[archive, name, len(data), zlib.crc32(data)] for archive, name, data in part.members],
    }
    # without fsync (slow for many small files): what a power cut leaves behind fails the size or the checksum test
    with artifacts.writing(path, sync=False) as temporary, temporary.open("wb") as handle:
        handle.write(json.dumps(head).encode() + b"\n")
        for _, _, data in part.members:
            handle.write(data)


def is_finished(path: Path, files: Iterable[Path]) -> bool:
    """Whether an earlier run finished this part from these files; reads the first line only."""
    try:
        with path.open("rb") as handle:
            line = handle.readline()
            head = json.loads(line)
            length = os.fstat(handle.fileno()).st_size
        return head["sources"] == fingerprint(files) and length == len(line) + sum(
            member[2] for member in head["members"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_part(path: Path) -> Part | None:
    """The part, or None where its bytes are damaged."""
    with path.open("rb") as handle:
        head = json.loads(handle.readline())
        part = Part(head["entry"], list(_members(head["members"], handle.read())))
    return part if len(part.members) == len(head["members"]) else None


def _members(heads: list[tuple[str, str, int, int]], data: bytes) -> Iterator[tuple[str, str, bytes]]:
    start = 0
    for archive, name, length, checksum in heads:
        piece = data[start : start + length]
        if zlib.crc32(piece) == checksum:
            yield archive, name, piece
        start += length
