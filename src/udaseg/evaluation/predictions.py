"""What a model says about each test image: its scores (images.csv) and its class map (predictions.zip).

Both come out of the pass that fills the confusion matrix. Class maps are kept small: as delivered up to WIDEST pixels wide,
larger ones by the class under the centre of the new pixel.
shapes: B images, H W label size, K classes
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from udaseg.artifacts import csv_text, write_text, writing
from udaseg.classes import ClassSpace

if TYPE_CHECKING:  # figures read predictions without torch, which takes seconds to import
    from torch import Tensor

WIDEST = 512  # pixels
WAITING = 64  # batches of class maps that may wait for the thread that encodes them


@dataclass(frozen=True)
class Prediction:
    """One image: its name, its scores in percent (None: no scored pixel) and its class map as PNG."""

    image: str
    miou: float | None
    pixel_accuracy: float | None
    png: bytes


class Recorder:
    """Takes the images of a scoring pass; a thread encodes them while the network goes on."""

    def __init__(self, classes: ClassSpace) -> None:
        self.colours = [value for colour in classes.colours for value in colour]
        self.pool = ThreadPoolExecutor(1)
        self.pending: list[Future[list[Prediction]]] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def add(self, names: Sequence[str], found: Tensor, values: Tensor) -> None:
        """Args:
        names: of the B images.
        found: (B, H, W), the class of each pixel.
        values: (B, 2), mIoU and pixel accuracy in 0..1 as of `scores.by_image`.
        """
        if len(self.pending) >= WAITING:
            self.pending[-WAITING].result()
        rows, columns = grid(found.shape[1], found.shape[2])
        small = found[:, rows][:, :, columns].byte()
        self.pending.append(self.pool.submit(self.encode, names, small, values))

    def encode(self, names: Sequence[str], small: Tensor, values: Tensor) -> list[Prediction]:
        """Runs in the thread, because the move from a GPU waits for it."""
        return [
            Prediction(name, percent(miou), percent(accuracy), self.png(one))
            for name, (miou, accuracy), one in zip(names, values.tolist(), small.cpu().numpy(), strict=True)
        ]

    def png(self, classes: np.ndarray) -> bytes:
        image = Image.fromarray(classes)
        image.putpalette(self.colours)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def predictions(self) -> list[Prediction]:
        """All that was added, in this order."""
        return [one for future in self.pending for one in future.result()]


def percent(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * value, 4)


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns to keep of a class map, as int64 indices; all of them up to WIDEST pixels wide."""
    factor = min(1.0, WIDEST / width)
    sizes = (max(1, round(height * factor)), max(1, round(width * factor)))
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(sizes, (height, width), strict=True)
    )
    return rows, columns


def reduced(label: np.ndarray) -> np.ndarray:
    """A label (H, W) at the size of the class maps in predictions.zip."""
    rows, columns = grid(*label.shape)
    return label[np.ix_(rows, columns)]


def write(folder: Path, predictions: Sequence[Prediction]) -> None:
    """images.csv and predictions.zip; equal predictions give equal bytes."""
    rows = [(one.image, one.miou, one.pixel_accuracy) for one in predictions]
    with writing(folder / "predictions.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for one in predictions:
            archive.writestr(zipfile.ZipInfo(f"{one.image}.png"), one.png)  # dated 1980: no time stamp
    write_text(folder / "images.csv", csv_text([("image", "miou", "pixel_accuracy"), *rows]))
