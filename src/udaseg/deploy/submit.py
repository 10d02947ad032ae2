"""Archives for the test servers of Cityscapes and Dark Zurich, whose labels nobody has.

Names, number and sizes are checked before the network runs, and the finished archive is read again and checked before it
takes its place. What each server wants, and how far that could be verified: docs/use.md.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import re
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from udaseg.artifacts import check_folder, writing
from udaseg.classes import CITYSCAPES, NAMES
from udaseg.data.convert import LABEL_LEVEL, png
from udaseg.data.formats import CITIES, EXPECTED
from udaseg.data.images import Unusable, size_of
from udaseg.data.walk import listing
from udaseg.deploy.predict import Answer, Labeller, counted
from udaseg.devices import choose
from udaseg.errors import UserError
from udaseg.models.trained import load

LABEL_IDS = np.array([number for _, number, _ in CITYSCAPES], np.uint8)  # trainId -> Cityscapes id
TRAIN_IDS = np.arange(len(NAMES), dtype=np.uint8)


@dataclass(frozen=True)
class Server:
    """What a server wants.

    Attributes:
        images: file name of a test image; its group `part` is the city or the sequence.
        parts: test images of each city; empty where only their number is known.
        count: test images.
        size: (width, height) of image and label.
        ids: what to write for each class.
        labels: folders of the archive for label images, with a final slash; "" is its top.
        confidence: folder for the probability of the chosen class, or None.
        place: the folder of the test images in the data set as delivered.
    """

    images: str
    parts: dict[str, int]
    count: int
    size: tuple[int, int]
    ids: np.ndarray
    labels: tuple[str, ...]
    confidence: str | None
    place: str


SERVERS = {
    "cityscapes": Server(
        images=r"(?P<part>[a-z]+)_\d{6}_\d{6}_leftImg8bit\.png",
        parts=CITIES["test"],
        count=EXPECTED["cityscapes"]["test"],
        size=(2048, 1024),
        ids=LABEL_IDS,
        labels=("",),
        confidence=None,
        place="leftImg8bit/test",
    ),
    "dark_zurich": Server(
        images=r"(?P<part>[A-Z0-9]+)_frame_\d{6}_rgb_anon\.png",
        parts={},
        count=EXPECTED["dark_zurich"]["test"],
        size=(1920, 1080),
        ids=TRAIN_IDS,
        labels=("labelTrainIds/", "labelTrainIds_invalid/"),
        confidence="confidence/",
        place="rgb_anon/test/night",
    ),
}


def submit(model: Path, images: Path, server: str, out: Path, *, device: str) -> str:
    """Label the test images of a server and pack them.

    Args:
        model: a model.safetensors of this program that knows the 19 classes of Cityscapes.
        images: folder with the test images, at any depth.
        server: a key of SERVERS.
        out: the archive, ending in .zip.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        One line: what is in the archive.

    Raises:
        UserError: an archive that cannot be written or would be refused, another class list, test images missing, foreign or
            of another size.
    """
    wanted = SERVERS[server]
    if out.suffix != ".zip":
        raise UserError(f"--out: found {out}, expected a file name ending in .zip")
    if os.path.isdir(out):
        raise UserError(f"--out: found the folder {out}, expected the name of an archive; choose another")
    check_folder(out.parent)
    trained = load(model, choose(device, "--device"))
    if trained.classes.names != NAMES:
        raise UserError(
            f"{model}: found the classes {', '.join(trained.classes.names)}; the server wants the 19 of Cityscapes: take a "
            f"model of a benchmark with `classes: cityscapes19`"
        )
    files = find_test_images(images, server, wanted)
    labeller = Labeller(trained, trained.size, probabilities=wanted.confidence is not None)
    began = time.perf_counter()
    with writing(out) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:  # stored: PNGs do not shrink further
            for members in counted(labeller.run(files, functools.partial(pack, wanted=wanted)), len(files)):
                for name, data in members:
                    archive.writestr(zipfile.ZipInfo(name), data)  # dated 1980: equal labels give equal bytes
        if labeller.unusable:
            raise UserError(f"{labeller.unusable[0]}: cannot be labelled; fetch the file again; nothing was written")
        check_archive(temporary, files, wanted)
    return (
        f"{out}: {len(files)} test images of {server} in {time.perf_counter() - began:.0f} s; checked: names, "
        f"number, sizes, modes and ids"
    )


def find_test_images(folder: Path, server: str, wanted: Server) -> list[Path]:
    """The test images, sorted by name.

    Raises:
        UserError: too few, too many, twice the same, or one of another size.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the test images of {server} ({wanted.place})")
    pattern = re.compile(wanted.images)
    found = {
        path: match["part"] for path in listing(folder).images().values() if (match := pattern.fullmatch(path.name))
    }
    if wanted.parts:  # training cities may lie beside them
        found = {path: part for path, part in found.items() if part in wanted.parts}
    files = sorted(found, key=lambda path: path.name)
    here = Counter(found.values())
    wrong = [f"{part} {here[part]} of {n}" for part, n in wanted.parts.items() if here[part] != n]
    if len(files) != wanted.count or wrong:
        raise UserError(
            f"{folder}: found {len(files)} test images of {server}, expected {wanted.count}"
            f"{' (' + ', '.join(wrong) + ')' if wrong else ''}; name the folder {wanted.place}, and complete it"
        )
    for one, other in itertools.pairwise(files):
        if one.name == other.name:
            raise UserError(f"{one} and {other}: twice the same test image; remove one")
    for path in files:
        try:
            size = size_of(path)
        except Unusable as problem:
            raise UserError(f"{path.parent}{os.sep}{problem}; fetch the file again") from None
        if size != wanted.size:
            raise UserError(f"{path}: found {_x(size)}, expected {_x(wanted.size)}; take the images as delivered")
    return files


