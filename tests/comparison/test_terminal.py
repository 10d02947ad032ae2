"""`udaseg table`: what summary.md says, no wider than the screen."""

from __future__ import annotations

import pytest

from tiny_project import ROOT
from udaseg import cli
from udaseg.comparison import terminal


def test_the_committed_tables_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["table", "--reference", "camvid_day2dusk"]) == 0
    assert capsys.readouterr().out == (ROOT / "results/reference/camvid_day2dusk/summary.md").read_text()
    assert cli.main(["table", "streets"]) == 0 and cli.main(["table"]) == 0
    assert capsys.readouterr().out == 2 * (ROOT / "results/streets/summary.md").read_text()
    assert cli.main(["table", "--reference"]) == 0
    assert capsys.readouterr().out.count("mIoU over") == 3


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_narrow_screen_gets_the_columns_that_fit(width: int) -> None:
    text = (ROOT / "results/reference/camvid_day2dusk/summary.md").read_text()
    lines = terminal.fitted(text, width).splitlines()
    assert max(map(len, lines)) <= width
    head = next(line for line in lines if line.startswith("| method"))
    assert "mIoU" in head and head.endswith("|") and ("gain" in head) is (width >= 80)
    said = " ".join(lines).partition("not shown, the screen is too narrow: ")[2]
    assert said and "published" in said[:80]
    assert terminal.fitted(text, None) == terminal.fitted(text, 1000) == text


def test_a_bar_in_a_name_is_no_column() -> None:
    table = ["| method | mIoU | a\\|b |", "| ------ | ---: | ---- |", "| x      |  1.0 | 2.00 |"]
    assert terminal.narrowed(table, 20)[0] == "| method | mIoU |"


def test_what_is_not_compared_is_said(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(str(tmp_path))
    params = str(ROOT / "params.yaml")
    assert cli.main(["table", "streets", "--params", params]) == 2
    assert "run `udaseg compare --benchmark streets`" in capsys.readouterr().err
    assert cli.main(["table", "--reference", "--params", params]) == 2
    assert "found no table" in capsys.readouterr().err
    assert cli.main(["table", "street", "--params", params]) == 2
    assert "did you mean 'streets'?" in capsys.readouterr().err
