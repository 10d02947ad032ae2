"""What is committed belongs together: reference results to parameter blocks, the tables of the pages to result files, pins to pyproject."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tiny_project import ROOT
from udaseg import params
from udaseg.comparison import compare, evidence
from udaseg.evaluation import headline
from udaseg.recipes import papers

REFERENCE = sorted((ROOT / "results/reference").glob("*/*/seed*"))


SUPERSEDED = {
    benchmark: {method: correction for correction, methods in rows.items() for method in methods}
    for benchmark, rows in (yaml.safe_load((ROOT / "results/reference/superseded.yaml").read_text()) or {}).items()
}


def test_superseded_rows_are_there() -> None:
    for benchmark, rows in SUPERSEDED.items():
        for method, correction in rows.items():
            assert list((ROOT / "results/reference" / benchmark / method).glob("seed*/metrics.json")), (
                benchmark,
                method,
            )
            assert f"**{correction}**" in (ROOT / "CHANGELOG.md").read_text()


def test_there_are_reference_results() -> None:
    assert len(REFERENCE) >= 6


@pytest.mark.parametrize("folder", REFERENCE, ids=lambda p: "/".join(p.parts[-3:]))
def test_reference_belongs_to_a_committed_block(folder: Path) -> None:
    made = json.loads((folder / "run.json").read_text())
    benchmark, method, seed = folder.parts[-3], folder.parts[-2], int(folder.name.removeprefix("seed"))
    assert (made["benchmark"], made["method"], made["seed"]) == (benchmark, method, seed)
    here = params.load(ROOT / "params.yaml")
    threads = dataclasses.replace(here.run, threads=made["threads"])  # of the machine, told by run.json
    run = dataclasses.replace(here, run=threads).resolve(benchmark, method, seed)
    correction = SUPERSEDED.get(benchmark, {}).get(method)
    if correction == "K3":  # another recipe now: once made again it leaves the list
        assert made["params_hash"] != run.hash, f"{method} is made again: take it out of superseded.yaml"
    else:
        assert made["params_hash"] == run.hash, "params.yaml has changed since: run it again, or restore the block"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 < metrics["miou"] < 100 and set(metrics["iou"]) <= set(run.classes.names)
    with (folder / "history.csv").open() as handle:
        assert int(list(csv.DictReader(handle))[-1]["step"]) == run.train.steps == made["steps"]
    assert made["dirty"] is False and len(made["revision"]) == 40


def test_committed_headlines_are_those_of_the_scores_beside_them() -> None:
    folders = [*(ROOT / "results/streets").glob("*/seed*"), ROOT / "results/selected"]
    assert len(folders) > 1
    for folder in folders:
        short = json.loads((folder / headline.NAME).read_text())
        assert short == headline.of(json.loads((folder / "metrics.json").read_text())), folder
        assert next(iter(short)) == "miou"


def block(name: str) -> str:
    page = {"demo": "README.md", "evidence": "docs/evidence.md"}.get(name.split()[0], "docs/results.md")
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", (ROOT / page).read_text(), re.S)
    assert found, f"{page} has no block {name}"
    return found[1].strip()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_the_demo_is_seed_0_of_the_readmes_table() -> None:
    for folder in (ROOT / "results/streets").glob("*/seed0"):
        kept = ROOT / "results/reference/streets" / folder.parent.name / "seed0"
        assert (folder / "metrics.json").read_bytes() == (kept / "metrics.json").read_bytes(), folder


@pytest.mark.parametrize(
    "folder", sorted(path for path in (ROOT / "results/reference").iterdir() if path.is_dir()), ids=lambda p: p.name
)
def test_reference_summaries_and_the_page_show_the_reference_results(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "results/reference" / folder.name
    shutil.copytree(folder, copy)
    shutil.copy(ROOT / "results/reference/superseded.yaml", copy.parent)
    compare.compare_benchmark(params.load(ROOT / "params.yaml"), folder.name, reference=True)
    told = evidence.write_evidence(params.load(ROOT / "params.yaml"), folder.name).split("\n", 1)[1].strip()
    for name in ("evidence.json", "evidence.md", "summary.json", "summary.csv", "summary.md"):
        text = (folder / name).read_text()
        assert text == (copy / name).read_text(), f"{folder / name}: run `udaseg compare --reference` again"
    if told:
        assert block(f"evidence {folder.name}") == told
    name = "demo table" if folder.name == "streets" else f"reference {folder.name}"
    assert block(name) == text.split("\n", 1)[1].strip()


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]
    text = "".join(line for line in (ROOT / "requirements.lock").open() if not line.startswith("#"))
    pin = r"[\w.-]+==[\w.+!]+(?: ; .+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"  # and no address of an index
    assert re.fullmatch(f"(?:{pin})+", text)
    lines = [line for line in text.splitlines() if line[:1] != " "]
    pinned = {re.split(r"[=<>]", line)[0].lower().replace("_", "-") for line in lines}
    for requirement in wanted:
        assert re.split(r"[=<>]", requirement)[0].lower().replace("_", "-") in pinned, requirement


def test_links_in_the_documents_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_paper_has_its_page_and_the_readme_links_it() -> None:
    text = (ROOT / "README.md").read_text()
    for name, paper in papers().items():
        page = f"docs/methods/{paper.page or name}.md"
        assert (ROOT / page).is_file(), page
        assert paper.broken is None and paper.colour, name
        if name not in ("oracle", "source_only"):
            assert f"| `{name}` |" in text and f"({page})" in text, name


def test_pins_without_cuda_are_the_same_pins(tmp_path: Path) -> None:
    out = tmp_path / "cpu.lock"
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/cpu-lock", ROOT / "requirements.lock", out],
        capture_output=True,
        text=True,
        check=True,
    )
    whole, left = ((ROOT / "requirements.lock").read_text(), out.read_text())
    blocks = re.split(r"^(?=\w)", whole, flags=re.M)
    gone = [block for block in blocks if block not in left]
    names = {re.split(r"==", block)[0] for block in gone}
    assert names >= {"torch", "torchvision", "triton", "nvidia-cublas", "cuda-toolkit"} and len(names) < 30
    assert all("nvidia" in name or "cuda" in name or name in ("torch", "torchvision", "triton") for name in names)
    assert "timm==" in left and "torchmetrics==" in left and whole.startswith(left[:200])
    assert done.stdout.split() == re.findall(r"^torch(?:vision)?==[\w.]+", whole, re.M)


def test_every_dependency_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "markdown-it-py": "markdown_it"}
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for requirement in [*project["dependencies"], *extras["train"], *extras["analysis"]]:
        name = re.split(r"[=<>]", requirement)[0]
        assert re.search(rf"^\s*(import|from) {names.get(name, name)}\b", code, re.M), name
