"""The card of a model, and a run as one folder or archive."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zipfile
from pathlib import Path

import pytest
from tiny_model import write_model

from tiny_project import ROOT
from udaseg import cli
from udaseg.artifacts import file_hash, write_json
from udaseg.data.formats import EXPECTED
from udaseg.deploy import card

REFERENCE = ROOT / "results/reference/camvid_day2dusk/sepico/seed0"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a small model and a record that says what it learned from."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/streets/sepico/seed0"
    folder.mkdir(parents=True)
    model = write_model(folder)
    made = json.loads((REFERENCE / "run.json").read_text()) | {
        "model_hash": file_hash(model),
        "params": {
            "benchmark": {
                **{"source": "camvid/day", "target": "gta5/train"},
                "model": {"weights": "mobilenetv2_100.tf2_imagenet"},
            },
            "datasets": {"camvid": {"format": "camvid"}, "gta5": {"format": "gta5"}},
        },
    }
    write_json(folder / "run.json", made)
    for name in ("metrics.json", "history.csv"):
        shutil.copy(REFERENCE / name, folder)
    return folder


def test_the_card_names_data_terms_scores_and_origin(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    card.describe(run, scored=True)
    text = (run / card.CARD).read_text()
    assert "`camvid`: CamVid, CC BY-NC 4.0" in text and "`gta5`: GTA5" in text and "Google's MobileNetV2" in text
    miou = json.loads((run / "metrics.json").read_text())["miou"]
    assert f"| mIoU | {miou:.2f} |" in text and "## For what, and for what not" in text and "2.15.0" in text
    card.describe(run)  # a new model: the scores that lie there are not its own
    assert "Not scored when this was written" in (run / card.CARD).read_text()
    (run / "metrics.json").write_text("[")
    with caplog.at_level(logging.WARNING):
        card.describe(run, scored=True)
    assert "no card: " in caplog.text and "metrics.json: damaged" in caplog.text
    assert set(EXPECTED) <= set(card.TERMS)


def test_a_folder_holds_all_and_its_hashes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "requirements.lock", ".")
    assert cli.main(["publish", str(run), "--out", "packed"]) == 0
    names = {path.name for path in Path("packed").iterdir()}
    assert names >= {
        "model.safetensors",
        "README.md",
        "parameters.json",
        "run.json",
        "metrics.json",
        "requirements.lock",
    }
    sums = dict(reversed(line.split("  ")) for line in Path("packed/SHA256SUMS").read_text().splitlines())
    assert set(sums) == names - {"SHA256SUMS"}
    assert all(hashlib.sha256((Path("packed") / n).read_bytes()).hexdigest() == h for n, h in sums.items())
    assert json.loads(Path("packed/parameters.json").read_text())["datasets"]["gta5"] == {"format": "gta5"}


def test_equal_runs_give_equal_archives(run: Path) -> None:
    assert cli.main(["publish", str(run), "--out", "a.zip"]) == 0
    first = Path("a.zip").read_bytes()
    assert cli.main(["publish", str(run), "--out", "a.zip"]) == 0 and Path("a.zip").read_bytes() == first
    assert "a/README.md" in zipfile.ZipFile("a.zip").namelist()


def test_what_cannot_be_published_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert cli.main(["publish", *words, "--params", str(ROOT / "params.yaml")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "found 1 runs" not in said("streets/oracle/0", "--out", "x") and not Path("x").exists()
    assert "expected one, as streets/sepico/0" in said("streets", "--out", "x")
    Path("full").mkdir()
    Path("full/note").touch()
    assert "found full, expected a new folder or a .zip" in said(str(run), "--out", "full")
    made = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", made | {"model_hash": "another"})
    assert "model.safetensors" in said(str(run), "--out", "x")
    write_json(run / "run.json", made)
    (run / "metrics.json").unlink()
    assert "metrics.json: not found; expected the folder of a run that is trained and scored" in said(
        str(run), "--out", "x"
    )
