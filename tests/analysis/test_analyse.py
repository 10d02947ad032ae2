"""From a trained run to its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from block_data import FakeData, Pooled

from tiny_project import Project
from udaseg import cli
from udaseg.analysis import analyse
from udaseg.analysis.cells import Cells
from udaseg.analysis.tsne import embed
from udaseg.errors import UserError
from udaseg.params import Run

FILES = ("features.npz", "tsne.npz", "analysis.json")
MakeRun = Callable[..., Run]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's model is the one without weights."""
    monkeypatch.setattr(analyse, "load_run", lambda run, device: SimpleNamespace(student=Pooled()))


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_a_trained_run_is_analysed_and_equal_again(project: Project) -> None:
    project.set("benchmarks/streets/init", {"default": "none"})
    run = ["--benchmark", "streets", "--method", "self_training"]
    assert cli.main(["train", *run]) == cli.main(["analyse", *run]) == 0
    folder = project.folder / "results/streets/self_training/seed0"
    first = read(folder)
    done = project.udaseg("analyse", *run, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert read(folder) == first  # in another process, whatever the environment says about threads
    values = json.loads(first["analysis.json"], parse_constant=lambda word: pytest.fail(word))
    assert values["classes"] == len(values["class"]) > 1 and set(values["left_out"]).isdisjoint(values["class"])
    assert values["cells"] == sum(block["cells"] for block in values["class"].values())
    assert f"{values['linear_probe']:.2f}" in done.stdout and all(name in done.stdout for name in values["left_out"])
    assert all(line.count(" cells of ") == 1 for line in done.stderr.splitlines()), done.stderr  # no library's chatter


def test_the_files_are_enough_to_measure_and_map_again(
    make_run: MakeRun, data: dict[str, FakeData], network: None
) -> None:
    run = make_run(per_class=20)
    analyse.analyse_run(run)
    p, values = run.params.analysis, json.loads((run.folder / "analysis.json").read_text())
    cells = Cells(**np.load(run.folder / "features.npz"))
    again = analyse.measures_of(cells, run.classes.names, p)
    assert values == again | {"left_out": values["left_out"]}
    kept = np.load(run.folder / "tsne.npz")
    rows = analyse.few(cells, p.tsne.per_class)
    assert np.array_equal(kept["map"], embed(analyse.wide(cells.feature[rows]), p.tsne))
    assert np.array_equal(kept["label"], cells.label[rows]) and np.array_equal(kept["domain"], cells.domain[rows])
    assert {name: (array.dtype.str, len(array)) for name, array in vars(cells).items()} == {
        "feature": ("<f2", 160),
        "label": ("|u1", 160),
        "domain": ("|u1", 160),
        "image": ("<i4", 160),
        "row": ("<i2", 160),
        "column": ("<i2", 160),
    }


def cells_of(source: np.ndarray, target: np.ndarray, label: np.ndarray) -> Cells:
    """Cells of both domains, ten of an image."""
    n = len(label)
    return Cells(
        feature=np.concatenate([source, target]).astype(np.float16),
        label=np.tile(label, 2).astype(np.uint8),
        domain=np.repeat([0, 1], n).astype(np.uint8),
        image=np.tile(np.arange(n) // 10, 2).astype(np.int32),
        row=np.zeros(2 * n, np.int16),
        column=np.zeros(2 * n, np.int16),
    )


def test_classes_are_measured_in_the_target(make_run: MakeRun) -> None:
    """Two classes, tight in the target and at one place in the source."""
    run = make_run()
    label = np.arange(40) % 2
    values = analyse.measures_of(
        cells_of(np.ones((40, 2)), np.eye(2)[label], label), run.classes.names, run.params.analysis
    )
    assert (values["intra_variance"], values["separation"], values["linear_probe"]) == (0, 2, 100)
    assert (values["probe_classes"], values["probe_split"]) == (2, "image")


def test_pdd_without_a_denominator_is_not_defined_and_said(make_run: MakeRun) -> None:
    """Two opposite classes: every cosine with the other centre is -1."""
    run = make_run()
    label = np.arange(40) % 2
    x = np.array([[1, 0], [-1, 0]])[label]
    values = analyse.measures_of(cells_of(x, x, label), run.classes.names, run.params.analysis)
    assert values["pdd_clamped"] == 40 and values["pdd"] is None
    assert [block["pdd"] for block in values["class"].values()] == [None, None]
    assert "pdd not defined" in analyse.table(run, values, {}) and "pdd_difference" in values


def test_what_limits_the_probes_is_printed(make_run: MakeRun) -> None:
    run = make_run()
    label = np.arange(40) % 2
    values = analyse.measures_of(
        cells_of(np.eye(2)[label], np.eye(2)[label], label), run.classes.names, run.params.analysis
    )
    assert "probes" not in analyse.table(run, values, {})
    assert "probes have seen all of them" in analyse.table(run, values | {"probe_split": "cell"}, {})
    assert "probes asked for 1 classes" in analyse.table(run, values | {"probe_classes": 1}, {})


def test_the_map_takes_as_many_of_each_class_and_domain(
    make_run: MakeRun, data: dict[str, FakeData], network: None
) -> None:
    run = make_run(per_class=20, tsne={"per_class": 7, "perplexity": 5, "iterations": 30})
    analyse.analyse_run(run)
    kept = np.load(run.folder / "tsne.npz")
    for domain in (0, 1):
        assert np.bincount(kept["label"][kept["domain"] == domain]).tolist() == [7] * 4


def test_an_error_leaves_the_former_files(make_run: MakeRun, data: dict[str, FakeData], network: None) -> None:
    run = make_run()
    analyse.analyse_run(run)
    before = read(run.folder)
    data["streets_photo"].labels = [np.full((8, 8), 255, np.uint8)]
    with pytest.raises(UserError, match="found 0 classes"):
        analyse.analyse_run(run)
    assert read(run.folder) == before and sorted(path.name for path in run.folder.iterdir()) == sorted(FILES)
