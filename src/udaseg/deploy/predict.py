"""Label photographs with a trained model: class ids, colours, an overlay to look at, and probabilities on request.

The network looks at each image as the evaluation did: reduced or enlarged to the size of training, aspect kept, whole or in
windows as the model file says. Its logits are brought to the image's own size. Files are decoded and encoded in threads while
the network works.
shapes: B images of one pass, K classes, h w what the network looks at, H W the image's own size
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from udaseg.artifacts import check_folder, csv_text, write_text, writing
from udaseg.classes import ClassSpace
from udaseg.data.convert import fit
from udaseg.data.images import Unusable, open_image
from udaseg.data.walk import IMAGES, listing
from udaseg.deploy.overlay import overlay
from udaseg.devices import choose
from udaseg.errors import UserError
from udaseg.evaluation import inference
from udaseg.evaluation.loading import ahead, decoders, grouped
from udaseg.losses.segmentation import resized
from udaseg.models.trained import Trained, load
from udaseg.params import Size
from udaseg.progress import Clock, Progress

log = logging.getLogger("udaseg")
T = TypeVar("T")
ENCODERS = 2
LARGEST_MAPS = 2**25  # logits at full size at once: 128 MiB; all 19 maps of a 12-megapixel photograph take 1 GB
ENDINGS = {"ids": ".png", "colours": ".png", "overlays": ".jpg", "probabilities": ".npy"}
QUALITY = 90  # of the JPEG of an overlay


def predict(model: Path, images: list[Path], out: Path, *, size: Size | None, probabilities: bool, device: str) -> str:
    """Label images and write `<kind>/<path below its folder>` into `out`, with classes.csv as the key to the ids.

    Args:
        model: a model.safetensors of this program.
        images: files, or folders that are searched at any depth.
        out: for `ids` (8-bit PNG), `colours` (palette PNG), `overlays` (JPEG) and `probabilities` (float16 .npy, K H W).
        size: the network looks at images fitted into it; None: as in training.
        probabilities: write them too.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        One line: how many, where, how long.

    Raises:
        UserError: no image, two images for one result, a model that cannot be used, a folder that cannot be written;
            after all others are done: a file that is no image.
    """
    for kind in ENDINGS:
        check_folder(out / kind)
    names = find_images(images, out)
    trained = load(model, choose(device, "--device"))
    write_text(out / "classes.csv", legend(trained.classes))
    labeller = Labeller(trained, size or trained.size, probabilities=probabilities)
    save = functools.partial(write_answer, out=out, names=names, classes=trained.classes)
    began = time.perf_counter()
    done = sum(1 for _ in counted(labeller.run(names, save), len(names)))
    seconds = time.perf_counter() - began
    if bad := labeller.unusable:
        raise UserError(
            f"{len(bad)} of {len(names)} files cannot be labelled, first {bad[0]}; the other {done} are labelled in {out}; "
            f"replace or remove the file and run again"
        )
    outside = 100 * max(0.0, 1 - labeller.clock.seconds() / seconds)
    return f"{out}: {done} images in {seconds:.1f} s, {outside:.0f} % of it outside the network"


def counted(items: Iterable[T], total: int) -> Iterator[T]:
    """The items, and from time to time a line on how many have passed."""
    progress = Progress("labelled", total)
    for done, item in enumerate(items, 1):
        yield item
        progress.reached(done)


# --- which files ----------------------------------------------------------------------------------------------------


def find_images(images: Iterable[Path], out: Path) -> dict[Path, PurePath]:
    """The images and the names of their results: the path below the folder that was given, without its ending.

    Raises:
        UserError: no such path, no image, two images for one result, a result that would replace an image.
    """
    names: dict[Path, PurePath] = {}
    taken: dict[PurePath, Path] = {}
    for given in images:
        for path, name in below(given, out) if given.is_dir() else [(given, PurePath(given.name))]:
            name = name.with_suffix("")
            other = taken.setdefault(name, path)
            if other.resolve() != path.resolve():
                raise UserError(
                    f"{other} and {path} would both become {name}; rename one, or give them different folders (--out)"
                )
            names.setdefault(other, name)  # a file that is named twice is labelled once
    if not names:
        raise UserError(
            f"found no image in {', '.join(map(str, images))}; expected files ending in {', '.join(IMAGES)}"
        )
    results = {result(out, kind, name).resolve() for name in taken for kind in ENDINGS}
    for path in names:
        if not path.is_file():
            raise UserError(f"{path}: no such file; name images, or folders that hold some")
        if path.resolve() in results:
            raise UserError(f"{path}: a result would replace it; name another folder for the results (--out)")
    return names


def below(folder: Path, out: Path) -> list[tuple[Path, PurePath]]:
    """Images at any depth and their paths below `folder`, sorted; never what an earlier run wrote into `out`."""
    if folder.resolve() == out.resolve():
        raise UserError(f"--out: found {out}, the folder of the images; name another, as {folder / 'labels'}")
    lying = listing(folder, without=out)
    if left := lying.left_out():
        log.info("left out below %s: %s", folder, left)
    return [(path, PurePath(name)) for name, path in lying.images().items()]


def result(out: Path, kind: str, name: PurePath) -> Path:
    return out / kind / f"{name}{ENDINGS[kind]}"


# --- decode, look, choose -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photo:
    """One image: upright (H, W, 3) uint8 RGB, and (3, h, w) uint8 as the network sees it."""

    path: Path
    image: np.ndarray
    view: Tensor


@dataclass(frozen=True)
class Answer:
    """What the network says of one image: (H, W) uint8 class, and (K, H, W) float32 probabilities on request."""

    photo: Photo
    label: np.ndarray
    probabilities: Tensor | None


class Labeller:
    """Runs a network over files.

    Attributes:
        clock: time spent in forward pass, up-sampling and the choice of the class.
        unusable: a few words on each file that is no image, known when `run` has passed it.
    """

    def __init__(self, trained: Trained, size: Size, *, probabilities: bool = False) -> None:
        self.trained, self.size, self.probabilities = trained, size, probabilities
        self.clock = Clock(trained.device)
        self.unusable: list[str] = []

    def run(self, files: Iterable[Path], finish: Callable[[Answer], T]) -> Iterator[T]:
        """What `finish` makes of each answer, in order; it runs in threads beside the network, a few answers behind."""
        waiting: deque[Future[T]] = deque()
        with ThreadPoolExecutor(ENCODERS) as pool:
            for photos in grouped(self.photos(files), lambda photo: (photo.view.shape[1:], photo.image.shape[:2])):
                for answer in self.look(photos):
                    waiting.append(pool.submit(finish, answer))
                    if len(waiting) > ENCODERS:
                        yield waiting.popleft().result()
            for future in waiting:
                yield future.result()

    def photos(self, files: Iterable[Path]) -> Iterator[Photo]:
        for found in ahead(functools.partial(read_photo, size=self.size), files, decoders(self.trained.device)):
            if isinstance(found, Photo):
                yield found
            else:
                log.warning("left out: %s", found)
                self.unusable.append(found)

    def look(self, photos: Sequence[Photo]) -> list[Answer]:
        """One pass over images of equal sizes."""
        network, device = self.trained.student, self.trained.device
        views, size = torch.stack([photo.view for photo in photos]), photos[0].image.shape[:2]
        with torch.inference_mode():
            images = network.normalise(views.to(device))
            with self.clock.network():
                logits = self.logits(images)
                probabilities = resized(logits, size).softmax(1) if self.probabilities else None
                labels = most_likely(logits, size)
            shares = [None] * len(photos) if probabilities is None else list(probabilities.cpu())
            return [Answer(*each) for each in zip(photos, labels.cpu().numpy(), shares, strict=True)]

    def logits(self, images: Tensor) -> Tensor:
        """(B, K, h, w) before they are brought to the images' own size: as `evaluate` has them, by the file's test protocol."""
        student, size = self.trained.student, (images.shape[-2], images.shape[-1])
        if self.trained.test.mode == "whole":
            return student(images).logits.float()
        return inference.from_test(student.predict, self.trained.test)(images, size).float()


def read_photo(path: Path, size: Size) -> Photo | str:
    """The image, or in a few words why it is none."""
    try:
        return photo_of(path, open_image(path), size)
    except Unusable as problem:
        return f"{path.parent}{os.sep}{problem}"


def photo_of(path: Path, image: Image.Image, size: Size) -> Photo:
    """An upright 8-bit RGB image, and what the network sees of it."""
    wanted = fit(*image.size, size)
    view = image if image.size == wanted else image.resize(wanted, Image.Resampling.BILINEAR)
    return Photo(path, np.asarray(image), torch.from_numpy(np.array(view).transpose(2, 0, 1)))


def most_likely(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) uint8 class of the largest of the logits (B, K, h, w) at `size`; the first of equals.

    Formed for a few classes at a time, so that memory does not grow with their number.
    """
    at_once = max(1, LARGEST_MAPS // (len(logits) * size[0] * size[1]))
    highest: Tensor | None = None
    for first in range(0, logits.shape[1], at_once):
        value, index = resized(logits[:, first : first + at_once], size).max(1)
        index = index.to(torch.uint8) + first
        if highest is None:
            highest, label = value, index
            continue
        label = torch.where(value > highest, index, label)
        highest = torch.maximum(value, highest)
    return label


# --- results --------------------------------------------------------------------------------------------------------


def write_answer(answer: Answer, *, out: Path, names: dict[Path, PurePath], classes: ClassSpace) -> None:
    """All files of one image.

    Raises:
        UserError: disk full, read-only folder.
    """
    name = names[answer.photo.path]
    colours = Image.fromarray(answer.label)
    colours.putpalette(classes.palette().tobytes())
    shown = overlay(Image.fromarray(answer.photo.image), answer.label, classes)
    with writing(result(out, "ids", name), sync=False) as temporary:
        Image.fromarray(answer.label).save(temporary, "PNG")
    with writing(result(out, "colours", name), sync=False) as temporary:
        colours.save(temporary, "PNG")
    with writing(result(out, "overlays", name), sync=False) as temporary:
        shown.save(temporary, "JPEG", quality=QUALITY)
    if answer.probabilities is not None:
        with writing(result(out, "probabilities", name), sync=False) as temporary, temporary.open("wb") as handle:
            np.save(handle, answer.probabilities.half().numpy())


def legend(classes: ClassSpace) -> str:
    """CSV: id, name and colour of every class."""
    rows = [(k, name, *classes.colours[k]) for k, name in enumerate(classes.names)]
    return csv_text([("id", "class", "red", "green", "blue"), *rows])
