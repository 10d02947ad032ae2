"""A short run of the fuzz program, the cases that once failed, and what the program must find."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
KINDS = (
    "params",
    "training",
    "arguments",
    "images",
    "names",
    "classes",
    "archives",
    "prepared",
    "models",
    "restart",
    "tables",
    "lists",
    "results",
)


def fuzz(*words: str) -> tuple[int, str, dict[str, dict[str, int]]]:
    """Exit code, what is said, and the table: kind -> column -> number."""
    done = subprocess.run(
        [sys.executable, HERE / "fuzz.py", *words], capture_output=True, text=True, timeout=540, check=False
    )
    text = done.stdout + done.stderr
    lines = done.stdout.partition("kind  ")[2].splitlines()
    columns = lines[0].split() if lines else []
    table = {name: dict(zip(columns, map(int, numbers), strict=True)) for name, *numbers in map(str.split, lines[1:])}
    return done.returncode, text, table


def test_a_short_run_and_those_that_once_failed(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (HERE / "corpus.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} <= set(KINDS)
    code, text, table = fuzz("--corpus", "--cases", "110")
    assert code == 0, text
    assert table["all"]["cases"] >= 110 + len(rows) and set(table) == {*KINDS, "all"}
    assert all(
        table[kind]["accepted"] and table[kind]["refused"] for kind in ("params", "images", "archives", "models")
    ), text


def test_finds_what_is_planted_and_plays_it_again() -> None:
    code, text, table = fuzz("--kinds", "planted", "--cases", "10", "--limit", "1", "--waiting", "6", "--memory", "200")
    assert code == 1 and table["planted"]["failed"] == 9 and table["planted"]["refused"] == 1, text
    for words in (
        "KeyError: 'planted'",
        "waits for more than 6 s",  # what computes without end is told so only where the machine has time for it
        "takes 3",
        "writes ../outside.txt outside its folder",
        "refused in other than one line",
        "control character",
        "starts another program",
        "the process died (SIGABRT)",
    ):
        assert words in text, words
    again = re.findall(r"again: python tests/fuzz/fuzz.py (--seed 0 --only planted:0)", text)
    code, alone, _ = fuzz(*again[0].split())
    assert code == 1 and "KeyError: 'planted'" in alone
