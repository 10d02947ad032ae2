"""Results are taken over by code that keeps their bits, and by no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from repository import METHODS, TRAINED, Repository
from safetensors import safe_open

from udaseg.artifacts import file_hash
from udaseg.engine.provenance import SCHEME
from udaseg.models import load_model_file, save_model
from udaseg.workflow import guard, resign

MODEL = f"{TRAINED}/model.safetensors"


def harmless(repository: Repository) -> None:
    """The code of every training says something else, and computes the same."""
    path = repository / "src/udaseg/engine/trainer.py"
    path.write_text(path.read_text().replace("self.rate = 0.0", "self.rate = 1.0 - 1.0"))


def test_a_change_that_keeps_the_bits_costs_no_training(finished: Repository) -> None:
    harmless(finished)
    assert finished.planned()["train"] == len(METHODS)
    before = {path: path.read_bytes() for path in (finished / "results/streets").rglob("model.safetensors")}
    text = finished.udaseg("resign")
    assert text.count("give the same bits; signed") == len(before) == 1 + len(METHODS)
    assert finished.planned() == {}
    assert finished.stale() == set()
    assert {path: path.read_bytes() for path in before} == before
    made = json.loads((finished / f"{TRAINED}/run.json").read_text())
    assert [note["scheme"] for note in made["resigned"]] == [SCHEME] and made["resigned"][0]["code_hash"] != made[
        "code_hash"
    ]
    assert "is current" in finished.udaseg("resign", "streets/pipa/0")


def test_one_run_alone(finished: Repository) -> None:
    harmless(finished)
    finished.udaseg("resign", "results/streets/self_training/seed0")
    planned = finished.planned()
    assert planned["train"] == len(METHODS) - 2 + 1, "self_training and the model that it begins from are signed"
    assert "pretrain" not in planned


def test_a_header_brought_up_to_date_strands_no_other_run(
    finished: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signing the pretrained model gives it other bytes, from which the runs that begin with it seem not to begin."""
    monkeypatch.chdir(finished.folder)
    home = Path("results/streets/pretrained/seed0")
    state, header = load_model_file(home / "model.safetensors")
    save_model(home / "model.safetensors", state, header | {"format": "2"})
    older = file_hash(home / "model.safetensors")
    for folder in (home, Path(TRAINED), Path("results/streets/pipa/seed0")):
        made = json.loads((folder / "run.json").read_text())
        made |= {"model_hash": older} if folder == home else {"start_hash": older}
        (folder / "run.json").write_text(json.dumps(made))
    harmless(finished)
    for name in ("self_training", "pipa"):
        assert "signed" in finished.udaseg("resign", f"streets/{name}/0")
        assert file_hash(home / "model.safetensors") != older


def test_data_come_first(finished: Repository) -> None:
    """A run signed before its data are looked at again would belong to the old record of them."""
    harmless(finished)
    with (finished / "src/udaseg/data/prepare.py").open("a") as handle:
        handle.write("EXTRA = 1\n")
    assert "stale itself; run `snakemake data/streets/data.json` first" in refused(finished)
    finished.snakemake("data/streets/data.json")
    finished.udaseg("resign")
    assert finished.planned() == {}


