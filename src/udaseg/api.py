"""For use from Python: trained models, and the results of runs as plain tables. docs/python.md.

What stands here is stable: CHANGELOG.md says when it changes. `import udaseg` alone loads none of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from udaseg import results
from udaseg.artifacts import MODEL, RECORD, damaged, read_record
from udaseg.errors import UserError

if TYPE_CHECKING:
    from udaseg.deploy.predict import Labeller
    from udaseg.params import Size

WANTED = "an image (PIL, array of (H, W, 3) uint8, tensor of (3, H, W)), a path, or a list of them"


class Prediction(NamedTuple):
    """What a network says of one image.

    Attributes:
        labels: (H, W) uint8 index into `Model.classes`, at the image's own size.
        probabilities: (K, H, W) float32 that sum to 1 over K, or None where they were not asked for.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None


class Model:
    """A trained network, ready to label images. `load` makes one.

    Attributes:
        classes: names, in the order of the indices.
        palette: (K, 3) uint8 RGB colour of each class.
        header: what the model file says about itself.
    """

    def __init__(self, path: Path, device: str) -> None:
        from udaseg.devices import choose
        from udaseg.models.trained import load as load_file

        self.path = path
        self._trained = load_file(path, choose(device, "device"))
        self.classes: tuple[str, ...] = self._trained.classes.names
        self.palette: np.ndarray = self._trained.classes.palette()[: len(self.classes)]
        self.header: dict[str, str] = dict(self._trained.header)

    def __repr__(self) -> str:
        return f"<udaseg.Model {self.path}: {len(self.classes)} classes on {self._trained.device}>"

    def predict(self, images: Any, *, probabilities: bool = False, size: str | None = None) -> Any:
        """Label images of any size, as `udaseg predict` does: the same labels.

        Args:
            images: a PIL image, an array (H, W, 3) or (H, W) of uint8, a tensor (3, H, W) of uint8 or of floats in 0..1, the
                path of a file or of a folder (all images below it, in the order of their names), or a list of such.
            probabilities: give them too.
            size: at which the network looks, as "512x256"; None: as in training.

        Returns:
            A Prediction; a list of them for a list or a folder.

        Raises:
            UserError: something that is no image, an empty list or folder.
        """
        from udaseg.deploy.predict import Labeller
        from udaseg.params import Size

        looks = Size.parse(size, "size") if size else self._trained.size
        labeller = Labeller(self._trained, looks, probabilities=probabilities)
        several = _is_list(images) or (isinstance(images, str | Path) and Path(images).is_dir())
        pictures = _opened(images)
        if several and not pictures:
            raise UserError(f"predict: found {images!r} without an image, expected {WANTED}")
        found = [_look(labeller, picture, looks) for picture in pictures]
        return found if several else found[0]

    def overlay(
        self, image: Any, labels: np.ndarray | None = None, *, opacity: float = 0.5, legend: bool = True
    ) -> Image.Image:
        """The image under the colours of its classes, with borders, as `udaseg predict` writes it.

        Args:
            image: one image, as `predict` takes it.
            labels: (H, W) of it; None: predicted now.
            opacity: of the colours within a region, 0 to 1; borders have them pure.
            legend: the classes that occur, named below the picture, which is higher than the image then.

        Raises:
            UserError: as `predict`; labels of another size.
        """
        from udaseg.deploy.overlay import overlay

        pictures = _opened(image)
        if len(pictures) != 1:
            raise UserError(f"overlay: found {len(pictures)} images, expected one")
        (picture,) = pictures
        found = self.predict(picture).labels if labels is None else np.asarray(labels)
        if found.shape != (picture.height, picture.width):
            raise UserError(
                f"overlay: found labels of shape {found.shape}, expected {(picture.height, picture.width)}, the size of the image"
            )
        return overlay(picture, found, self._trained.classes, opacity=opacity, legend=legend)


def load(where: str | Path, *, device: str = "auto") -> Model:
    """A trained model.

    Args:
        where: a model file, the folder of a run that holds one, or an imported checkpoint.
        device: `auto` (CUDA where there is a device), `cpu` or `cuda`.

    Raises:
        UserError: no model there, or one that this version cannot read.
    """
    path = Path(where)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long
        raise UserError(f"{path}: {error.strerror}; expected a model file or the folder of a trained run") from None
    if is_folder:
        if not (path / MODEL).is_file():
            raise UserError(
                f"{path}: found a folder without {MODEL}, expected the folder of a trained run, as results/streets/sepico/seed0"
            )
        path = path / MODEL
    return Model(path, device)


# --- images ---------------------------------------------------------------------------------------------------------


def _is_list(images: Any) -> bool:
    return isinstance(images, list | tuple)