def pack(answer: Answer, *, wanted: Server) -> list[tuple[str, bytes]]:
    """The members of the archive for one image: all named like the image."""
    name = f"{answer.photo.path.stem}.png"
    label = png(Image.fromarray(wanted.ids[answer.label]), LABEL_LEVEL)
    members = [(f"{folder}{name}", label) for folder in wanted.labels]
    if wanted.confidence is not None:
        assert answer.probabilities is not None
        # 16 bits as the server wants them, in 255 steps: a sixth of the bytes (0.3 instead of 2 MB an image)
        steps = (answer.probabilities.amax(0) * 255).round().numpy().astype(np.uint16)
        members.append((f"{wanted.confidence}{name}", png(Image.fromarray(steps * 257), LABEL_LEVEL)))
    return members


def check_archive(path: Path, files: Iterable[Path], wanted: Server) -> None:
    """Read the finished archive as the server will.

    Raises:
        UserError: a name is missing or foreign, or an image has another size, mode or id.
    """
    modes = {folder: "L" for folder in wanted.labels} | ({wanted.confidence: "I;16"} if wanted.confidence else {})
    expected = {f"{folder}{file.stem}.png": mode for folder, mode in modes.items() for file in files}
    allowed = set(wanted.ids.tolist())
    with zipfile.ZipFile(path) as archive:
        if sorted(archive.namelist()) != sorted(expected):
            raise UserError(f"the archive holds {len(archive.namelist())} files, expected {len(expected)}; run again")
        for name, mode in expected.items():
            with Image.open(io.BytesIO(archive.read(name))) as image:
                image.load()
                values = set(np.unique(np.asarray(image)).tolist()) if mode == "L" else set()
                if (image.size, image.mode) != (wanted.size, mode) or values - allowed:
                    raise UserError(
                        f"the archive's {name}: found {_x(image.size)}, mode {image.mode}, values {sorted(values)}; expected "
                        f"{_x(wanted.size)}, {mode}, values of {sorted(allowed)}; run again"
                    )


def _x(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
