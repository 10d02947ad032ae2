"""What runs left behind, read and checked for whoever shows it, compares it or hands it on; nobody else opens these files.

A file is believed where it is whole, of the classes and steps of its run, and where its numbers agree with each other: mIoU with
the IoU of the classes, those with the confusion matrix. All else is told in one line with the command that makes it again.
No torch.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from udaseg.artifacts import RECORD, cell_text, damaged, is_recorded, parse_json, read_json, read_record, read_text
from udaseg.classes import OTHER, ClassSpace
from udaseg.errors import UserError
from udaseg.evaluation import headline
from udaseg.params import Params, Run

ROUNDING = 2e-4  # of values in percent with 4 decimals, and of their mean
MEASURED = 5e-6  # of values with 6 decimals, and of their mean
# all that numpy says of files that are no arrays
NO_ARRAYS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError),
    zipfile.BadZipFile,
)
MOST_PIXELS = 2**26  # of one class map
BY_CLASS = ("intra_variance", "compactness", "center_distance", "pdd", "pdd_difference", "domain_gap")
PROBES = ("linear_probe", "linear_probe_from_source", "knn", "knn_from_source")


def runs_of(p: Params, benchmark: str) -> dict[str, list[Run]]:
    """Method -> its runs, one for each seed, both in the order of params.yaml."""
    return {method: [p.resolve(benchmark, method, seed) for seed in p.run.seeds] for method in p.run.methods}


def wrong(path: Path, what: object, run: Run, step: str) -> UserError:
    """The answer to a file of a run that is not what `step` left there. One of results/reference is kept by git."""
    reference = path.parts[:2] == ("results", "reference")
    return damaged(path, str(what), command=f"git checkout -- {path}" if reference else run.command(step))


# --- scores ---------------------------------------------------------------------------------------------------------


def metrics(run: Run, folder: Path | None = None) -> dict[str, Any]:
    """metrics.json of a run, compared with confusion.csv, iou.json and headline.json where these lie beside it.

    Args:
        run: whose classes they are.
        folder: where they lie, if not in the run's own.

    Raises:
        UserError: missing, damaged, or numbers that contradict each other.
    """
    folder = folder or run.folder
    path = folder / "metrics.json"
    found = read_json(path, f"the scores of {run.method_name}", run.command("evaluate"))
    try:
        check_scores(found, run.classes)
        if (folder / "confusion.csv").exists():
            check_counted(found, counts(run, folder), run.classes)
    except ValueError as error:
        raise wrong(path, error, run, "evaluate") from None
    if (folder / "iou.json").exists():
        check_ious(run, found, folder)
    if (folder / headline.NAME).exists():
        check_headline(run, found, folder)
    return found


def scores_below(folder: Path) -> dict[str, Any]:
    """metrics.json of a run whose parameters are not known: compared with itself alone.

    Raises:
        UserError: missing, damaged, or numbers that contradict each other.
    """
    path = folder / "metrics.json"
    found = read_json(path, "the scores of a run")
    try:
        by_class, absent = block(found.get("iou"), "iou"), found.get("absent")
        names = tuple(dict.fromkeys((*by_class, *(map(str, absent) if isinstance(absent, list) else ()))))
        check_scores(
            {key: v for key, v in found.items() if key == "miou" or not key.startswith("miou")}, space_of(names)
        )
    except ValueError as error:
        raise damaged(path, str(error)) from None
    return found


def space_of(names: tuple[str, ...]) -> ClassSpace:
    return ClassSpace("", names, ((0, 0, 0),) * len(names), tuple((name,) for name in names), (), {})


def check_scores(found: Mapping[str, Any], space: ClassSpace) -> None:
    """Raises ValueError where a block with scores of all classes is none, or contradicts itself."""
    by_class = block(found.get("iou"), "iou")
    names = [name for name in space.names if name in by_class]
    if unknown := sorted(set(by_class) - set(space.names)):
        raise ValueError(f"iou: found the class {unknown[0]!r}, which the run has not")
    for name in names:
        percent(by_class[name], f"iou.{name}")
    absent = [name for name in space.names if name not in by_class]
    if found.get("absent") != absent:
        raise ValueError(f"absent: found {found.get('absent')}, expected {absent}, which have no IoU")
    for key in ("images", "pixels"):
        whole(found.get(key), key)
    percent(found.get("pixel_accuracy"), "pixel_accuracy")
    groups: dict[str, Iterable[int]] = {"miou": range(len(space)), **space.subsets}
    for key in ("miou", *(key for key in found if key.startswith("miou"))):
        value = percent(found.get(key), key)
        if key not in groups:
            raise ValueError(f"{key}: no mean of this class list")
        members = [by_class[space.names[k]] for k in groups[key] if space.names[k] in by_class]
        if not members or abs(value - math.fsum(members) / len(members)) > ROUNDING:
            raise ValueError(f"{key}: found {value}, but the mean of its classes' IoU is {mean_of(members)}")
    for name, other in block(found.get("other"), "other").items():
        try:
            percent(block(other, name).get("miou"), "miou")
            for key, value in other.items():
                if key.startswith("miou"):
                    percent(value, key)
            if "iou" in other:
                check_scores({"other": {}} | other, space)
        except ValueError as error:
            raise ValueError(f"other.{name}: {error}") from None


def mean_of(values: Sequence[float]) -> str:
    return f"{math.fsum(values) / len(values):.4f}" if values else "not defined"


def check_counted(found: Mapping[str, Any], matrix: np.ndarray, space: ClassSpace) -> None:
    """Raises ValueError where scores are not those of a confusion matrix (K + 1, K), whose last row are other classes."""
    hit = np.diagonal(matrix).astype(float)
    union = matrix.sum(0) + matrix[:-1].sum(1) - hit
    for name, right, of in zip(space.names, hit, union, strict=True):
        value, expected = found["iou"].get(name), round(100 * right / of, 4) if of else None
        if (value is None) != (expected is None) or abs((value or 0) - (expected or 0)) > ROUNDING:
            raise ValueError(f"iou.{name}: found {value}, but confusion.csv beside it says {expected}")
    pixels = int(matrix.sum())
    expected = 100 * float(hit.sum()) / pixels if pixels else math.nan
    if found["pixels"] != pixels or abs(found["pixel_accuracy"] - expected) > ROUNDING:
        raise ValueError(
            f"found pixel accuracy {found['pixel_accuracy']} of {found['pixels']} pixels, but confusion.csv beside it says "
            f"{expected:.4f} of {pixels}"
        )


def check_ious(run: Run, found: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError where iou.json, the same numbers for DVC's plots, has others."""
    path = folder / "iou.json"
    text = read_text(path, "the IoU of each class", run.command("evaluate"))
    try:
        by_class = {name: found["iou"][name] for name in run.classes.names if name in found["iou"]}
        if parse_json(text) != [{"class": name, "iou": value} for name, value in by_class.items()]:
            raise ValueError("other numbers than in metrics.json beside it")
    except ValueError as error:
        raise wrong(path, error, run, "evaluate") from None


