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
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from udaseg import artifacts
from udaseg.classes import IGNORE
from udaseg.data.delivered import Stat, key_of, stat_of
from udaseg.data.found import Encoding, Item
from udaseg.data.images import Unusable, check_unturned, colours, open_image, open_label
from udaseg.errors import UserError
from udaseg.params import Size

# zlib level of prepared images: level 6 takes three times as long for 20 % less space, and both decode equally fast
IMAGE_LEVEL = 1
LABEL_LEVEL = 6


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
    """A converted sample.

    Attributes:
        entry: of the manifest.
        members: (zip file, member name, bytes).
        colours: index -> colour, of a palette label.
        sources: listing and hash of each delivered file.
    """

    entry: dict[str, Any]
    members: list[tuple[str, str, bytes]] = field(default_factory=list)
    colours: dict[int, str] = field(default_factory=dict)
    sources: list[tuple[Stat, str]] = field(default_factory=list)


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
        sources = [(stat_of(path), artifacts.file_hash(path)) for path in task.item.files]
        part = render(task) if task.item.scene else read(task)
    except Unusable as problem:
        return f"{key_of(task.item)}: {problem}"
    except OSError as error:  # gone since the folder was listed
        return f"{key_of(task.item)}: {error.filename or task.item.image} cannot be read ({error.strerror}); place it again"
    write_part(task.part, part, sources)
    return None


def read(task: Task) -> Part:
    """Raises Unusable: a file is damaged, sizes differ, a label is turned otherwise or holds a value without meaning."""
    item, member = task.item, key_of(task.item)
    assert item.image
    image = open_image(item.image)
    if task.delivered and image.size != task.delivered:
        raise Unusable(f"image is {_x(image.size)}, expected {_x(task.delivered)}")
    size = fit(*image.size, task.size)
    part = Part(_entry(item.name, member, size))
    part.members.append(("images.zip", f"{member}.png", png(_resize(image, size), IMAGE_LEVEL)))
    if item.reference:
        reference = open_image(item.reference)
        reference = _resize(reference, fit(*reference.size, task.size))
        part.entry["reference"] = f"{member}.reference.png"
        part.members.append(("images.zip", f"{member}.reference.png", png(reference, IMAGE_LEVEL)))
    if item.label:
        check_unturned(item.image)
        label = open_label(item.label, task.encoding)
        part.colours = colours(item.label)
        if label.size != image.size:
            raise Unusable(f"image is {_x(image.size)}, but its label {_x(label.size)}")
        _add_label(part, member, label, None if task.keep_label else size)
    return part


def render(task: Task) -> Part:
    """A procedural scene, drawn at the prepared size."""
    from udaseg.data import streets

    item, member, scene = task.item, key_of(task.item), task.item.scene
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


def _x(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# --- parts: finished samples that a later run takes over ------------------------------------------------------------


def write_part(path: Path, part: Part, sources: list[tuple[Stat, str]]) -> None:
    """One file for one sample: a line of JSON, then the members' bytes."""
    head = {
        "sources": sources,
        "entry": part.entry,
        "colours": part.colours,
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
        same = [stat for stat, _ in head["sources"]] == [stat_of(path) for path in files]
        return same and length == len(line) + sum(member[2] for member in head["members"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_part(path: Path) -> Part | None:
    """The part, or None where its bytes are damaged."""
    with path.open("rb") as handle:
        head = json.loads(handle.readline())
        colours = {int(value): colour for value, colour in head["colours"].items()}
        sources = [(stat, sha) for stat, sha in head["sources"]]
        part = Part(head["entry"], list(_members(head["members"], handle.read())), colours, sources)
    return part if len(part.members) == len(head["members"]) else None


def _members(heads: list[tuple[str, str, int, int]], data: bytes) -> Iterator[tuple[str, str, bytes]]:
    start = 0
    for archive, name, length, checksum in heads:
        piece = data[start : start + length]
        if zlib.crc32(piece) == checksum:
            yield archive, name, piece
        start += length
