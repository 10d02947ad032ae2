"""What committed runs say about the papers' claims: do tighter features score better, how hard does contrast pull, are labels right?

Everything comes from results/reference/ (analysis.json, metrics.json, history.csv), whatever params.yaml wants now. No claim
without an interval: correlations are resampled by method, since runs of one method are no independent witnesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udaseg import results
from udaseg.artifacts import write_json, write_text
from udaseg.comparison import compare, tables
from udaseg.engine.history import only_looks
from udaseg.params import Params, Run

MEASURES = {  # of analysis.json, and what the papers expect of the score when it grows
    "intra_variance": -1,
    "compactness": +1,
    "separation": +1,
    "fisher_ratio": +1,
    "pdd_difference": +1,
    "silhouette": +1,
    "domain_gap": -1,
    "knn": +1,
    "knn_from_source": +1,
}
RESAMPLES = 2000
FEWEST = 10  # methods that a correlation needs: of fewer, draws with replacement say little


@dataclass(frozen=True)
class Seen:
    """One committed run: its score, its measures of features, and what looks at its training saw (column -> [(step, value)])."""

    method: str
    seed: int
    miou: float
    measures: dict[str, float]
    looks: dict[str, list[tuple[int, float]]]


def write_evidence(p: Params, benchmark: str) -> str:
    """Write results/reference/<benchmark>/evidence.{json,md}; returns the text.

    Raises:
        UserError: no reference results, or damaged ones.
    """
    found = of_runs(runs_of(p, benchmark))
    text = markdown(benchmark, found)
    write_json(compare.REFERENCES / benchmark / "evidence.json", found)
    write_text(compare.REFERENCES / benchmark / "evidence.md", text)
    return text


def runs_of(p: Params, benchmark: str) -> list[Seen]:
    """The committed runs of a benchmark, methods in the order of its table."""
    home = compare.REFERENCES / benchmark
    return [
        seen(p.resolve(benchmark, method, seed), home / method / f"seed{seed}")
        for method, seeds in compare.seeds_below(p, home).items()
        for seed in seeds
    ]


def seen(run: Run, folder: Path) -> Seen:
    measured = results.analysis(run, folder) if (folder / "analysis.json").exists() else {}
    history = results.history(run, folder)
    looks = {
        name: [
            (int(step), float(value)) for step, value in zip(history["step"], column, strict=True) if np.isfinite(value)
        ]
        for name, column in history.items()
        if only_looks(name)
    }
    values = {key: float(measured[key]) for key in MEASURES if isinstance(measured.get(key), int | float)}
    return Seen(run.method_name, run.seed, results.metrics(run, folder)["miou"], values, looks)


def of_runs(runs: Sequence[Seen]) -> dict[str, Any]:
    """`features`: measure -> rank correlation with the score; `training`: method -> means over seeds of what was seen in it."""
    return {"features": correlations(runs), "training": dict(training(runs))}


def correlations(runs: Sequence[Seen]) -> dict[str, Any]:
    """Spearman's rank correlation of each measure with mIoU over all runs; 95 % interval from methods drawn with replacement."""
    found = {}
    for key, expected in MEASURES.items():
        pairs = [(run.method, run.measures[key], run.miou) for run in runs if key in run.measures]
        methods = sorted({method for method, _, _ in pairs})
        if len(methods) < FEWEST:
            continue
        groups = [np.array([(x, y) for method, x, y in pairs if method == name]) for name in methods]
        rng = np.random.default_rng(0)
        draws = [
            rank_correlation(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]))
            for _ in range(RESAMPLES)
        ]
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        value = rank_correlation(np.concatenate(groups))
        found[key] = {
            "spearman": rounded(value),
            "ci95": [rounded(low), rounded(high)],
            "runs": len(pairs),
            "methods": len(methods),
            "papers_expect": expected,
            "claim": verdict(expected, float(low), float(high)),
        }
    return found


def rank_correlation(pairs: np.ndarray) -> float:
    """Spearman's of (N, 2); NaN where one side does not vary."""
    from scipy.stats import rankdata

    x, y = (rankdata(side) for side in pairs.T)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def verdict(expected: int, low: float, high: float) -> str:
    """What an interval says about a claim: holds, does not (the opposite), or noise."""
    if low <= 0 <= high:
        return "noise"
    return "holds" if (low > 0) == (expected > 0) else "the opposite"


def training(runs: Sequence[Seen]) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each method that was looked at: means over its seeds and over the second half of the training."""
    for method in dict.fromkeys(run.method for run in runs):
        several = [run for run in runs if run.method == method and run.looks]
        if not several:
            continue
        names = sorted({name for run in several for name in run.looks if not name.startswith("validation/")})
        yield (
            method,
            {"seeds": len(several)}
            | {
                name: rounded(np.mean([late_mean(run.looks[name]) for run in several if name in run.looks]))
                for name in names
            },
        )


def late_mean(values: Sequence[tuple[int, float]]) -> float:
    half = values[-1][0] / 2
    return float(np.mean([value for step, value in values if step > half]))


def rounded(value: Any) -> float:
    return round(float(value), 4)


def markdown(benchmark: str, found: dict[str, Any]) -> str:
    """Two tables: features against score, and what pulled in training."""
    lines = [f"# Evidence from {benchmark}", ""]
    if found["features"]:
        rows = [
            [
                key,
                "higher" if block["papers_expect"] > 0 else "lower",
                f"{block['spearman']:+.2f} [{block['ci95'][0]:+.2f}, {block['ci95'][1]:+.2f}]",
                str(block["runs"]),
                block["claim"],
            ]
            for key, block in found["features"].items()
        ]
        lines += tables.aligned(
            ["measure", "said to be better", "rank correlation with mIoU [95 %]", "runs", "claim"], rows
        )
        lines += ["", "Interval: methods drawn with replacement, 2000 times. Noise: it holds 0.", ""]
    contrast = list(pulls(found["training"]))
    if contrast:
        lines += tables.aligned(["method", "loss", "gradient / cross-entropy's", "cosine to it", "seeds"], contrast)
        lines += ["", "Means over the second half of the training and over seeds.", ""]
    labels = [
        [method, *(f"{block[f'labels/{key}']:.1f}" for key in ("right", "sure", "sure_right")), str(block["seeds"])]
        for method, block in found["training"].items()
        if "labels/right" in block
    ]
    if labels:
        header = ["method", "labels right (%)", "sure (%)", "of these right (%)", "seeds"]
        lines += tables.aligned(header, labels)
        lines += ["", "The teacher's labels of 64 target images against the truth, which no training sees.", ""]
    return "\n".join(lines)


def pulls(found: dict[str, Any]) -> Iterator[list[str]]:
    for method, block in found.items():
        for name, norm in block.items():
            loss = name.removeprefix("gradient/")
            if name != loss and (cosine := block.get(f"cosine/{loss}")) is not None:
                yield [method, loss, f"{norm:.3f}", f"{cosine:+.3f}", str(block["seeds"])]
