"""Evidence from committed runs: correlations with intervals, what pulled in training, verdicts that can say no."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from udaseg import cli, params
from udaseg.comparison import evidence
from udaseg.comparison.evidence import MEASURES, Seen, correlations, rank_correlation, training, verdict
from udaseg.figures import style
from udaseg.figures.evidence import training as training_figure

ROOT = Path(__file__).resolve().parents[2]


def seen(
    method: str, seed: int, miou: float, looks: dict[str, list[tuple[int, float]]] | None = None, **measures: float
) -> Seen:
    return Seen(method, seed, miou, measures, looks or {})


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    pairs = np.random.default_rng(3).normal(size=(20, 2)).round(1)  # with ties
    assert rank_correlation(pairs) == pytest.approx(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
    assert np.isnan(rank_correlation(np.array([[1.0, 2.0], [1.0, 3.0]])))


def test_a_claim_needs_an_interval_without_0_and_the_right_sign() -> None:
    assert verdict(+1, 0.1, 0.9) == "holds" and verdict(-1, -0.9, -0.1) == "holds"
    assert verdict(-1, 0.1, 0.9) == "the opposite" and verdict(+1, -0.9, -0.1) == "the opposite"
    assert verdict(+1, -0.1, 0.9) == verdict(-1, -0.9, 0.1) == verdict(+1, 0.0, 0.5) == "noise"


def test_many_seeds_of_few_methods_are_few_witnesses() -> None:
    rng = np.random.default_rng(1)
    few = [seen(f"m{m}", s, 30 + m + rng.normal() / 9, compactness=float(m)) for m in range(9) for s in range(50)]
    assert correlations(few) == {}
    many = [seen(f"m{m}", s, 30 + m + rng.normal() / 9, compactness=float(m)) for m in range(12) for s in range(2)]
    block = correlations(many)["compactness"]
    assert block["spearman"] > 0.95 and block["claim"] == "holds" and block["runs"] == 24 and block["methods"] == 12
    loose = [seen(f"m{m}", 0, 30 - m, intra_variance=float(m), separation=rng.normal()) for m in range(12)]
    found = correlations(loose)
    assert found["intra_variance"]["claim"] == "holds" and found["separation"]["claim"] == "noise"
    assert correlations(loose) == found  # the same draws every time


def test_training_is_told_of_its_second_half_and_over_seeds() -> None:
    def looks(scale: float) -> dict[str, list[tuple[int, float]]]:
        steps = [(100, 9.0), (200, 9.0), (300, scale), (400, 3 * scale)]
        return {
            "gradient/pipa_patch": steps,
            "cosine/pipa_patch": [(s, -v / 10) for s, v in steps],
            "validation/student": steps,
        }

    runs = [seen("pipa", 0, 30, looks(1.0)), seen("pipa", 1, 30, looks(2.0)), seen("oracle", 0, 40)]
    found = dict(training(runs))
    assert found == {"pipa": {"seeds": 2, "gradient/pipa_patch": 3.0, "cosine/pipa_patch": -0.3}}
    text = evidence.markdown("streets", {"features": {}, "training": found})
    assert "| pipa   | pipa_patch |" in text and "3.000" in text and "-0.300" in text


def test_everything_comes_from_the_committed_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers, table and pictures of a benchmark; a look that is written into a history is found in both."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "results/reference/camvid_day2dusk", tmp_path / "results/reference/camvid_day2dusk")
    monkeypatch.chdir(tmp_path)
    home = Path("results/reference/camvid_day2dusk")
    history = home / "cluda/seed0/history.csv"
    with history.open() as handle:
        rows = list(csv.DictReader(handle))
    for row in rows[::4]:
        row |= {
            "gradient/cluda_source": "0.5",
            "cosine/cluda_source": "0.25",
            "labels/sure_right": "80",
            "labels/right": "70",
        }
        row |= {"labels/sure": "50"}
    with history.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    record = json.loads((history.parent / "run.json").read_text())
    if record.pop("history_hash", None):
        (history.parent / "run.json").write_text(json.dumps(record))
    assert cli.main(["compare", "--benchmark", "camvid_day2dusk", "--reference"]) == 0
    found = json.loads((home / "evidence.json").read_text())
    assert found["training"]["cluda"]["gradient/cluda_source"] == 0.5
    assert set(found["features"]) == set(MEASURES)
    text = (home / "evidence.md").read_text()
    assert "cluda_source" in text and "70.0" in text
    for name in ("features", "training"):
        assert (home / f"evidence-{name}.png").stat().st_size > 10_000
    runs = evidence.runs_of(params.load(), "camvid_day2dusk")
    with style.style():
        figure = training_figure(runs)
        figure.canvas.draw()
    ticks = [text.get_text() for axis in figure.axes for text in axis.get_yticklabels()]
    assert ticks and not any("$" in text for text in ticks)
    assert len(runs) == found["features"]["compactness"]["runs"] + sum(not run.measures for run in runs)

    history.write_text(history.read_text().replace("0.5", "half", 1))
    capsys.readouterr()
    assert cli.main(["compare", "--benchmark", "camvid_day2dusk", "--reference"]) == 2
    assert "history.csv" in capsys.readouterr().err
