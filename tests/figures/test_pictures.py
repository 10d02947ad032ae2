"""Which images are shown, and what is shown of them."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from fake_runs import MakeRuns, texts

from udaseg import colours, results
from udaseg.data.prepared import find_prepared
from udaseg.errors import UserError
from udaseg.figures import pictures
from udaseg.figures.pictures import choose, subject_of
from udaseg.params import Select, uses

NAN = math.nan


@pytest.mark.parametrize(
    ("differences", "chosen"),
    [
        ([1.0, -2.0, 5.0, 0.0, 3.0], [("largest loss", "1"), ("median", "0"), ("largest gain", "2")]),
        ([1.0, -2.0, 5.0, 0.0], [("largest loss", "1"), ("median", "3"), ("largest gain", "2")]),
        ([4.0, 4.0, 1.0, 1.0, 2.0], [("smallest gain", "2"), ("median", "4"), ("largest gain", "0")]),
        ([-3.0, -1.0, -2.0], [("largest loss", "0"), ("median", "2"), ("smallest loss", "1")]),
        ([NAN, 1.0, 2.0, NAN], [("smallest gain", "1"), ("largest gain", "2")]),
        ([3.0], [("smallest gain", "0")]),
    ],
)
def test_the_rule(differences: list[float], chosen: list[tuple[str, str]]) -> None:
    scores = {str(k): 50 + value for k, value in enumerate(differences)}
    found = choose(scores, dict.fromkeys(scores, 50.0))
    assert [(rule, image) for rule, image, _ in found] == chosen
    assert [value for *_, value in found] == [differences[int(image)] for _, image in chosen]


def test_without_a_baseline_the_score_decides() -> None:
    assert choose({"a": 3.0, "b": 9.0, "c": 4.0}, None) == [
        ("lowest", "a", 3.0),
        ("median", "c", 4.0),
        ("highest", "b", 9.0),
    ]


def test_whose_gain_decides(make_runs: MakeRuns) -> None:
    scores = {"source_only": {"a": 90.0}, "self_training": {"a": 1.0}, "bcl": {"a": 2.0}, "plca": {"a": 3.0}}
    p = make_runs(("self_training", "bcl"))
    selected = dataclasses.replace(p, select=Select("streets", "bcl"))
    assert subject_of(selected, "streets", scores) == ("bcl", "self_training")
    assert subject_of(selected, "another", scores) == ("plca", "self_training")  # the best that is no reference
    del scores["bcl"]
    assert subject_of(selected, "streets", scores) == ("plca", "self_training")
    del scores["plca"]
    assert subject_of(selected, "streets", scores) == ("source_only", "self_training")
    assert subject_of(selected, "streets", {"self_training": {"a": 1.0}}) == ("self_training", None)
    assert subject_of(selected, "streets", {"oracle": {"a": 1.0}}) == ("oracle", None)


def test_image_truth_predictions_and_errors(make_runs: MakeRuns) -> None:
    p = make_runs()
    figure = pictures.qualitative(p, "streets")
    runs = [p.resolve("streets", method, 0) for method in p.run.methods]
    scores = {run.method_name: results.image_scores(run) for run in runs}
    expected = choose(scores["sepico"], scores["self_training"])  # no reference but sepico: it decides
    titles = [f"{image}\n{rule}: {value:+.1f}".replace("-", "−") for rule, image, value in expected]
    assert set(titles) <= set(texts(figure))
    assert f"mIoU {scores['sepico'][expected[0][1]]:.1f}" in texts(figure)

    use = uses(p.benchmarks["streets"])[-1]
    prepared = find_prepared("streets", use)
    sample = next(s for s in prepared.samples(use.split) if s.name == expected[0][1])
    truth, palette = prepared.label(sample), colours.table(runs[0].classes)
    shown = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    assert len(shown) == 4 * 6  # image and truth, three methods; three pairs of columns
    np.testing.assert_array_equal(shown[0], prepared.image(sample))
    np.testing.assert_array_equal(shown[1], palette[truth])
    found = results.prediction(runs[2], sample.name)
    np.testing.assert_array_equal(shown[18], palette[found])
    right, wrong, void = pictures.ERRORS.values()
    errors = np.where((found == truth)[..., None], right, wrong)
    errors[truth == 255] = void
    np.testing.assert_array_equal(shown[19], errors)


def test_images_csv_that_is_missing_or_damaged_is_told(make_runs: MakeRuns) -> None:
    p = make_runs()
    path = Path("results/streets/sepico/seed0/images.csv")
    good = path.read_text()
    with path.open() as handle:
        rows = list(csv.reader(handle))
    first = good.splitlines()[1]
    again = "run `udaseg evaluate --benchmark streets --method sepico --seed 0` again"
    for text, what in (
        ("", "no row"),
        ("image,score\na,1\n", "no column miou"),
        (good.replace(first, first.rpartition(",")[0]), "a row of another length"),
        (good.replace(rows[1][1], "much"), "found 'much', expected a number"),
        (good.replace(first + "\n", ""), "[0-9]+ rows of [0-9]+ images, metrics.json has [0-9]+"),
        (
            good.replace(first, first.replace(rows[1][1], "101.0")),
            f"{rows[1][0]}: miou: found 101.0, expected 0 to 100",
        ),
        (good.replace(rows[1][0], "elsewhere"), "other images than in that of source_only"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"images.csv: damaged \({what}\); {again}"):
            pictures.qualitative(p, "streets")
    path.unlink()
    with pytest.raises(UserError, match=r"images.csv: not found; .*run `udaseg evaluate"):
        pictures.qualitative(p, "streets")


def test_predictions_that_are_missing_or_damaged_are_told(make_runs: MakeRuns) -> None:
    p = make_runs()
    path = Path("results/streets/sepico/seed0/predictions.zip")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"predictions.zip: damaged .*; run `udaseg evaluate .* again"):
        pictures.qualitative(p, "streets")
    path.unlink()
    with pytest.raises(UserError, match=r"predictions.zip: not found; run `udaseg evaluate"):
        pictures.qualitative(p, "streets")
