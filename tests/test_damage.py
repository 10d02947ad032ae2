"""A damaged or forged file is told by every command that reads it, and what the line advises mends it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tiny_project import Project
from udaseg import cli
from udaseg.artifacts import file_hash
from udaseg.models import load_model_file, save_model

HOME = Path("results/streets/self_training/seed0")
MODEL = HOME / "model.safetensors"
RUN = ["--benchmark", "streets", "--method", "self_training"]
Say = Callable[..., str]


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Say:
    """Run a command in this process; what it prints. A refusal is one line."""

    def run(*words: str, code: int = 0) -> str:
        capfd.readouterr(), caplog.clear()
        with caplog.at_level("INFO", "udaseg"):
            assert cli.main(words) == code, capfd.readouterr()
        out, err = capfd.readouterr()
        if code == 2:
            (line,) = [line for line in err.splitlines() if line.startswith(f"udaseg {words[0]}: ")]
            return line
        return out + err + caplog.text

    return run


@pytest.fixture
def scored(project: Project, say: Say) -> Project:
    """One run, trained from scratch, scored, analysed and compared."""
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("benchmarks/streets/model/backbone", "resnet10t")
    project.set("run/methods", ["self_training"])
    project.set("select/method", "self_training")
    for step in ("train", "evaluate", "analyse"):
        say(step, *RUN)
    say("compare", "--benchmark", "streets")
    return project


def flip(path: Path) -> None:
    """A bit of the last tensor, in place, so that hard links to it have it too."""
    with path.open("r+b") as handle:
        handle.seek(-3, 2)
        (value,) = handle.read(1)
        handle.seek(-3, 2)
        handle.write(bytes([value ^ 64]))


def test_bits_flipped_in_the_last_tensor(scored: Project, say: Say) -> None:
    photo = scored.folder / "photos/a.png"
    photo.parent.mkdir()
    Image.new("RGB", (64, 32)).save(photo)
    whole, scores = file_hash(MODEL), (HOME / "metrics.json").read_text()
    flip(MODEL)
    shutil.copy(MODEL, "copy.safetensors")
    again = "run `udaseg train --benchmark streets --method self_training --seed 0` again"
    for words in (["evaluate", *RUN], ["analyse", *RUN]):
        line = say(*words, code=2)
        assert "model.safetensors: damaged or replaced" in line and again in line
    for words in (["predict", str(MODEL), "photos", "--out", "labels"], ["export", str(MODEL)]):
        assert "damaged or replaced" in say(*words, code=2)
    assert "damaged: its content has sha256" in say("predict", "copy.safetensors", "photos", "--out", "labels", code=2)
    assert f"{MODEL} is not the file that was trained" in say("why", "streets/self_training/0")
    assert "WRONG: " in say("verify", code=1)
    assert (HOME / "metrics.json").read_text() == scores
    assert "it is made anew" in say("train", *RUN)  # what the line advises
    assert file_hash(MODEL) == whole
    say("evaluate", *RUN)
    assert (HOME / "metrics.json").read_text() == scores
    flip(MODEL)
    MODEL.unlink()  # as under Snakemake: the file is deleted, and the training asked for
    say("train", *RUN)
    assert file_hash(MODEL) == whole


def test_what_dvc_brings_is_believed_beside_the_record_of_another_training(scored: Project, say: Say) -> None:
    """`dvc checkout` of another revision: model and history are those of dvc.lock, run.json tells of the last training."""
    state, header = load_model_file(MODEL)
    save_model(MODEL, state, header | {"unknown": "x"})
    (HOME / "history.csv").write_text((HOME / "history.csv").read_text().replace(",", ",1", 1))
    assert "damaged or replaced" in say("evaluate", *RUN, code=2)
    entries = [
        f"    - path: {path}\n      hash: md5\n      md5: {hashlib.md5(path.read_bytes()).hexdigest()}\n      size: 1\n"
        for path in (MODEL, HOME / "history.csv")
    ]
    Path("dvc.lock").write_text("stages:\n  train@x:\n    outs:\n" + "".join(entries))
    say("evaluate", *RUN)
    say("select")
    assert "as dvc.lock says" in say("verify")


def test_a_damaged_history_is_mended_by_train(scored: Project, say: Say) -> None:
    history, model = HOME / "history.csv", MODEL.stat().st_mtime_ns
    whole = history.read_text()
    for damaged in (whole[:-5], "".join(whole.splitlines(keepends=True)[:-1]), ""):
        with history.open("r+") as handle:  # in place
            handle.truncate(0)
            handle.write(damaged)
        line = say("select", code=2)
        assert "history.csv: damaged" in line and "`udaseg train --benchmark streets --method self_training" in line
        assert "taken from results/.trained" in say("train", *RUN)  # nothing is trained
        assert history.read_text() == whole
    say("select")
    assert MODEL.stat().st_mtime_ns != model
    record = HOME / "run.json"
    made = json.loads(record.read_text())
    record.write_text(json.dumps({key: value for key, value in made.items() if key != "history_hash"}))
    assert "is trained already" in say("train", *RUN)  # as versions wrote it that formed no such hash
    for odd in ("{", "[]", '{"steps": "2"}'):
        record.write_text(odd)
        assert "run.json: damaged" in say("evaluate", *RUN, code=2)
        say("train", *RUN)
        assert json.loads(record.read_text()) == made


def forge(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_verify_says_what_holds_and_what_does_not(scored: Project, say: Say) -> None:
    text = say("verify")
    for words in ("data       ok: ", "model      ok: sha256 ", "history    ok: ", "scores     ok: made again on CPU"):
        assert words in text, text
    assert "difference 0.0000 at most in a mean" in text and "(0 of " in text and "summary    ok: " in text
    assert "1 runs, 7 checks: 0 wrong, 0 not checked" in text
    metrics, summary = HOME / "metrics.json", Path("results/streets/summary.json")
    files = [path for path in (*HOME.iterdir(), summary, *Path("data").rglob("*.*")) if path.is_file()]
    whole = {path: path.read_bytes() for path in files}

    def wrong(subject: str, said: str) -> None:
        found = say("verify", "streets/self_training/0", code=1)
        (line, *_) = [line for line in found.splitlines() if "WRONG: " in line]
        assert line.strip().startswith(subject) and said in line, found
        for path, content in whole.items():
            if path.read_bytes() != content:
                path.write_bytes(content)

    forge(metrics, miou=77.7)
    wrong("numbers", "miou: found 77.7")
    forge(HOME / "headline.json", miou=77.7)
    wrong("numbers", "headline.json: damaged (other numbers than in metrics.json beside it)")
    # all that lies beside the scores is forged alike: only the model tells
    for name in ("confusion.csv", "iou.json", "headline.json"):
        (HOME / name).unlink()
    found = json.loads(metrics.read_text())
    iou = {name: 50.0 for name in found["iou"]}
    means = {key: 50.0 for key in found if key.startswith("miou")}
    metrics.write_text(json.dumps(found | {"iou": iou} | means))
    text = say("verify", code=1)
    assert "metrics.json says 50.0000, the model scores" in text and "summary    WRONG: " in text
    for path, content in whole.items():
        path.write_bytes(content)
    forge(summary, protocol="native")
    wrong("summary", "protocol: found 'native', expected 'matched'")
    archive = next(Path("data/streets").glob("streets_photo*/images.zip"))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    wrong("data", "images.zip")
    (HOME / "images.csv").write_bytes(whole[HOME / "images.csv"].replace(b"\n", b"\nx", 1))
    wrong("scores", "images.csv")
    MODEL.unlink()
    text = say("verify")
    assert "model      not checked: " in text and "scores     not checked: no model here" in text


def test_verify_of_committed_results(scored: Project, say: Say) -> None:
    """Where neither model nor data are."""
    place = Path("results/reference/streets/self_training/seed0")
    place.mkdir(parents=True)
    for name in ("metrics.json", "run.json", "history.csv", "analysis.json"):
        shutil.copy(HOME / name, place)
    say("compare", "--benchmark", "streets", "--reference")
    for name in (
        "results/reference/streets/self_training/seed0",
        "reference/streets/self_training/0",
        "results/reference",
    ):
        text = say("verify", name)
        assert str(place) in text and "0 wrong, 2 not checked" in text and "model      not checked" in text
    forge(place / "metrics.json", miou=77.7)
    text = say("verify", "results/reference", code=1)
    assert f"run `git checkout -- {place}/metrics.json` again" in text