def check_headline(run: Run, found: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError where headline.json, the same means for DVC's tables, has others."""
    path = folder / headline.NAME
    text = read_text(path, "the headline of the scores", run.command("evaluate"))
    try:
        if parse_json(text) != headline.of(found):
            raise ValueError("other numbers than in metrics.json beside it")
    except ValueError as error:
        raise wrong(path, error, run, "evaluate") from None


def confusion(run: Run) -> np.ndarray:
    """(K, K) pixels, actual by predicted."""
    return counts(run, run.folder)[:-1]


def counts(run: Run, folder: Path) -> np.ndarray:
    """(K + 1, K) pixels of confusion.csv, actual by predicted; the last row are pixels of other classes."""
    path, names = folder / "confusion.csv", run.classes.names
    cells: dict[tuple[str, str], int] = {}
    for row in rows(path, run, "evaluate", ("actual", "predicted", "pixels")):
        key = (cell_text(row["actual"]), cell_text(row["predicted"]))
        if not row["pixels"].isdecimal() or len(row["pixels"]) > 18 or key in cells:
            raise wrong(path, f"{' as '.join(key)}: found {row['pixels']!r}, expected one count", run, "evaluate")
        cells[key] = int(row["pixels"])
    wanted = {(actual, predicted) for actual in names for predicted in names}
    others = {(OTHER, predicted) for predicted in names} - wanted
    if set(cells) not in (wanted, wanted | others):
        raise wrong(path, f"{len(cells)} cells, not {len(names)} x {len(names)} of its classes", run, "evaluate")
    return np.array([[cells.get((actual, predicted), 0) for predicted in names] for actual in (*names, OTHER)])


def image_scores(run: Run, folder: Path | None = None) -> dict[str, float]:
    """mIoU of each image of the first evaluation set, in its order; NaN without a scored pixel. In `folder`, or the run's own."""
    path = (folder or run.folder) / "images.csv"
    found = rows(path, run, "evaluate", ("image", "miou", "pixel_accuracy"))
    try:
        for row in found:
            for key in ("miou", "pixel_accuracy"):
                percent(number(row[key]) if row[key] else 0.0, f"{row['image']}: {key}")
    except ValueError as error:
        raise wrong(path, error, run, "evaluate") from None
    scores = {cell_text(row["image"]): number(row["miou"]) for row in found}
    images = metrics(run, folder or run.folder)["images"]
    if not len(scores) == len(found) == images:
        raise wrong(path, f"{len(found)} rows of {len(scores)} images, metrics.json has {images}", run, "evaluate")
    return scores


def prediction(run: Run, image: str) -> np.ndarray:
    """(h, w) uint8 class map of one image, reduced as `evaluation.predictions` does."""
    path = run.folder / "predictions.zip"
    if not path.exists():
        raise UserError(f"{path}: not found; run `{run.command('evaluate')}` first")
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{image}.png")
            if member.file_size > MOST_PIXELS:
                raise ValueError(f"{member.file_size} bytes")
            with Image.open(io.BytesIO(archive.read(member))) as picture:
                if picture.width * picture.height > MOST_PIXELS or picture.mode != "P":
                    raise ValueError(f"{picture.width}x{picture.height}, mode {picture.mode}, no class map")
                found = np.array(picture)
        if found.max(initial=0) >= len(run.classes):
            raise ValueError(f"class {found.max()}, expected up to {len(run.classes) - 1}")
    except (OSError, LookupError, SyntaxError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise wrong(path, f"{image}: {error}", run, "evaluate") from None
    return found


# --- features -------------------------------------------------------------------------------------------------------


def analysis(run: Run, folder: Path | None = None) -> dict[str, Any]:
    """Measures of the features: analysis.json."""
    path = (folder or run.folder) / "analysis.json"
    found = read_json(path, f"measures of the features of {run.method_name}", run.command("analyse"))
    try:
        check_measures(found, run.classes)
    except ValueError as error:
        raise wrong(path, error, run, "analyse") from None
    return found


def check_measures(found: Mapping[str, Any], space: ClassSpace) -> None:
    """Raises ValueError where measures are none, or contradict those of the classes."""
    by_class = block(found.get("class", {}), "class")
    left_out = found.get("left_out", [])
    if not isinstance(left_out, list) or (
        unknown := [name for name in (*by_class, *left_out) if name not in space.names]
    ):
        raise ValueError(
            f"found the class {unknown[0] if isinstance(left_out, list) else left_out!r}, which the run has not"
        )
    for key, value in found.items():
        if key in PROBES and value is not None:
            percent(value, key)
        elif key in ("cells", "classes", "pdd_clamped", "probe_classes"):
            whole(value, key)
        elif key not in ("class", "left_out", "probe_split") and value is not None:
            finite(value, key)
    for key in BY_CLASS:
        given = [block(one, "class").get(key) for one in by_class.values()]
        values = [finite(value, f"class: {key}") for value in given if value is not None]
        if found.get(key) is not None and values and len(values) == len(given):
            mean = math.fsum(values) / len(values)
            if abs(found[key] - mean) > MEASURED * max(1.0, abs(mean)):
                raise ValueError(f"{key}: found {found[key]}, but the mean of its classes is {mean:.6f}")


def tsne(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map (M, 2), class index (M,) and domain (M,; 0 source, 1 target) of the sampled cells."""
    path = run.folder / "tsne.npz"
    if not path.exists():
        raise UserError(f"{path}: not found; run `{run.command('analyse')}` first")
    try:
        with np.load(path) as arrays:
            plane, label, domain = arrays["map"], arrays["label"], arrays["domain"]
        if plane.ndim != 2 or plane.shape != (len(label), 2) or domain.shape != label.shape or not len(label):
            raise ValueError(f"shapes {plane.shape}, {label.shape}, {domain.shape}")
        if label.dtype.kind not in "iu" or domain.dtype.kind not in "iu" or plane.dtype.kind != "f":
            raise ValueError(f"{plane.dtype}, {label.dtype}, {domain.dtype}")
        if not (np.isfinite(plane).all() and 0 <= label.min() <= label.max() < len(run.classes)):
            raise ValueError("places or classes that cannot be")
        if not 0 <= domain.min() <= domain.max() <= 1:
            raise ValueError("domains that cannot be")
    except NO_ARRAYS as error:
        raise wrong(path, error, run, "analyse") from None
    return plane, label, domain


# --- training -------------------------------------------------------------------------------------------------------


def record(run: Run) -> dict[str, Any] | None:
    """run.json, where there is one."""
    path = run.folder / RECORD
    return read_record(path, run.command("train")) if path.exists() else None


def history(run: Run, folder: Path | None = None) -> dict[str, np.ndarray]:
    """`step` and the losses by name, NaN where a step had none. Where run.json has its hash, the file must be that one."""
    folder = folder or run.folder
    path = folder / "history.csv"
    found = rows(path, run, "train", ("step",))
    made = read_record(folder / RECORD, run.command("train")) if (folder / RECORD).exists() else {}
    try:
        columns = {key: np.array([number(row[key]) for row in found]) for key in found[0]}
        step = columns["step"]
        if not (np.diff(step) > 0).all() or step[-1] != run.train.steps:
            raise ValueError(f"ends at step {step[-1]:.0f}, expected steps up to {run.train.steps}")
        if "history_hash" in made and not is_recorded(path, made["history_hash"]):
            raise ValueError(f"not the file that {RECORD} beside it was written for")
    except ValueError as error:
        raise wrong(path, error, run, "train") from None
    return {key: values for key, values in columns.items() if key != "learning_rate"}


# --- what all have in common ----------------------------------------------------------------------------------------


def rows(path: Path, run: Run, step: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """A CSV file of a run, with at least these columns and one row.

    Raises:
        UserError: missing, or cut short.
    """
    text = read_text(path, f"what `{step}` leaves of {run.method_name}", run.command(step))
    try:
        return table(text, columns)
    except ValueError as error:
        raise wrong(path, error, run, step) from None


def table(text: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV table. Raises ValueError where there is none, a column is missing, or a row is not whole."""
    try:
        found = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if not found:
        raise ValueError("no row")
    if missing := [column for column in columns if column not in found[0]]:
        raise ValueError(f"no column {missing[0]}")
    # DictReader: a long row has the key None, a short one the value None
    if any(None in row or None in row.values() for row in found):
        raise ValueError("a row of another length")
    if not text.endswith("\n"):
        raise ValueError("cut off in its last line")
    return found


def curves_below(folder: Path) -> dict[str, np.ndarray]:
    """Columns of history.csv of a run whose parameters are not known.

    Raises:
        UserError: missing or damaged.
    """
    path = folder / "history.csv"
    text = read_text(path, "the losses of a training")
    try:
        found = table(text, ("step",))
        return {key: np.array([number(row[key]) for row in found]) for key in found[0]}
    except ValueError as error:
        raise damaged(path, str(error)) from None


def block(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: found {shown(value)}, expected a block of names and values")
    return value


def finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{name}: found {shown(value)}, expected a number")
    return value


def percent(value: Any, name: str) -> float:
    if not 0 <= finite(value, name) <= 100:
        raise ValueError(f"{name}: found {shown(value)}, expected 0 to 100")
    return float(value)


def whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: found {shown(value)}, expected a count")
    return value


def number(text: str) -> float:
    """A cell; an empty one is NaN. Raises ValueError for anything but a finite number."""
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"found {shown(text)}, expected a number")
    return value


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
