"""`dvc plots show` without a network: the page in .dvc/plots with its three scripts, and our two templates."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_project import ROOT

# as published on npm (build/<name>.min.js), white space at both ends left out
SCRIPTS = {
    "vega-5.20.2": "b94f993db83d02d3066d1211182e5cd4e1a5c66a2157d75b3b1ea02b976cae79",
    "vega-lite-5.2.0": "a13565cf8087c72cca0cbd38e4000fd41ee3fbb8acb8d16dcb11327eec665b73",
    "vega-embed-6.18.2": "359bac892bad735e1ea486b5f3485cdf5d5e283f7a9300daf7c1ef860e1fcdfe",
}
FILES = {
    "iou.json": json.dumps([{"class": name, "iou": 40 + k} for k, name in enumerate(("road", "sky"))]),
    "confusion.csv": "actual,predicted,pixels\nroad,road,90\nroad,sky,10\nsky,road,0\nsky,sky,50\n",
    "history.csv": "step,learning_rate,supervised\n10,0.1,2.5\n20,0.05,1.5\n",
}
# how many colours a chart has: of an empty one, few
COLOURS = """canvas => {
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let k = 0; k < data.length; k += 4) seen.add(data.slice(k, k + 3).join());
  return seen.size;
}"""


def selected_plots() -> dict[str, dict[str, Any]]:
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["select"]["plots"]
    return {path: options for entry in listed for path, options in entry.items()}


def test_scripts_are_those_that_were_published() -> None:
    page = (ROOT / ".dvc/plots/page.html").read_text()
    found = dict(re.findall(r'<script id="([^"]+)">\n(.*?)\n</script>', page, re.S))
    assert {name: hashlib.sha256(text.encode()).hexdigest() for name, text in found.items()} == SCRIPTS
    assert "{plot_divs}" in page and "{scripts}" not in page
    assert "Copyright (c) 2015-2018, University of Washington Interactive Data Lab" in page


def test_the_confusion_is_drawn_by_pixels() -> None:
    """DVC's own templates count rows, of which each pair of classes has one: all cells would look alike."""
    options = selected_plots()["results/selected/confusion.csv"]
    assert (options["template"], options["x"], options["y"]) == ("confusion_pixels", "predicted", "actual")


@pytest.mark.workflow
def test_plots_show_needs_no_network(watch: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots")
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")
    (tmp_path / "results/selected").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / "results/selected" / name).write_text(text)
    stage = {"cmd": "true", "plots": [{path: options} for path, options in selected_plots().items()]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"select": stage}}))
    env = os.environ | {"DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "DVC_NO_ANALYTICS": "1"}
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "plots", "show"]):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    file = tmp_path / "dvc_plots/index.html"
    assert not re.search(r"""<(script|link|img)[^>]*(src|href)=["']?https?:""", file.read_text())

    page = watch(file, quiet=("vega", "Vega", "WARN"))
    page.wait_for_function(f"document.querySelectorAll('canvas').length == {len(FILES)}")
    assert min(page.eval_on_selector_all("canvas", f"all => all.map({COLOURS})")) > 10


def test_the_page_is_configured() -> None:
    config = configparser.ConfigParser()
    config.read_string("\n".join(line.strip() for line in (ROOT / ".dvc/config").read_text().splitlines()))
    assert (ROOT / ".dvc" / config["plots"]["html_template"]).is_file()
