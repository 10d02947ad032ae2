"""`make audit` against stand-ins for pip-audit: an index that knows nothing has checked nothing."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_project import ROOT

AUDIT = ROOT / ".ci/audit"
CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
HOLE = {"name": "pillow", "version": "9.0.0", "vulns": [{"id": "PYSEC-2022-9", "fix_versions": ["9.0.1"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.15.0)"}

STAND_IN = """
import os, pathlib, sys
if "--version" in sys.argv:
    sys.exit(0)
assert pathlib.Path(sys.argv[sys.argv.index("--requirement") + 1]).name == "requirements.lock"
if answer := os.environ["ANSWER"]:
    pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).write_text(answer)
sys.exit("requests.exceptions.ConnectionError: no route" if not answer else "vulns" in answer)
"""


def audit(folder: Path, answer: Any) -> tuple[int, str]:
    (folder / "pip_audit").mkdir()
    (folder / "pip_audit/__init__.py").touch()
    (folder / "pip_audit/__main__.py").write_text(STAND_IN)
    text = json.dumps({"dependencies": answer, "fixes": []}) if answer is not None else ""
    environment = os.environ | {"PYTHONPATH": str(folder), "ANSWER": text}
    done = subprocess.run([sys.executable, AUDIT], env=environment, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ([CLEAN, CLEAN], 0, "2 pins, 2 checked, 0 known holes"),
        ([CLEAN, HOLE], 1, "pillow 9.0.0: PYSEC-2022-9, mended in 9.0.1"),
        ([CLEAN, UNKNOWN], 3, "not checked: torch; the index in reach does not know them"),
        ([UNKNOWN, HOLE], 1, "2 pins, 1 checked, 1 known holes"),
        ([], 3, "0 pins"),
        (
            None,
            3,
            "not checked: the list of known holes cannot be reached (requests.exceptions.ConnectionError: no route)",
        ),
    ],
)
def test_what_the_tool_found(tmp_path: Path, answer: Any, code: int, words: str) -> None:
    found, text = audit(tmp_path, answer)
    assert found == code and words in text


def test_without_the_tool_and_an_index(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("venv.create", fails)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    program = runpy.run_path(str(AUDIT))
    assert program["main"]() == 3
    assert capsys.readouterr().out.startswith("not checked: pip-audit is not here")
