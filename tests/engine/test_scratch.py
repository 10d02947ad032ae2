"""`udaseg train --set`: other values for one run, apart from all that is recorded."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tiny_project import ROOT, Project
from udaseg import cli, params
from udaseg.artifacts import read_record, write_json
from udaseg.engine import scratch
from udaseg.errors import UserError


def test_a_value_reaches_its_place_and_no_other() -> None:
    """sepico, sepico-off and sepico-night share YAML anchors."""
    before = params.load(ROOT / "params.yaml")
    p = scratch.changed(
        str(ROOT / "params.yaml"),
        ["methods.sepico.sepico.temperature=0.5", "benchmarks.streets.train.validate_every=7"],
        None,
    )
    assert p.methods["sepico"].block("sepico").temperature == 0.5  # type: ignore[union-attr]
    assert p.benchmarks["streets"].train.validate_every == 7  # not written in the file: it has a default
    changed = [name for name in before.methods if p.methods[name] != before.methods[name]]
    assert changed == ["sepico"] and p.raw["run"] == before.raw["run"]
    run = p.resolve("streets", "sepico", 3)
    assert run.folder == Path("scratch/temperature=0.5,validate_every=7/streets/sepico/seed3")
    assert run.pretrained == before.resolve("streets", "sepico", 3).pretrained
    assert run.hash != before.resolve("streets", "sepico", 3).hash
    assert scratch.changed(str(ROOT / "params.yaml"), ["run.seeds=[1, 2]"], "mine").home == Path("scratch/mine")
    assert scratch.changed(str(ROOT / "params.yaml"), ["run.seeds=[1, 2]"], None).home == Path("scratch/seeds=_1,_2_")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--set", "benchmarks.streets.train.stepz=4"],
            "benchmarks.streets.train: unknown key 'stepz'; did you mean 'steps'?",
        ),
        (["--set", "benchmarks.streets.train.steps=high"], "train.steps: found 'high', expected an integer"),
        (["--set", "benchmark.streets.train.steps=4"], "unknown key 'benchmark'; did you mean 'benchmarks'?"),
        (["--set", "run.threads.x=1"], "run.threads: found 2, a value, expected a block with the key x"),
        (["--set", "steps"], "found 'steps', expected key=value as in benchmarks.streets.train.steps=100"),
        (["--set", "run..threads=1"], "found 'run..threads=1', expected key=value"),
        (["--set", "run.threads=[1"], "--set run.threads: "),
        (["--set", "run.threads=1", "--name", "../results"], "--name: found '../results', expected letters, digits"),
        (["--name", "x"], "--name: found it without --set"),
    ],
)
def test_what_cannot_be_set_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--params", str(ROOT / "params.yaml"), "--benchmark", "streets", "--method", "source_only"]
    assert cli.main(["train", *run, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and line.startswith("udaseg train: --")


def test_a_name_that_holds_other_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    run = scratch.changed("params.yaml", ["run.threads=1"], "mine").resolve("streets", "oracle", 0)
    scratch.check_free(run)
    write_json(run.folder / "run.json", {"params_hash": run.hash})
    scratch.check_free(run)
    write_json(run.folder / "run.json", {"params_hash": "another"})
    with pytest.raises(
        UserError, match=r"found a run of other values .params_hash another, expected .*choose another --name"
    ):
        scratch.check_free(run)


def test_a_scratch_run_is_trained_and_scored_beside_the_recorded_ones(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.set("benchmarks/streets/init", {"default": "none"})
    monkeypatch.chdir(project.folder)
    before = {path for path in Path("results").rglob("*") if path.is_file()} if Path("results").exists() else set()
    words = ["train", "--benchmark", "streets", "--method", "source_only"]
    assert cli.main([*words, "--set", "benchmarks.streets.train.steps=2", "--name", "short"]) == 0
    folder = Path("scratch/short/streets/source_only/seed0")
    assert {"model.safetensors", "run.json", "metrics.json"} <= {path.name for path in folder.iterdir()}
    assert "miou" in capsys.readouterr().out
    made = {path for path in Path("results").rglob("*") if path.is_file()} - before
    assert {path.parts[:3] for path in made} == {("results", ".trained", "short")}
    p = params.load()
    assert dataclasses.replace(p.resolve("streets", "source_only", 0)).folder == Path(
        "results/streets/source_only/seed0"
    )


def test_a_scratch_run_starts_from_the_source_only_model_of_the_file(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A change of the training block is one of the run, not of what it starts from: `--set benchmarks.streets.train.steps=100`."""
    monkeypatch.chdir(project.folder)
    assert cli.main(["pretrain", "--benchmark", "streets"]) == 0
    start = Path("results/streets/pretrained/seed0/model.safetensors").read_bytes()
    words = ["train", "--benchmark", "streets", "--method", "self_training", "--name", "short"]
    assert cli.main([*words, "--set", "benchmarks.streets.train.steps=3"]) == 0
    record = read_record(Path("scratch/short/streets/self_training/seed0/run.json"))
    assert record["steps"] == 3 and record["init"] == "source_only"
    assert Path("results/streets/pretrained/seed0/model.safetensors").read_bytes() == start
    run = scratch.changed("params.yaml", ["benchmarks.streets.train.steps=3"], "short").resolve(
        "streets", "self_training", 0
    )
    assert run.pretraining.hash == params.load().resolve("streets", "source_only", 0).hash
    assert record["params_hash"] == run.hash != params.load().resolve("streets", "self_training", 0).hash
