"""`udaseg verify`: whether results are what they claim to be.

Data and models are hashed anew, the model is scored again by the code of `udaseg evaluate`, every number is compared with what lies
there, and what made the run with what is here. Nothing is written. What cannot be looked at is said to be not checked.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from udaseg import ranks, results
from udaseg.artifacts import MODEL, RECORD, checked_hash, file_hash, read_record
from udaseg.comparison import compare
from udaseg.data.prepared import find_prepared
from udaseg.engine import provenance, runtime
from udaseg.engine.provenance import HISTORY, SCHEME
from udaseg.errors import UserError
from udaseg.evaluation.evaluate import Watcher, score
from udaseg.evaluation.predictions import Prediction
from udaseg.models.files import load_model_file
from udaseg.models.trained import read_header
from udaseg.params import Params, Run, uses
from udaseg.workflow import why

TOLERANCE = 0.05  # of a mean in percent: what other processors round differently moves it by less
OF_A_CLASS = 0.5  # of the IoU of one class, in percent: rare classes have few pixels
OF_A_MAP = 0.01  # share of the pixels of all class maps
SHOWN = 4  # differences of one kind
NOT_CHECKED = "not checked"


class Unlike(Exception):
    """A number or file that is not what it claims to be; says which and what mends it."""


class Unknown(Exception):
    """What is missing for a check."""


@dataclass(frozen=True)
class Checked:
    """One line of the account; `good` is None where it could not be checked or nothing is claimed."""

    subject: str
    text: str
    good: bool | None

    def __str__(self) -> str:
        word = "" if self.good is None else "ok: " if self.good else "WRONG: "
        return f"  {self.subject:<10} {word}{self.text}"


def verify(p: Params, names: Sequence[str], watcher: Watcher | None = None) -> tuple[str, bool]:
    """An account of the runs that `names` mean, as of `udaseg why` (none: all of `run`), and of those below results/reference.

    Returns:
        The text, and whether nothing is other than claimed.
    """
    lines: list[str | Checked] = []
    data: dict[str, Checked] = {}  # benchmark -> looked at once
    places = list(found(p, names))
    device = runtime.setup(p.run)
    try:
        for run, folder in places:
            name = run.benchmark_name
            lines.append(f"{folder}")
            reference = folder != run.folder
            if not reference:
                data.setdefault(name, check("data", partial(check_data, p, name)))
                lines.append(data[name])
            lines += of_run(run, folder, device, data.get(name), watcher)
        for name, reference in dict.fromkeys((run.benchmark_name, folder != run.folder) for run, folder in places):
            home = (compare.REFERENCES if reference else Path("results")) / name
            lines += [f"{home}", check("summary", partial(check_summary, p, name, reference=reference))]
    finally:
        ranks.leave()
    checks = [line for line in lines if isinstance(line, Checked)]
    wrong = sum(line.good is False for line in checks)
    open_ = sum(line.good is None and line.text.startswith(NOT_CHECKED) for line in checks)
    lines.append(f"{len(places)} runs, {len(checks)} checks: {wrong} wrong, {open_} {NOT_CHECKED}")
    return "\n".join(map(str, lines)), not wrong


def found(p: Params, names: Sequence[str]) -> Iterator[tuple[Run, Path]]:
    """The runs of the names, and where their files lie."""
    for name in names or p.run.benchmarks:
        parts = [part for part in Path(name).parts if part not in (".", "/")]
        parts = parts[1:] if parts[:1] == ["results"] else parts
        if parts[:1] != ["reference"]:
            yield from ((run, run.folder) for run in why.find_runs(p, name))
            continue
        places = sorted(compare.REFERENCES.glob("*/*/seed*/metrics.json"))
        wanted = [*parts[1:3], *(f"seed{part.removeprefix('seed')}" for part in parts[3:])]
        places = [path.parent for path in places if list(path.parts[2 : 2 + len(wanted)]) == wanted]
        if not places:
            raise UserError(
                f"{name}: found no reference results of that name, expected results/reference/streets/pipa/seed0"
            )
        for place in places:
            benchmark, method, seed = place.parts[2:]
            yield p.resolve(benchmark, method, int(seed.removeprefix("seed"))), place


def check(subject: str, look: Callable[[], str]) -> Checked:
    try:
        return Checked(subject, look(), True)
    except (UserError, Unlike) as error:
        return Checked(subject, str(error), False)
    except Unknown as error:
        return Checked(subject, f"{NOT_CHECKED}: {error}", None)


def of_run(run: Run, folder: Path, device: Any, data: Checked | None, watcher: Watcher | None) -> Iterator[Checked]:
    model = check("model", partial(check_model, run, folder))
    yield model
    yield check("history", partial(check_history, run, folder))
    numbers = check("numbers", partial(check_numbers, run, folder))
    yield numbers
    yield check("scores", partial(check_scores, run, folder, device, [data, model, numbers], watcher))
    yield Checked("made with", "; ".join(made_with(run, folder, device)), None)


def check_data(p: Params, benchmark: str) -> str:
    """Every byte of the zips against their manifests, and these against data.json."""
    record = Path("data", benchmark, "data.json")
    if not record.exists():
        raise Unknown(f"{record} is not here")
    sets = {use.prepared: find_prepared(benchmark, use) for use in uses(p.benchmarks[benchmark])}
    for prepared in sets.values():
        prepared.verify()
    return f"{', '.join(sets)}: hashes as recorded"


def check_model(run: Run, folder: Path) -> str:
    """The file against run.json, and its header against itself."""
    path = folder / MODEL
    if not path.exists():
        raise Unknown(f"{path} is not here")
    load_model_file(path)
    if not (folder / RECORD).exists():
        raise Unknown(f"no {RECORD} to compare it with; whole by its own hash, sha256 {file_hash(path)[:12]}")
    made = read_record(folder / RECORD, run.command("train"))
    if "model_hash" not in made:
        raise Unknown(f"{RECORD} is of a version without hashes of models")
    found = checked_hash(path, run.command("train"))
    return f"sha256 {found[:12]}, as {RECORD if found == made['model_hash'] else 'dvc.lock'} says"


def check_history(run: Run, folder: Path) -> str:
    if not (folder / HISTORY).exists():
        raise Unknown(f"{folder / HISTORY} is not here")
    steps = results.history(run, folder)["step"]
    return f"{len(steps)} rows up to step {int(steps[-1])}"


def check_numbers(run: Run, folder: Path) -> str:
    """Scores and measures against themselves and each other."""
    if not (folder / "metrics.json").exists():
        raise Unknown(f"{folder / 'metrics.json'} is not here")
    metrics = results.metrics(run, folder)
    beside = [name for name in ("confusion.csv", "iou.json", "headline.json") if (folder / name).exists()]
    if (folder / "analysis.json").exists():
        results.analysis(run, folder)
        beside.append("analysis.json")
    if (folder / "tsne.npz").exists() and folder == run.folder:
        results.tsne(run)
        beside.append("tsne.npz")
    others = f" and with {', '.join(beside)}" if beside else ""
    return f"mIoU {metrics['miou']:.2f}; agree with themselves{others}"


def check_scores(run: Run, folder: Path, device: Any, before: Sequence[Checked | None], watcher: Watcher | None) -> str:
    """Score the model again and compare all that `evaluate` has left."""
    if folder != run.folder or not (folder / MODEL).exists():
        raise Unknown("no model here to score again")
    if any(line is None or not line.good for line in (before[0], before[2])):
        raise Unknown("needs data and scores that are whole")
    if before[1] is not None and before[1].good is False:
        raise Unknown("needs a model that is whole")
    if read_header(folder / MODEL).get("params_hash") != run.hash:
        raise Unknown("the model was trained with other parameters than those of params.yaml now (`udaseg why`)")
    metrics, again = results.metrics(run), score(run, device, watcher)
    worst = max(abs(x - y) for _, x, y in means(metrics, again.metrics))
    for key, x, y in means(metrics, again.metrics):
        if not abs(x - y) <= TOLERANCE:
            raise Unlike(
                f"{key}: metrics.json says {x:.4f}, the model scores {y:.4f}; run `{run.command('evaluate')}` again"
            )
    classes = [abs(metrics["iou"].get(k, math.inf) - y) for k, y in again.metrics["iou"].items()]
    if metrics["iou"].keys() != again.metrics["iou"].keys() or max(classes) > OF_A_CLASS:
        raise Unlike(
            f"iou: other values than the model scores (by {max(classes):.4f}); run `{run.command('evaluate')}` again"
        )
    counts = [key for key in ("images", "pixels") if metrics[key] != again.metrics[key]]
    if counts:
        raise Unlike(
            f"{counts[0]}: metrics.json says {metrics[counts[0]]}, found {again.metrics[counts[0]]}; run "
            f"`{run.command('evaluate')}` again"
        )
    maps = check_images(run, again.each)
    return (
        f"made again on {runtime_name(device)}: mIoU {again.metrics['miou']:.4f}, difference {worst:.4f} at most in a mean, "
        f"{max(classes):.4f} in a class; {maps}"
    )


def means(one: dict[str, Any], other: dict[str, Any], where: str = "") -> Iterator[tuple[str, float, float]]:
    """Name and values of every mean of `other`; infinite where `one` lacks it."""
    for key, value in other.items():
        if key.startswith("miou") or key == "pixel_accuracy":
            yield f"{where}{key}", one.get(key, math.inf), value
    for name, block in other.get("other", {}).items():
        yield from means(one["other"].get(name, {}), block, f"other.{name}.")


def check_images(run: Run, each: Sequence[Prediction]) -> str:
    """images.csv and predictions.zip, where they are here."""
    again = f"run `{run.command('evaluate')}` again"
    told = []
    if (run.folder / "images.csv").exists():
        scores = results.image_scores(run)
        if list(scores) != [one.image for one in each]:
            raise Unlike(f"{run.folder}/images.csv: other images than are scored; {again}")
        gaps = [abs(scores[one.image] - one.miou) for one in each if one.miou is not None]
        if not float(np.mean(gaps or [0.0])) <= TOLERANCE:
            raise Unlike(
                f"{run.folder}/images.csv: {np.mean(gaps):.4f} away from what the images score, on average; {again}"
            )
        told.append("images.csv")
    path = run.folder / "predictions.zip"
    if path.exists():
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names != [f"{one.image}.png" for one in each]:
            raise Unlike(f"{path}: other images than are scored; {again}")
        unlike, pixels = 0, 0
        for one in each:
            with Image.open(io.BytesIO(one.png)) as picture:
                expected = np.array(picture)
            map_ = results.prediction(run, one.image)
            unlike += expected.size if map_.shape != expected.shape else int((map_ != expected).sum())
            pixels += expected.size
        if unlike > OF_A_MAP * pixels:
            raise Unlike(
                f"{path}: {100 * unlike / pixels:.2f} % of its pixels are not what the model predicts; {again}"
            )
        told.append(f"predictions.zip ({unlike} of {pixels} pixels differ)")
    return f"so do {', '.join(told)}" if told else "no images.csv, predictions.zip here"


def check_summary(p: Params, benchmark: str, *, reference: bool) -> str:
    home = (compare.REFERENCES if reference else Path("results")) / benchmark
    if not (home / "summary.json").exists():
        raise Unknown(f"{home}/summary.json is not here")
    summary = compare.read_summary(p, benchmark, reference=reference)
    return f"summary.json says what the scores of its {len(summary['methods'])} methods say"


def made_with(run: Run, folder: Path, device: Any) -> Iterator[str]:
    """What of the run's provenance is different here; no claim, since none of it needs to be alike."""
    if not (folder / RECORD).exists():
        yield f"{NOT_CHECKED}: no {RECORD} here"
        return
    try:
        made = read_record(folder / RECORD)
    except UserError as error:
        yield f"{NOT_CHECKED}: {error}"
        return
    if made.get("params_hash") != run.hash:
        yield "other parameters"
    if made.get("scheme") == SCHEME:
        reasons = why.differences(made, {"code": provenance.code_of(run), "params": run.resolved})
        more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
        yield from [*reasons[:SHOWN], *more]
    else:
        yield "code hashed by an earlier scheme"
    try:
        if made.get("data_hash") != provenance.data_hash(run):
            yield "other data, or data recorded by an earlier version"
    except UserError:
        yield "data not here"
    here = provenance.machine(device)
    for name, version in here["versions"].items():
        if (then := (made.get("versions") or {}).get(name)) != version:
            yield f"{name} {then}, here {version}"
    for key in ("device", "ranks"):
        if made.get(key) != here[key]:
            yield f"{key} {made.get(key)}, here {here[key]}"
    if made.get("dirty"):
        yield "uncommitted changes then"
    yield f"revision {str(made.get('revision'))[:12]}"


def runtime_name(device: Any) -> str:
    return str(provenance.machine(device)["device"])
