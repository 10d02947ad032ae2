"""Compare the methods of a benchmark over seeds, beside published numbers; copy the scores of the selected method.

Gains are paired: for each seed the difference to `self_training` of the same seed. Intervals are 95 % of Student's t over seeds; one
seed gives none. Beside them stands a paired bootstrap over the test images, where the scores of each are kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from udaseg import results, yaml12
from udaseg.artifacts import RECORD, csv_text, read_json, read_record, write_json, write_text, writing
from udaseg.comparison import checkpoints, published, tables
from udaseg.errors import UserError
from udaseg.params import Params, Run

REFERENCE = "self_training"
SELECTED = Path("results/selected")
REFERENCES = Path("results/reference")
RESAMPLES = 2000  # of the test images
Scores = dict[int, dict[str, Any]]  # seed -> metrics.json
Images = dict[int, dict[str, float]]  # seed -> image -> mIoU


def compare_benchmark(p: Params, benchmark: str, *, reference: bool = False) -> str:
    """Write results/<benchmark>/summary.{json,csv,md} from every method and seed of `run`.

    Args:
        p: the parameters.
        benchmark: its name.
        reference: below results/reference/ instead, from the methods and seeds that lie there.

    Returns:
        The text of summary.md.

    Raises:
        UserError: scores of a method and seed are missing or damaged; no labelled split; no reference results.
    """
    home, summary, p = summarised(p, benchmark, reference=reference)
    text = tables.markdown(summary, p)
    write_json(home / "summary.json", summary)
    write_text(home / "summary.csv", as_csv(summary))
    write_text(home / "summary.md", text)
    return text


def summarised(p: Params, benchmark: str, *, reference: bool) -> tuple[Path, dict[str, Any], Params]:
    """Where the summary belongs, its content, and the parameters with the protocol of what it is over. As `compare_benchmark`."""
    tables.test_split(p, benchmark)
    home = REFERENCES / benchmark if reference else Path("results") / benchmark
    seeds = seeds_below(p, home) if reference else {method: p.run.seeds for method in p.run.methods}
    if not seeds:
        raise UserError(f"{home}: found no results, expected some; `udaseg import-run RUN --reference` puts them there")
    if reference:
        p = dataclasses.replace(p, run=dataclasses.replace(p.run, protocol=protocol_below(home, seeds)))
    scores = {
        method: {seed: read_metrics(home, p.resolve(benchmark, method, seed)) for seed in numbers}
        for method, numbers in seeds.items()
    }
    images = {
        method: {seed: found for seed in numbers if (found := read_images(home, p.resolve(benchmark, method, seed)))}
        for method, numbers in seeds.items()
    }
    base = scores.get(REFERENCE)
    old = superseded(benchmark) if reference else {}
    summary = {
        "benchmark": benchmark,
        "protocol": p.run.protocol,
        "seeds": sorted({seed for numbers in seeds.values() for seed in numbers}),
        "reference": REFERENCE if base else None,
        "methods": {
            method: summarise(metrics, None if method == REFERENCE else base)
            | {"over_off": paired(metrics, scores.get(twin(p, benchmark, method, list(scores)) or ""))}
            | ({"images": over} if (over := of_images(method, images)) else {})
            | {"published": published.lookup(method, benchmark, p.benchmarks[benchmark])}
            | ({"superseded": old[method]} if method in old else {})
            for method, metrics in scores.items()
        },
    }
    if beside := {} if reference else checkpoints.rows(p, benchmark):
        summary["checkpoints"] = beside
    return home, summary, p


def read_summary(p: Params, benchmark: str, *, reference: bool = False) -> dict[str, Any]:
    """summary.json, if it is about the methods and seeds of params.yaml and says what their scores say; methods in their order.

    Raises:
        UserError: missing, damaged, of other methods or seeds, or with another number than the scores give.
    """
    path = (REFERENCES if reference else Path("results")) / benchmark / "summary.json"
    again = f"udaseg compare --benchmark {benchmark}{' --reference' if reference else ''}"
    found = read_json(path, "the comparison of methods", again)
    methods, seeds = found.get("methods"), found.get("seeds")
    if not (isinstance(methods, dict) and isinstance(seeds, list) and all(isinstance(seed, int) for seed in seeds)):
        raise UserError(f"{path}: found no comparison in it, expected methods and seeds; run `{again}` again")
    if not reference and (set(methods), set(seeds)) != (set(p.run.methods), set(p.run.seeds)):
        raise UserError(
            f"{path}: found methods {', '.join(methods)} with seeds {', '.join(map(str, seeds))}, expected those of "
            f"`run` in params.yaml; run `{again}` again"
        )
    home, expected, _ = summarised(p, benchmark, reference=reference)
    for method, block in expected["methods"].items():  # git keeps the scores, not those of each image
        told = methods[method].get("images") if isinstance(methods.get(method), dict) else None
        if "images" not in block and is_interval(told) and not any(home.glob(f"{method}/seed*/images.csv")):
            block["images"] = told
    if difference := next(differences(found, json.loads(json.dumps(expected))), None):
        raise UserError(f"{path}: {difference} by the scores that it stands on; run `{again}` again")
    return expected


def is_interval(value: Any) -> bool:
    """Whether a value of a summary is what `resampled` makes."""
    if not (isinstance(value, dict) and value.keys() == {"mean", "n", "ci95"} and isinstance(value["ci95"], list)):
        return False
    numbers = [value["mean"], value["n"], *value["ci95"]]
    return len(numbers) == 4 and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where two JSON values differ, numbers by more than their last digit."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in expected | found:
            yield from differences(found.get(key), expected.get(key), f"{where}.{key}" if where else key)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for k, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{where}[{k}]")
    elif not same(found, expected):
        yield f"{where}: found {results.shown(found)}, expected {results.shown(expected)}"


def same(one: Any, other: Any) -> bool:
    numbers = [isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other)]
    return abs(one - other) <= results.ROUNDING if all(numbers) else one == other and type(one) is type(other)


def superseded(benchmark: str) -> dict[str, str]:
    """Method -> correction that its committed results were made before: results/reference/superseded.yaml.

    Raises:
        UserError: no YAML, or of another layout.
    """
    path = REFERENCES / "superseded.yaml"
    table = (yaml12.read(path) or {}) if path.exists() else {}
    rows = (table.get(benchmark) or {}) if isinstance(table, dict) else None
    if not isinstance(rows, dict) or not all(
        isinstance(methods, list) and all(isinstance(name, str) for name in methods) for methods in rows.values()
    ):
        raise UserError(
            f"{path}: expected for each benchmark a block of lists, as in `streets: {{K3: [self_training]}}`; mend it"
        )
    return {method: str(correction) for correction, methods in rows.items() for method in methods}


def seeds_below(p: Params, home: Path) -> dict[str, tuple[int, ...]]:
    """The seeds of each method that have scores below `home`; in the order of run.methods, variants after their method."""
    order = list(p.run.methods)
    kinds = {method: method.partition("-")[0] for method in p.methods}
    methods = sorted(p.methods, key=lambda m: (order.index(kinds[m]) if kinds[m] in order else len(order), m))
    seeds = {method: [path.parent.name[4:] for path in home.glob(f"{method}/seed*/metrics.json")] for method in methods}
    return {m: tuple(sorted(int(seed) for seed in found if seed.isdigit())) for m, found in seeds.items() if found}


def protocol_below(home: Path, seeds: Mapping[str, Sequence[int]]) -> Literal["matched", "native"]:
    """The protocol of the runs of each method and seed below `home`, whatever params.yaml says now.

    Raises:
        UserError: a record is missing or damaged, or there are both.
    """
    records = [home / method / f"seed{seed}" / RECORD for method, numbers in seeds.items() for seed in numbers]
    found = {read_record(path).get("protocol"): path for path in records}
    if len(found) > 1 or not found.keys() <= {"matched", "native"}:
        said = ", ".join(f"{protocol} in {path}" for protocol, path in found.items())
        raise UserError(
            f"{home}: found protocol {said}, expected matched or native and one for all; keep the others elsewhere"
        )
    return cast(Literal["matched", "native"], next(iter(found)))


def read_metrics(home: Path, run: Run) -> dict[str, Any]:
    return results.metrics(run, home / run.method_name / f"seed{run.seed}")


def read_images(home: Path, run: Run) -> dict[str, float]:
    """mIoU of each test image; nothing where it is not kept, as with some committed runs."""
    folder = home / run.method_name / f"seed{run.seed}"
    return results.image_scores(run, folder) if (folder / "images.csv").exists() else {}


def summarise(seeds: Scores, reference: Scores | None) -> dict[str, Any]:
    """One method over its seeds. All in percent; `gain` is None without a reference.

    Args:
        seeds: the method's scores.
        reference: the scores of the method that gains are measured against.
    """
    flat = sorted({key for metrics in seeds.values() for key in metrics if key.startswith("miou")})
    other = sorted({name for metrics in seeds.values() for name in metrics.get("other", {})})
    classes = sorted({name for metrics in seeds.values() for name in metrics["iou"]})
    return {
        **{key: spread([m[key] for m in seeds.values() if key in m]) for key in flat},
        "gain": paired(seeds, reference),
        "iou": {name: mean([m["iou"][name] for m in seeds.values() if name in m["iou"]]) for name in classes},
        "other": {
            name: {"miou": spread([m["other"][name]["miou"] for m in seeds.values() if name in m.get("other", {})])}
            for name in other
        },
    }


def twin(p: Params, benchmark: str, method: str, among: Sequence[str]) -> str | None:
    """The method `among` others with the same recipe without contrast, whatever its name; None for one without contrast itself.

    `sepico-night_off` of `sepico-night`, `self_training` of `pipa`; nothing of a recipe that differs in its step too.
    """

    if not p.methods[method].contrasts:
        return None
    ours = p.resolve(benchmark, method, 0).uncontrasted
    others = sorted(
        (m for m in among if not p.methods[m].contrasts), key=lambda m: not m.startswith(method.split("-")[0])
    )
    return next((other for other in others if p.resolve(benchmark, other, 0).uncontrasted == ours), None)


def paired(seeds: Scores, reference: Scores | None) -> dict[str, Any] | None:
    """Differences to the scores of the same seed; None where there are none, or all are with itself."""
    if reference is None or reference is seeds:
        return None
    pairs = [metrics["miou"] - reference[seed]["miou"] for seed, metrics in seeds.items() if seed in reference]
    return spread(pairs) | {"p": paired_p(pairs)} if pairs else None


def of_images(method: str, images: dict[str, Images]) -> dict[str, Any] | None:
    return None if method == REFERENCE else resampled(images[method], images.get(REFERENCE, {}))


def resampled(ours: Images, reference: Images) -> dict[str, Any] | None:
    """How far other test images would move a gain: paired bootstrap over images (percentiles), the seeds as they are.

    The mean over images of the difference of their mIoU, which is another number than the gain of the mIoU over all pixels.
    None without two images that runs of one seed share.
    """
    import numpy as np

    seeds = sorted(seed for seed in ours if ours[seed].keys() == reference.get(seed, {}).keys())
    if not seeds:
        return None
    names = list(ours[seeds[0]])
    if any(ours[seed].keys() != ours[seeds[0]].keys() for seed in seeds):
        return None
    gaps = np.array([[ours[seed][name] - reference[seed][name] for name in names] for seed in seeds]).mean(0)
    gaps = gaps[np.isfinite(gaps)]  # an image without a scored pixel
    if len(gaps) < 2:
        return None
    draws = np.random.default_rng(0).integers(len(gaps), size=(RESAMPLES, len(gaps)))
    low, high = np.percentile(gaps[draws].mean(1), [2.5, 97.5])
    return {"mean": mean(gaps.tolist()), "n": len(gaps), "ci95": [round(float(low), 4), round(float(high), 4)]}


def mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 4)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, number and 95 % t-interval [low, high]; the middle two need two values."""
    n, centre = len(values), math.fsum(values) / len(values)
    if n == 1:
        return {"mean": round(centre, 4), "std": None, "n": 1, "ci95": None}
    std = deviation(values)
    half = quantile(n - 1) * std / math.sqrt(n)
    return {
        "mean": round(centre, 4),
        "std": round(std, 4),
        "n": n,
        "ci95": [round(centre - half, 4), round(centre + half, 4)],
    }


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1)."""
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test; None for one pair, or for differences without spread, where t has no value."""
    from scipy.special import stdtr

    n = len(differences)
    if n < 2 or deviation(differences) == 0:
        return None
    t = math.fsum(differences) / n / (deviation(differences) / math.sqrt(n))
    return round(2 * float(stdtr(n - 1, -abs(t))), 6)


