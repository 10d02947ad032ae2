"""Names that are programs: nothing of them runs in the page of a benchmark, in its summary or in its figures."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import written
import yaml
from markdown_it import MarkdownIt
from written import write_project

from udaseg import params
from udaseg.errors import UserError
from udaseg.report.report import write_report

IMAGE, SHELL = "<img src=x onerror=alert(1)>", "$(touch x)"
SCRIPT = "</script><script>alert(2)</script>"
CLASSES = (IMAGE, SHELL, SCRIPT, "javascript:alert(3)")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of a project whose classes have such names; also its records say such things."""
    monkeypatch.setattr(written, "CLASSES", CLASSES)
    file = write_project(tmp_path, seeds=(0, 1))
    with contextlib.chdir(tmp_path):
        for path in Path("results/streets").glob("*/seed*/run.json"):
            made = json.loads(path.read_text())
            made |= {"device": IMAGE, "command": SCRIPT, "versions": {IMAGE: SHELL}, "revision": IMAGE}
            path.write_text(json.dumps(made))
        write_report(params.load(), "streets")
    return file


@pytest.mark.parametrize("scripts", [True, False])
def test_the_page_shows_them_as_text(watch: Callable[..., Any], hostile: Path, scripts: bool) -> None:
    page = watch(hostile, java_script_enabled=scripts)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    if scripts:
        for section in page.locator("details > summary").all():
            section.click()
        for button in page.locator("#classes-table th button").all():
            button.click()
    shown = [cell.inner_text().strip() for cell in page.query_selector_all("#classes-table tbody th")]
    assert sorted(shown) == sorted(CLASSES)
    assert IMAGE in page.locator("#runs-table, #runs").first.text_content() + page.locator("#runs").text_content()
    assert page.locator("[onerror], [onload], [onclick], a[href^=javascript]").count() == 0
    assert page.locator("script").count() == 1 and not dialogs


def test_the_summary_holds_no_markup_and_its_table_no_formula(hostile: Path) -> None:
    text = (hostile.parent / "summary.md").read_text(encoding="utf-8")
    assert "<img" not in MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    with (hostile.parent / "summary.csv").open(newline="", encoding="utf-8") as handle:
        cells = [cell for row in csv.reader(handle) for cell in row]
    assert f"iou.{IMAGE}" in cells  # as it is called, behind a word that makes it no formula
    assert not [cell for cell in cells if cell[:1] in ("=", "@", "\t")]


@pytest.mark.parametrize("block", ["datasets", "benchmarks", "methods"])
@pytest.mark.parametrize("name", [IMAGE, SHELL, SCRIPT, "../../x", "a b", "-rf", "a\nb", "x;y", ".", "é"])
def test_names_that_become_folders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = json.loads(json.dumps(written.RAW))
    raw[block][name] = next(iter(raw[block].values()))
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    with pytest.raises(UserError) as caught:
        params.load()
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)
