"""Score one trained run on the test images of its benchmark.

The headline is one plain pass of the student on the first evaluation set, whole or in windows: what the papers report.
Under `other` stand the teacher, what the method does at test time (PLCA aggregates), the augmented pass (`flip`,
`multiscale`) and the further evaluation sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from udaseg import ranks
from udaseg.artifacts import csv_text, write_json, write_text
from udaseg.classes import OTHER, ClassSpace
from udaseg.data.prepared import Prepared, Sample, find_prepared
from udaseg.engine import runtime
from udaseg.errors import UserError
from udaseg.evaluation import confusion, headline, inference, predictions, scores
from udaseg.evaluation.inference import Predict
from udaseg.evaluation.loading import batches, decoders, samples_of
from udaseg.evaluation.predictions import Prediction, Recorder
from udaseg.methods import method_class
from udaseg.models import Segmenter
from udaseg.models.trained import load_run
from udaseg.params import Run, Test, Use, uses


class Watch(Protocol):
    """Looks on while a split is scored; nothing of it reaches a score."""

    def network(self) -> AbstractContextManager[None]:
        """Around every pass."""

    def reached(self, done: int) -> None:
        """So many images are done."""


Watcher = Callable[[str, int, torch.device], Watch]  # what is scored, how many images, where


def evaluate_run(run: Run, watcher: Watcher | None = None) -> str:
    """Score a trained run; write metrics.json, headline.json, confusion.csv, iou.json, images.csv and predictions.zip.

    Returns:
        A short table to print (empty on all ranks but the first).

    Raises:
        UserError: no model, a model of other parameters or classes, no prepared data, no scored pixel, no such device.
    """
    run.check_usable()
    device = runtime.setup(run.params.run)
    try:
        return _evaluate(run, device, watcher)
    finally:
        ranks.leave()


def _evaluate(run: Run, device: torch.device, watcher: Watcher | None) -> str:
    scored = score(run, device, watcher)
    if ranks.rank() != 0:
        return ""
    predictions.write(run.folder, scored.each)
    write_results(run, scored.matrix, scored.metrics)
    return table(run, scored.use, scored.metrics)


@dataclass(frozen=True)
class Scored:
    """What the first rank knows of a run that was scored: the set of the headline, its counts, all scores, each image."""

    use: Use
    matrix: Tensor
    metrics: dict[str, Any]
    each: list[Prediction]


def score(run: Run, device: torch.device, watcher: Watcher | None = None) -> Scored:
    """Score a trained run and write nothing. Errors as of `evaluate_run`."""
    sets = [use for use in uses(run.benchmark) if use.role == "evaluate"]
    if not sets:
        raise UserError(
            f"params.yaml: benchmarks.{run.benchmark_name}.evaluate: found none, expected at least one labelled split"
        )
    model = load_run(run, device)
    student = inference.from_test(model.student.predict, run.benchmark.test)
    first = {"": student, **beside(run.benchmark.test, student)}
    for name, view in method_class(run).test_views(run, model.student).items():
        first[name] = inference.from_test(view, run.benchmark.test)
    if model.teacher and run.benchmark.test.teacher:
        first["teacher"] = inference.from_test(model.teacher.predict, run.benchmark.test)

    with Recorder(run.classes) as recorder:
        matrices, images = count(run, sets[0], model.student, first, device, recorder=recorder, watcher=watcher)
        each = of_all_ranks(recorder.predictions())
    plain = scores.report(matrices[""], run.classes) | {"images": images}
    other: dict[str, Any] = {name: scores.means(m, run.classes) for name, m in matrices.items() if name}
    if matrices[""][len(run.classes)].any():  # beside it the easier test of some papers (docs/data.md)
        other["ignored"] = scores.means(confusion.without_others(matrices[""]), run.classes)
    for use in sets[1:]:
        matrix, images = count(run, use, model.student, {"": student}, device, watcher=watcher)
        other[f"{use.dataset}-{use.split}"] = scores.report(matrix[""], run.classes) | {"images": images}
    return Scored(sets[0], matrices[""], plain | {"other": other}, each)


def beside(test: Test, student: Predict) -> dict[str, Predict]:
    """The augmented pass that the test block asks for, under its name in `other`."""
    scaled = any(scale != 1.0 for scale in test.scales)
    if not (scaled or test.flip):
        return {}
    name = "-".join(word for word, wanted in (("multiscale", scaled), ("flip", test.flip)) if wanted)

    def predict(images: Tensor, size: tuple[int, int]) -> Tensor:
        return inference.augmented(student, images, size, scales=test.scales, flip=test.flip)

    return {name: predict}


def count(
    run: Run,
    use: Use,
    student: Segmenter,
    views: dict[str, Predict],
    device: torch.device,
    *,
    recorder: Recorder | None = None,
    watcher: Watcher | None = None,
) -> tuple[dict[str, Tensor], int]:
    """One confusion matrix for each view over a whole split (summed over ranks), and the number of images.

    `recorder` takes what this rank's images show in the view "".
    """
    prepared = find_prepared(run.benchmark_name, use)
    samples = samples_of(prepared, use)
    mine = samples[ranks.rank() :: ranks.world()]
    watch = watcher(f"{use.dataset}/{use.split}", len(mine), device) if watcher else None
    found = score_images(run, student, prepared, mine, device, views, recorder=recorder, watch=watch)
    matrices = {name: ranks.total(matrix).cpu() for name, matrix in found.items()}
    if not matrices[""][:-1].any():
        raise UserError(
            f"{use.dataset}/{use.split}: found {len(samples)} images without one pixel of the classes "
            f"{', '.join(run.classes.names)}; expected labels in them"
        )
    return matrices, len(samples)


def of_all_ranks(mine: list[Prediction]) -> list[Prediction]:
    """On the first rank all predictions in the order of the split, whose samples were dealt out one by one; else nothing."""
    if ranks.world() == 1:
        return mine
    parts: list[list[Prediction]] | None = [[] for _ in range(ranks.world())] if ranks.rank() == 0 else None
    dist.gather_object(mine, parts)
    if parts is None:
        return []
    return [part[turn] for turn in range(len(parts[0])) for part in parts if turn < len(part)]


@torch.inference_mode()
def score_images(
    run: Run,
    student: Segmenter,
    prepared: Prepared,
    samples: Sequence[Sample],
    device: torch.device,
    views: dict[str, Predict] | None = None,
    *,
    recorder: Recorder | None = None,
    watch: Watch | None = None,
) -> dict[str, Tensor]:
    """Count labelled samples in this process: one confusion matrix for each view, on the device.

    Args:
        run: gives class space, test mode and precision.
        student: on the device, in evaluation mode; normalises the images of all views.
        prepared, samples: what to score.
        device: where.
        views: what predicts, by name; the student as the test block says by default, under "".
        recorder: takes each image's result in the view "".
        watch: told how far it is.
    """
    views = views or {"": inference.from_test(student.predict, run.benchmark.test)}
    matrices = {name: confusion.empty(len(run.classes), device) for name in views}
    cast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and run.train.precision == "bf16")
    done = 0
    for images, label in batches(prepared, samples, run.classes, decoders(device), other=len(run.classes)):
        images, label = student.normalise(images.to(device)), label.to(device)
        for name, predict in views.items():
            with watch.network() if watch else nullcontext(), cast:
                logits = predict(images, (label.shape[-2], label.shape[-1]))
            found = confusion.most_likely(logits)
            by_image = confusion.by_image(found, label, len(run.classes))
            matrices[name] += by_image.sum(0)
            if recorder is not None and name == "":
                recorder.add(
                    [sample.name for sample in samples[done : done + len(images)]], found, scores.by_image(by_image)
                )
        done += len(images)
        if watch:
            watch.reached(done)
    return matrices


def write_results(run: Run, matrix: Tensor, metrics: dict[str, Any]) -> None:
    """metrics.json (scores only, so that equal runs give equal files) last, because its presence means done."""
    write_text(run.folder / "confusion.csv", confusion_csv(matrix, run.classes))
    rows = [{"class": name, "iou": value} for name, value in metrics["iou"].items()]
    write_json(run.folder / "iou.json", rows)
    write_json(run.folder / headline.NAME, headline.of(metrics))
    write_json(run.folder / "metrics.json", metrics)


def confusion_csv(matrix: Tensor, space: ClassSpace) -> str:
    """actual, predicted, pixels by class name; pixels that are not scored are left out, those of other classes are last if there are any."""
    others = [OTHER] if matrix[len(space)].any() else []
    counted = zip([*space.names, *others], matrix[: len(space) + len(others)].tolist(), strict=True)
    cells = [
        (actual, predicted, pixels)
        for actual, row in counted
        for predicted, pixels in zip(space.names, row, strict=True)
    ]
    return csv_text([("actual", "predicted", "pixels"), *cells])


def table(run: Run, use: Use, metrics: dict[str, Any]) -> str:
    """What a person wants to see at once."""
    flat = "  ".join(f"{key} {value:.2f}" for key, value in metrics.items() if key.startswith("miou"))
    width = max(map(len, run.classes.names))
    lines = [
        f"{run.benchmark_name} {run.method_name} seed {run.seed}: {metrics['images']} images of {use.dataset}/{use.split}",
        f"{flat}  pixel accuracy {metrics['pixel_accuracy']:.2f}  (%)",
        *(f"  {name:<{width}} {value:6.2f}" for name, value in metrics["iou"].items()),
    ]
    if metrics["absent"]:
        lines.append(f"  absent, not counted: {', '.join(metrics['absent'])}")
    lines += [f"{name}: miou {block['miou']:.2f}" for name, block in metrics["other"].items()]
    return "\n".join(lines)