def as_csv(summary: dict[str, Any]) -> str:
    """One row for each method; empty where there is no value."""
    blocks = summary["methods"]
    flat = sorted({key for block in blocks.values() for key in block if key.startswith("miou")})
    classes = list(dict.fromkeys(name for block in blocks.values() for name in block["iou"]))
    keys = [*flat, "gain"]
    head = [f"{key}_{part}" for key in keys for part in ("mean", "std", "n", "low", "high")]
    rows: list[list[Any]] = [
        ["method", *head, "gain_p", "published", "published_backbone", *(f"iou.{c}" for c in classes)]
    ]
    for method, block in blocks.items():
        paper = block["published"] or {}
        cells = [cell for key in keys for cell in spread_cells(block.get(key))]
        p = (block["gain"] or {}).get("p")
        ious = [block["iou"].get(name) for name in classes]
        rows.append([method, *cells, p, paper.get("miou"), paper.get("backbone"), *ious])
    return csv_text(rows)


def spread_cells(value: dict[str, Any] | None) -> list[float | None]:
    if value is None:
        return [None] * 5
    return [value["mean"], value["std"], value["n"], *(value["ci95"] or [None, None])]


def select(p: Params) -> Path:
    """Copy the selected method's scores (first seed) to results/selected/: fixed paths, so that DVC shows what changed.

    Raises:
        UserError: the run is not trained or not scored, or one of its files is damaged.
    """
    run = p.resolve(p.select.benchmark, p.select.method, p.run.seeds[0])
    steps = {
        "history.csv": "train",
        "analysis.json": "analyse",
        "iou.json": "evaluate",
        "confusion.csv": "evaluate",
        "headline.json": "evaluate",
        "metrics.json": "evaluate",
    }
    for name, step in steps.items():
        if not (run.folder / name).exists():
            raise UserError(f"{run.folder / name}: not found; run `{run.command(step)}` first")
    results.metrics(run), results.analysis(run), results.history(run)
    for name in steps:
        with writing(SELECTED / name) as temporary:
            shutil.copyfile(run.folder / name, temporary)
    return SELECTED / "metrics.json"