def refused(repository: Repository, *words: str) -> str:
    text = repository.udaseg("resign", *words, "streets/self_training/0", expect=2)
    lines = [line for line in text.splitlines() if line.startswith("udaseg resign: ")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def test_a_change_of_bits_is_refused(finished: Repository) -> None:
    path = finished / "src/udaseg/losses/segmentation.py"
    before = (finished / f"{TRAINED}/run.json").read_text()
    path.write_text(
        path.read_text() + "\n_cross = cross_entropy\n\n\ndef cross_entropy(*a):\n    return _cross(*a) * (1 + 1e-6)\n"
    )
    line = refused(finished)
    assert "step 1: supervised: found" in line and "the code computes something else now" in line
    assert (finished / f"{TRAINED}/run.json").read_text() == before
    assert finished.planned()["train"] == len(METHODS)


def test_other_parameters_data_or_files_are_refused(finished: Repository) -> None:
    finished.set("methods/self_training/threshold", 0.9)
    assert "made with other parameters (method.threshold: 0.968 -> 0.9)" in refused(finished)
    finished.git("checkout", "--quiet", "params.yaml")
    harmless(finished)
    model, record, data = (finished / name for name in (MODEL, f"{TRAINED}/run.json", "data/streets/data.json"))
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "model.safetensors: is not the file that was trained" in refused(finished)
    model.write_bytes(whole)
    history = finished / f"{TRAINED}/history.csv"
    rows = history.read_text()
    history.write_text(rows[: rows.index("\n", len(rows) // 2) + 1])
    assert "history.csv: is not the file that was trained" in refused(finished)
    history.write_text(rows)
    content = data.read_text()
    data.write_text(content + "\n")
    assert "made from other data" in refused(finished)
    data.write_text(content)
    text = record.read_text()
    record.unlink()
    assert "without it nothing can be taken over" in refused(finished)
    record.write_text(text)
    assert "expected an integer from 1" in refused(finished, "--steps", "0")
    finished.udaseg("resign", "streets/self_training/0")


def test_a_result_of_the_first_scheme_is_taken_over(finished: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: hashes without what they are over, six digits in the history, a code hash in the model's header."""
    monkeypatch.chdir(finished.folder)
    for folder in (Path("results/streets/pretrained/seed0"), Path(TRAINED)):
        made = json.loads((folder / "run.json").read_text())
        old = {k: v for k, v in made.items() if k not in ("scheme", "code", "params", "model_hash", "history_hash")}
        (folder / "run.json").write_text(
            json.dumps(old | {"code_hash": "old", "data_hash": "old", "start_hash": "old"})
        )
        state, header = load_model_file(folder / "model.safetensors")
        save_model(folder / "model.safetensors", state, header | {"code_hash": "old"})
        lines = (folder / "history.csv").read_text().splitlines()
        rows = [
            [text if k == 0 else format(float(text), ".6g") for k, text in enumerate(line.split(","))]
            for line in lines[1:]
        ]
        (folder / "history.csv").write_text("\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n")
        for name in ("model.safetensors", "history.csv"):
            place = guard.place(f"{folder}/{name}")
            place.write_text(json.dumps(json.loads(place.read_text()) | {"params": ["'{\"run.threads\": 1}'"]}))
    finished.dvc("commit", "--force", "pretrain@streets-0", "train@streets-self_training-0")  # as dvc.lock was then
    assert finished.planned()["train"] >= 1
    finished.udaseg("resign", "streets/self_training/0")
    planned = finished.planned()
    assert "train" not in planned and "pretrain" not in planned
    with safe_open(MODEL, framework="numpy") as model:
        assert "code_hash" not in model.metadata()
    assert "current" in finished.udaseg("why", "streets/self_training/0").splitlines()[2]


def test_how_far_a_history_is_compared() -> None:
    """Until every loss has taken part, at most so many steps, but one line at least."""
    rows = [
        {"step": str(10 * k), "a": "1", "b": "0" if k < 4 else "2", "c": "" if k < 30 else "3"} for k in range(1, 41)
    ]
    assert resign.enough(rows, 100) == (100, ("c",))
    assert resign.enough(rows, 1000) == (300, ())
    assert resign.enough(rows, 5) == (10, ("b", "c"))
    assert resign.enough([{"step": "10", "a": "1"}, {"step": "20", "a": "1"}], 100) == (10, ())


def test_a_recorded_number_is_compared_with_all_its_digits() -> None:
    value = 0.12345678358
    assert resign.same_number(value, "0.123456784") and resign.same_number(value, "0.123457")
    assert (
        not resign.same_number(value, "0.123456785")
        and not resign.same_number(value, "0.123458")
        and not resign.same_number(value, "")
    )
    assert resign.same_number(10, "10") and not resign.same_number(10, "11")