def _opened(images: Any) -> list[Image.Image]:
    """All of them as upright 8-bit RGB."""
    from udaseg.data.images import Unusable, open_image
    from udaseg.data.walk import listing

    if _is_list(images):
        return [picture for each in images for picture in _opened(each)]
    if isinstance(images, str | Path):
        path = Path(images)
        if not path.exists():
            raise UserError(f"predict: {path}: no such file or folder")
        try:
            return [open_image(each) for each in (listing(path).images().values() if path.is_dir() else [path])]
        except Unusable as problem:
            raise UserError(f"predict: {path.parent if path.is_file() else path}: {problem}") from None
    if isinstance(images, Image.Image):
        if not images.width * images.height:
            raise UserError(f"predict: found an image of {images.width}x{images.height}, expected one with pixels")
        return [images if images.mode == "RGB" else images.convert("RGB")]
    if 0 in getattr(images, "shape", ()):
        raise UserError(f"predict: found an image of shape {tuple(images.shape)}, expected one with pixels")
    return [_from_numbers(images)]


def _from_numbers(image: Any) -> Image.Image:
    """An array (H, W, 3) or (H, W) of uint8, or a tensor (3, H, W) of uint8 or of floats in 0..1."""
    if hasattr(image, "detach") and hasattr(image, "dtype"):  # a tensor, without importing torch
        if image.ndim != 3 or image.shape[0] != 3:
            raise UserError(f"predict: found a tensor of shape {tuple(image.shape)}, expected (3, height, width)")
        values = image.detach().cpu()
        if values.is_floating_point():
            low, high = float(values.min()), float(values.max())
            if not 0 <= low <= high <= 1:  # NaN neither
                raise UserError(f"predict: found a tensor with {low:g} to {high:g}, expected 0 to 1 (or uint8)")
            values = (values * 255).round()
        elif str(values.dtype) != "torch.uint8":
            raise UserError(f"predict: found a tensor of {values.dtype}, expected uint8, or floats in 0..1")
        return Image.fromarray(np.ascontiguousarray(values.numpy().astype(np.uint8).transpose(1, 2, 0)))
    if not isinstance(image, np.ndarray):
        raise UserError(f"predict: found {type(image).__name__}, expected {WANTED}")
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(
            f"predict: found an array of shape {image.shape} and type {image.dtype}, expected (height, width, 3) of uint8"
        )
    return Image.fromarray(image).convert("RGB")


def _look(labeller: Labeller, picture: Image.Image, size: Size) -> Prediction:
    from udaseg.deploy.predict import photo_of

    (answer,) = labeller.look([photo_of(Path(), picture, size)])
    shares = None if answer.probabilities is None else answer.probabilities.numpy()
    return Prediction(answer.label, shares)


# --- results of runs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunResults:
    """What a run left behind, as plain tables; files are read when asked for.

    Attributes:
        benchmark, method, seed: which run.
        folder: where its files lie.
    """

    benchmark: str
    method: str
    seed: int
    folder: Path

    @property
    def scores(self) -> dict[str, Any]:
        """metrics.json: `miou`, `iou` by class, `pixel_accuracy` ..., in percent; empty if it was not scored."""
        return results.scores_below(self.folder) if (self.folder / "metrics.json").exists() else {}

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Columns of history.csv by name: `step` and the losses, NaN where a step had none; empty if it is not there."""
        return results.curves_below(self.folder) if (self.folder / "history.csv").exists() else {}

    @property
    def features(self) -> dict[str, np.ndarray]:
        """Arrays of features.npz: `feature` (N, D) float16, `label`, `domain` (0 source, 1 target), `image`; empty if not sampled."""
        path = self.folder / "features.npz"
        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except results.NO_ARRAYS as error:
            raise damaged(path, str(error)) from None

    @property
    def made(self) -> dict[str, Any]:
        """run.json: parameters, code, data, versions and time; empty if it is not there."""
        path = self.folder / RECORD
        return read_record(path) if path.exists() else {}


def runs(results: str | Path = "results") -> list[RunResults]:
    """All runs below a folder of results (`results`, or `results/reference`), by benchmark, method and seed.

    Raises:
        UserError: no such folder.
    """
    home = Path(results)
    if not home.is_dir():
        raise UserError(f"{home}: found no such folder, expected one of results, as results or results/reference")
    return sorted(_runs_below(home), key=lambda run: (run.benchmark, run.method, run.seed))


def _runs_below(home: Path) -> Iterable[RunResults]:
    for folder in home.glob("*/*/seed*"):
        benchmark, method, seed = folder.relative_to(home).parts
        if not benchmark.startswith(".") and seed[4:].isdigit() and any(folder.iterdir()):
            yield RunResults(benchmark, method, int(seed[4:]), folder)
