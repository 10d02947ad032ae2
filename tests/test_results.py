"""What runs left behind is believed only where it is whole and agrees with itself."""

from __future__ import annotations

import copy
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_project import RAW
from udaseg import params, results
from udaseg.artifacts import cell_text, csv_text, file_hash, read_json, write_json, write_text
from udaseg.errors import UserError
from udaseg.params import Run

CLASSES = ("=1+1", "@road", "-sky", "+x", "'quoted")
COUNTS = np.array([[80, 10, 0, 10, 0], [5, 60, 5, 0, 0], [0, 0, 0, 0, 0], [20, 0, 0, 30, 0], [0, 0, 0, 0, 0]])


@functools.cache
def resolved() -> Run:
    raw = copy.deepcopy(RAW)
    raw["benchmarks"]["streets"]["classes"] = list(CLASSES)
    return params.parse(raw).resolve("streets", "self_training", 0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A scored and analysed run, whose counts are the matrix above; its last class is in neither truth nor prediction."""
    monkeypatch.chdir(tmp_path)
    found = resolved()
    rows = [(a, b, int(COUNTS[i, j])) for i, a in enumerate(CLASSES) for j, b in enumerate(CLASSES)]
    write_text(found.folder / "confusion.csv", csv_text([("actual", "predicted", "pixels"), *rows]))
    hit = np.diagonal(COUNTS)
    union = COUNTS.sum(0) + COUNTS.sum(1) - hit
    iou = {name: round(100 * h / u, 4) for name, h, u in zip(CLASSES, hit.tolist(), union.tolist(), strict=True) if u}
    scores = {"miou": round(sum(iou.values()) / len(iou), 4), "iou": iou, "absent": ["'quoted"], "images": 2}
    scores |= {"pixels": 220, "pixel_accuracy": round(100 * 170 / 220, 4), "other": {"teacher": {"miou": 50.0}}}
    write_json(found.folder / "metrics.json", scores)
    write_json(found.folder / "headline.json", {"miou": scores["miou"], "other": {"teacher": 50.0}})
    write_json(found.folder / "iou.json", [{"class": name, "iou": value} for name, value in iou.items()])
    write_text(
        found.folder / "images.csv",
        csv_text([("image", "miou", "pixel_accuracy"), ("=a", 50.0, 60.0), ("b", None, None)]),
    )
    step = found.train.steps
    write_text(found.folder / "history.csv", f"step,learning_rate,source,late\n1,0.1,0.5,\n{step},0.1,0.4,0.2\n")
    by_class = {"=1+1": {"cells": 3, "pdd": 0.5}, "@road": {"cells": 3, "pdd": 0.7}}
    write_json(
        found.folder / "analysis.json",
        {"pdd": 0.6, "knn": 40.0, "cells": 6, "classes": 2, "class": by_class, "left_out": []},
    )
    label = np.array([0, 1, 0, 1], np.uint8)
    np.savez(found.folder / "tsne.npz", map=np.zeros((4, 2), np.float32), label=label, domain=label)
    return found


READERS: dict[str, Callable[[Run], Any]] = {
    "metrics.json": results.metrics,
    "iou.json": results.metrics,
    "headline.json": results.metrics,
    "confusion.csv": results.confusion,
    "images.csv": results.image_scores,
    "history.csv": results.history,
    "analysis.json": results.analysis,
    "tsne.npz": results.tsne,
    "run.json": results.record,
    "predictions.zip": lambda run: results.prediction(run, "b"),
}
STEPS = {"analysis.json": "analyse", "tsne.npz": "analyse", "history.csv": "train", "run.json": "train"}


def refused(run: Run, name: str, read: Callable[[Run], Any] | None = None) -> str:
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        (read or READERS[name])(run)
    assert time.process_time() - began < 5
    message = str(caught.value)
    assert name in message and run.command(STEPS.get(name, "evaluate")) in message and "\n" not in message
    return message


def test_whole_files_are_read_and_names_come_back(run: Run) -> None:
    assert results.metrics(run)["miou"] == pytest.approx(np.mean([64.0, 75.0, 0.0, 50.0]), abs=1e-4)
    assert (results.confusion(run) == COUNTS).all()
    assert list(results.image_scores(run)) == ["=a", "b"]
    assert results.history(run)["step"].tolist() == [1, run.train.steps]
    assert results.analysis(run)["pdd"] == 0.6 and len(results.tsne(run)[1]) == 4 and results.record(run) is None


FORGED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another mean": ("metrics.json", {"miou": 77.7}, "miou: found 77.7, but the mean of its classes' IoU is 47.25"),
    "above all": ("metrics.json", {"miou": 1234.5}, "miou: found 1234.5, expected 0 to 100"),
    "below": ("metrics.json", {"pixel_accuracy": -1.0}, "pixel_accuracy: found -1.0, expected 0 to 100"),
    "text": ("metrics.json", {"miou": "47"}, "miou: found '47', expected a number"),
    "truth": ("metrics.json", {"miou": True}, "miou: found True, expected a number"),
    "no scores": ("metrics.json", {"iou": None}, "iou: found None, expected a block"),
    "half an image": ("metrics.json", {"images": 1.5}, "images: found 1.5, expected a count"),
    "other pixels": ("metrics.json", {"pixels": 221}, "of 221 pixels, but confusion.csv beside it says 77.2727 of 220"),
    "accuracy": ("metrics.json", {"pixel_accuracy": 99.0}, "found pixel accuracy 99.0"),
    "present": ("metrics.json", {"absent": []}, "absent: found"),
    "another list": ("metrics.json", {"miou19": 1.0}, "miou19: no mean of this class list"),
    "other": ("metrics.json", {"other": {"teacher": {"miou": 101.0}}}, "other.teacher: miou: found 101.0"),
    "other is a list": ("metrics.json", {"other": []}, "other: found [], expected a block"),
    "a headline": ("headline.json", {"miou": 99.0}, "other numbers than in metrics.json beside it"),
    "a headline without its teacher": ("headline.json", {"other": {}}, "other numbers than in metrics.json beside it"),
    "a measure": ("analysis.json", {"pdd": 0.9}, "pdd: found 0.9, but the mean of its classes is 0.6"),
    "a probe": ("analysis.json", {"knn": 100.5}, "knn: found 100.5, expected 0 to 100"),
    "measures of others": ("analysis.json", {"class": {"dog": {}}}, "found the class 'dog'"),
    "a list left out": ("analysis.json", {"left_out": 7}, "found the class 7"),
    "text for a measure": ("analysis.json", {"silhouette": "high"}, "silhouette: found 'high', expected a number"),
}


@pytest.mark.parametrize("case", FORGED)
def test_numbers_that_contradict_are_refused(run: Run, case: str) -> None:
    name, values, said = FORGED[case]
    path = run.folder / name
    write_json(path, json.loads(path.read_text()) | values)
    assert said in refused(run, name)


def test_scores_that_agree_with_themselves_but_not_with_the_counts(run: Run) -> None:
    path = run.folder / "metrics.json"
    found = json.loads(path.read_text())
    iou = found["iou"] | {"=1+1": found["iou"]["@road"], "@road": found["iou"]["=1+1"]}
    write_json(path, found | {"iou": iou})
    assert "iou.=1+1: found 75.0, but confusion.csv beside it says 64.0" in refused(run, "metrics.json")
    write_json(path, found | {"iou": {name: 99.0 for name in found["iou"]}, "miou": 99.0})
    assert "confusion.csv beside it says" in refused(run, "metrics.json")
    write_json(path, found)
    write_json(run.folder / "iou.json", [{"class": "=1+1", "iou": 1.0}])
    assert "other numbers than in metrics.json" in refused(run, "iou.json")


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("confusion.csv", ",80\n", ",80.5\n", "found '80.5', expected one count"),
        ("confusion.csv", ",80\n", ",-80\n", "found '-80', expected one count"),
        ("confusion.csv", "'@road,'@road,60\n", "", "24 cells, not 5 x 5"),
        ("confusion.csv", "'@road,'@road,60\n", "'@road,'=1+1,60\n", "expected one count"),
        ("confusion.csv", "actual,", "Actual,", "no column actual"),
        ("images.csv", "50.0", "nan", "found 'nan', expected a number"),
        ("images.csv", "50.0", "150.0", "miou: found 150.0, expected 0 to 100"),
        ("images.csv", "b,,\n", "", "1 rows of 1 images, metrics.json has 2"),
        ("images.csv", "b,,\n", "'=a,,\n", "2 rows of 1 images"),
        ("images.csv", "b,,\n", "b,,", "cut off in its last line"),
        ("history.csv", "0.4,0.2\n", "0.4", "a row of another length"),
        ("history.csv", "0.5", "inf", "found 'inf', expected a number"),
        ("history.csv", "\n1,", "\n0x1,", "found '0x1', expected a number"),
    ],
)
def test_tables_with_a_changed_cell(run: Run, name: str, old: str, new: str, said: str) -> None:
    path = run.folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert said in refused(run, name)


def test_a_history_cut_between_two_lines(run: Run) -> None:
    path = run.folder / "history.csv"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert f"ends at step 1, expected steps up to {run.train.steps}" in refused(run, "history.csv")
    path.write_text(whole)
    write_json(run.folder / "run.json", {"history_hash": file_hash(path)})
    results.history(run)
    path.write_text(whole.replace("0.4", "0.3"))
    assert "not the file that run.json beside it was written for" in refused(run, "history.csv")


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_of_this_kind(run: Run, name: str) -> None:
    """Folders, nesting, odd types, wrong bytes: one line each, quickly."""
    path = run.folder / name
    path.unlink(missing_ok=True)
    path.mkdir()
    refused(run, name)
    path.rmdir()
    odd = [
        "",
        "[" * 10**5,
        "[]",
        "7",
        "null",
        '"text"',
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        '{"miou": 1e999}',
        "\0\0",
        "9" * 5000,
    ]
    for content in (*(text.encode() for text in odd), b"\xff\xfe", b"PK\3\4" + b"0" * 30):
        if name == "run.json" and content == b'{"miou": 1e999}':
            continue  # unknown keys of a record are no matter
        path.write_bytes(content)
        refused(run, name)


@pytest.mark.parametrize(
    "value",
    [
        {"versions": []},
        {"revision": 7},
        {"seconds": "long"},
        {"steps": True},
        {"code": "x"},
        {"dirty": 1},
        {"resigned": {}},
    ],
    ids=str,
)
def test_a_record_of_odd_values(run: Run, value: dict[str, Any]) -> None:
    write_json(run.folder / "run.json", value)
    assert f"run.json: damaged ({next(iter(value))}: found" in refused(run, "run.json")


@pytest.mark.parametrize(
    "arrays",
    [
        {"map": np.full((4, 2), np.nan, np.float32)},
        {"map": np.zeros(4, np.float32)},
        {"label": np.array([0, 1, 0, 5], np.uint8)},
        {"label": np.array([0, -1, 0, 1])},
        {"label": np.zeros(4)},
        {"domain": np.full(4, 2, np.uint8)},
        {"label": np.array([{}] * 4, object)},
        {"map": np.zeros((0, 2), np.float32), "label": np.zeros(0, np.uint8), "domain": np.zeros(0, np.uint8)},
    ],
    ids=lambda arrays: ",".join(f"{name}:{value.dtype}{value.shape}" for name, value in arrays.items()),
)
def test_maps_that_cannot_be(run: Run, arrays: dict[str, np.ndarray]) -> None:
    with np.load(run.folder / "tsne.npz") as found:
        whole = dict(found)
    np.savez(run.folder / "tsne.npz", **(whole | arrays))
    assert "tsne.npz: damaged" in refused(run, "tsne.npz")


def test_a_file_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udaseg.artifacts.LARGEST", 2**20)
    with (tmp_path / "large.json").open("wb") as handle:
        handle.truncate(2**20 + 1)
    with pytest.raises(UserError, match="more than 1 MiB"):
        read_json(tmp_path / "large.json", "scores")


def test_cells_that_a_spreadsheet_would_run() -> None:
    names = ["=1+1", "+x", "-x", "@x", "\tx", "'x", "''", "road", "1", ""]
    text = csv_text([[name, -1.5, None] for name in names])
    cells = [line.split(",")[0].strip('"') for line in text.splitlines()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
    assert [cell_text(cell) for cell in cells] == names and ",-1.5," in text
