"""What the page says: everything from files, nothing invented, nothing lost."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import docutils.core
import jinja2
import numpy as np
import pytest
import yaml
from PIL import Image
from written import rescore, write_project

from tiny_project import ROOT
from udaseg import params
from udaseg.comparison.compare import compare_benchmark
from udaseg.errors import UserError
from udaseg.figures import NAMES
from udaseg.report import papers, report
from udaseg.report.report import FIGURES, write_report


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page of a project with one seed will be; the working directory becomes the project."""
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def page() -> str:
    return write_report(params.load(), "streets").read_text(encoding="utf-8")


def row(text: str, table: str, name: str) -> list[str]:
    """Texts of a row's cells."""
    body = re.search(rf'<table[^>]*id="{table}-table">(.*?)</table>', text, re.S)
    assert body
    rows = [re.findall(r"<(?:th|td)[^>]*>(.*?)</(?:th|td)>", part, re.S) for part in body[1].split("<tr>")]
    texts = [[re.sub(r"<[^>]*>", "", cell).strip() for cell in cells] for cells in rows]
    (found,) = [cells for cells in texts if cells[:1] == [name]]
    return found


def test_equal_files_give_an_equal_page(written: Path) -> None:
    first = page()
    written.unlink()
    assert page() == first


def test_numbers_are_those_of_the_files(written: Path) -> None:
    text = page()
    assert row(text, "methods", "source_only") == ["source_only", "40.00", "+0.58", "-", "400", "90", "1000"]
    assert row(text, "methods", "self_training")[1:3] == ["39.42", "reference"]
    assert row(text, "further", "self_training") == ["self_training", "12.00"]
    assert row(text, "features", "source_only")[1] == "0.500"
    assert "A run has 60 cells of 3 classes" in text and "Probes" not in text
    assert "4, 8,192" in text and "synthetic images" in text


def test_published_checkpoints_stand_beside_the_methods(written: Path) -> None:
    before = page()
    home = Path("results/published/streets/mic <b>")
    home.mkdir(parents=True)
    (home / "metrics.json").write_text(json.dumps({"miou": 61.25, "iou": {"road": 1.0}}))
    origin = {"file": "latest.pth", "sha256": "ab" * 32, "family": "HRDA or MIC", "network": "student"}
    network = params.load().raw["benchmarks"]["streets"]["model"]
    (home / "run.json").write_text(json.dumps({"origin": origin, "method": "self_training", "network": network}))
    compare_benchmark(params.load(), "streets")
    text = page()
    assert "checkpoints-table" not in before and "<b>" not in re.sub(r"<b><span.*?</b>", "", text)
    assert row(text, "checkpoints", "mic &lt;b&gt;")[1:] == ["published checkpoint", "61.25", "39.42", "-"]
    assert "HRDA or MIC, student, of latest.pth (sha256 abababababababab)" in text
    shutil.rmtree(home)
    compare_benchmark(params.load(), "streets")
    assert page() == before


def test_best_of_a_class_is_marked_and_the_oracle_left_out(written: Path) -> None:
    text = page()
    assert row(text, "classes", "road") == ["road", "★ best: 40.0", "8.0", "90.0"]
    assert row(text, "classes", "sky") == ["sky", "70.0", "★ best: 80.2", "95.0"]
    assert row(text, "classes", "fog") == ["fog", "-", "-", "-"]
    assert "Not counted, in neither truth nor prediction: fog." in text and "for some runs only" not in text


def test_a_class_that_nobody_finds_has_no_best(written: Path) -> None:
    for path in Path("results/streets").glob("*/seed0/metrics.json"):
        rescore(path, sky=0.04)
    compare_benchmark(params.load(), "streets")
    assert row(page(), "classes", "sky") == ["sky", "0.0", "0.0", "0.0"]


def test_twins_and_unequal_starts_are_said(written: Path) -> None:
    text = page()
    assert "over its twin" not in text and "whose steps and seconds" not in text
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["methods"]["self_training"]["terms"] = ["sepico"]
    raw["methods"]["self_training"]["source_view"] = "strong"
    raw["methods"]["self_training"]["sepico"] = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]["sepico"][
        "sepico"
    ]
    raw["methods"]["self_training-off"] = raw["methods"]["self_training"] | {"terms": []}
    raw["run"]["methods"].append("self_training-off")
    raw["benchmarks"]["streets"]["init"]["oracle"] = "none"
    Path("params.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True))
    shutil.copytree("results/streets/source_only", "results/streets/self_training-off")
    compare_benchmark(params.load(), "streets")
    text = page()
    assert row(text, "methods", "self_training")[2:4] == ["reference", "-0.58"]
    assert "self_training, self_training-off: begin with a source-only model" in text


def test_methods_that_count_other_classes_are_named(written: Path) -> None:
    """The oracle predicts a class that nobody else predicts and no label has."""
    rescore(Path("results/streets/oracle/seed0/metrics.json"), fog=0.0)
    compare_benchmark(params.load(), "streets")
    text = page()
    assert "over more classes: fog (not for source_only, self_training)." in text and "Not counted" not in text


def test_directions_of_the_measures(written: Path) -> None:
    assert row(page(), "features", "method")[1:] == [
        "variance in a class ↓",
        "separation of centres ↑",
        "separation / variance ↑",
        "silhouette ↑",
        "centre distance (CCD) ↓",
        "discrimination (PDD) ↑",
        "gap of domains ↓",
        "linear probe (%) ↑",
        "linear probe from source (%) ↑",
        "k\u2011NN (%) ↑",
        "k\u2011NN from source (%) ↑",
    ]


def test_limits_of_the_measures_are_said(written: Path) -> None:
    text = page()
    assert row(text, "features", "oracle")[6] == "-"
    assert "PDD is not defined for source_only, self_training, oracle" in text
    path = Path("results/streets/oracle/seed0/analysis.json")
    other = {"cells": 40, "classes": 4, "probe_classes": 3, "probe_split": "cell"}
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    text = page()
    assert "A run has 40 to 60 cells of 3 to 4 classes" in text
    assert "Probes saw all images" in text and "Probes were asked for 3 of 4 classes" in text


def test_published_numbers_have_their_source_and_unreadable_ones_say_so(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = {
        "backbone": "DAFormer (MiT-B5)",
        "variant": "v1",
        "tested_on": "cityscapes/val",
        "source": "a paper",
        "iou": {},
    }
    papers = {"self_training": paper | {"miou": 68.3}, "oracle": paper | {"miou": None}}
    monkeypatch.setattr("udaseg.comparison.published.lookup", lambda method, *_: papers.get(method))
    compare_benchmark(params.load(), "streets")
    text = page()
    assert "68.3 DAFormer (MiT-B5) on cityscapes/val [1]" in row(text, "methods", "self_training")
    assert "not readable DAFormer (MiT-B5) on cityscapes/val [2]" in row(text, "methods", "oracle")
    assert "[1] v1; a paper" in text and "No published number" not in text


def test_one_seed_has_no_interval_and_says_so(written: Path) -> None:
    assert "one seed: no interval" in page() and ">95 % interval" not in page()


def test_several_seeds_have_spread_and_interval(finished: Path) -> None:
    text = finished.read_text()
    cells = row(text, "methods", "source_only")
    assert cells[1] == "40.50 ± 0.71 (2)" and cells[-2] == "100" and re.fullmatch(r"34\.15 to 46\.85", cells[2])
    assert row(text, "features", "source_only")[1] == "1.000 ± 0.707"
    assert row(text, "runs", "source_only, seed 1")[1] == "41.00"


def test_seeds_may_stand_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, seeds=(1, 0))
    assert row(page(), "runs", "source_only, seed 1")[1] == "41.00"


def test_a_run_without_record_says_so(written: Path) -> None:
    text = page()
    assert "no run.json here" in row(text, "runs", "oracle, seed 0")
    assert row(text, "methods", "oracle")[-3:] == ["-", "-", "-"]


@pytest.mark.parametrize("key", ["steps", "seconds", "peak_memory_mb"])
def test_a_record_that_lacks_a_number_says_so(written: Path, key: str) -> None:
    for method in ("source_only", "self_training"):
        path = Path(f"results/streets/{method}/seed0/run.json")
        record = json.loads(path.read_text())
        del record[key]
        path.write_text(json.dumps(record))
    text = page()
    column = ["steps", "seconds", "peak_memory_mb"].index(key) - 3
    assert row(text, "methods", "source_only")[column] == "-"
    assert ("No run.json here says how long" in text) == (key == "seconds")


def test_a_training_that_serves_several_runs_counts_once(written: Path) -> None:
    """One run took over what another had taken over."""
    for method, taken in (("source_only", "pretrained"), ("self_training", "source_only"), ("oracle", "self_training")):
        path = Path(f"results/streets/{method}/seed0/run.json")
        record = json.loads(Path("results/streets/source_only/seed0/run.json").read_text())
        path.write_text(json.dumps(record | {"method": method, "taken_from": f"results/streets/{taken}/seed0"}))
    assert "1 trainings, 2 minutes in all, at most 1,000 MB each" in page()


def test_a_record_of_other_parameters_says_so(written: Path) -> None:
    assert "parameters differ" not in page()
    path = Path("results/streets/self_training/seed0/run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"params_hash": "other", "taken_from": "elsewhere"}))
    (command,) = [cell for cell in row(page(), "runs", "self_training, seed 0") if cell.startswith("udaseg train")]
    assert "parameters differ from those of params.yaml now" in command and "taken from elsewhere" in command


def test_records_are_told_in_full(written: Path) -> None:
    text = page()
    for fact in ("0123456789ab", "c0de", "CPU x86_64", "torch 2.15.0", "matched", "--method self_training --seed 0"):
        assert fact in text
    assert params.load().resolve("streets", "self_training", 0).hash in text
    assert "2 trainings, 3 minutes in all, at most 1,000 MB each" in text


def test_markup_in_names_is_text(written: Path) -> None:
    text = page()
    assert "Gehweg &amp; &lt;b&gt;Bäume&lt;/b&gt;" in text and "<b>Bäume" not in text


def test_departures_of_the_methods_used_are_in_the_page(written: Path) -> None:
    text = page()
    assert "half of those in the batch: an image may get none of its own" in text
    assert "Bidirectional" not in text and 'docs/methods/bcl.md"' not in text


def test_without_docs_the_page_names_them(written: Path) -> None:
    Path("docs").rename("elsewhere")
    assert "docs/methods/self_training.md</a>" in page()


def test_markdown_becomes_a_captioned_table_with_links_from_the_report(written: Path) -> None:
    Path("docs/methods/self_training.md").write_text(
        "# T\n\n## Departures\n\n| a | b |\n|---|--:|\n| [x](bcl.md#y), [z](https://example.org) | <i>1</i> |\n\n"
        "### Further\n\n[here](#z)\n\n## Cost\n\nmuch\n"
    )
    (one,) = [page for page in papers.read_all([params.load().resolve("streets", "self_training", 0)], "up")]
    assert one.body is not None and "<caption>T: Departures</caption>" in one.body and 'scope="col"' in one.body
    assert 'href="up/self_training.md#z"' in one.body and "Further" in one.body
    assert 'href="up/bcl.md#y"' in one.body and 'href="https://example.org"' in one.body
    assert "&lt;i&gt;" in one.body and "style=" not in one.body and "much" not in one.body


@pytest.mark.parametrize("path", sorted((ROOT / "docs/methods").glob("*.md")), ids=lambda path: path.stem)
def test_every_method_page_has_departures(path: Path) -> None:
    expected = path.stem != "source_only"
    assert bool(re.search("^## .*departures", path.read_text(), re.M | re.I)) == expected


def test_links_lead_to_files(written: Path) -> None:
    text = page()
    links = [link for link in re.findall(r'href="([^"#]+)"', text) if not link.startswith("http")]
    assert "self_training/seed0/metrics.json" in links and "../../docs/methods/self_training.md" in links
    assert not [link for link in links if not (written.parent / unquote(link)).exists()]


def test_a_large_figure_is_halved_and_the_page_stays_small(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save("figures/streets/tsne.png")
    monkeypatch.setattr(report, "LARGEST", 100_000)
    picture = report.read_picture("streets", "tsne")
    assert (picture.width, picture.height) == (200, 150) and len(picture.uri) < 140_000
    assert not report.read_picture("streets", "gain").shrunk
    assert "Shown smaller than the file." in page()


def test_nine_of_the_largest_figures_fit() -> None:
    assert len(NAMES) * report.LARGEST * 4 / 3 < 14.5e6


def test_every_figure_has_title_alternative_and_caption() -> None:
    assert set(FIGURES) == set(NAMES)
    for name in NAMES:
        assert report.read_text(f"captions/{name}.rst").strip().endswith(".")


@pytest.mark.parametrize("name", ["gain", "tsne"])
def test_snakemake_reads_the_same_caption(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As snakemake --report does it: Jinja first, then reStructuredText, at the top of the checkout."""
    monkeypatch.chdir(ROOT)
    rule = SimpleNamespace(wildcards=SimpleNamespace(figure=name, benchmark="streets"))
    text = jinja2.Template(Path("workflow/report/figure.rst").read_text()).render(snakemake=rule)
    body = docutils.core.publish_parts(text, writer="html")["body"]
    assert " ".join(report.read_text(f"captions/{name}.rst").split()) in " ".join(unescape(body).split())


def change(name: str, **values: object) -> None:
    path = Path("results/streets", name)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def folder_for(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no summary": (Path("results/streets/summary.json").unlink, "run `udaseg compare --benchmark streets`"),
    "a damaged summary": (lambda: Path("results/streets/summary.json").write_text("{"), "damaged"),
    "no comparison": (lambda: Path("results/streets/summary.json").write_text("{}"), "found no comparison in it"),
    "a summary of other methods": (
        lambda: Path("params.yaml").write_text(
            Path("params.yaml").read_text().replace("  - source_only\n  - self", "  - self")
        ),
        "found methods oracle, self_training, source_only with seeds 0, expected those of `run`",
    ),
    "nothing scored": (
        lambda: Path("params.yaml").write_text(
            re.sub(r"evaluate:\n.*\n", "evaluate: []\n", Path("params.yaml").read_text())
        ),
        "benchmarks.streets.evaluate: found none, expected at least one labelled split",
    ),
    "no figure": (Path("figures/streets/tsne.png").unlink, "run `udaseg figure tsne --benchmark streets`"),
    "half a figure": (
        lambda: Path("figures/streets/gain.png").write_bytes(Path("figures/streets/gain.png").read_bytes()[:100]),
        "no complete PNG",
    ),
    "no measures": (
        Path("results/streets/oracle/seed0/analysis.json").unlink,
        "run `udaseg analyse --benchmark streets --method oracle --seed 0`",
    ),
    "a damaged record": (
        lambda: Path("results/streets/self_training/seed0/run.json").write_text("{]"),
        "self_training/seed0/run.json: damaged",
    ),
    "a record of odd values": (
        lambda: change("self_training/seed0/run.json", versions=["torch"]),
        "run.json: damaged (versions: found ['torch'])",
    ),
    "a summary of other scores": (
        lambda: rescore(Path("results/streets/oracle/seed0/metrics.json"), sky=96.0),
        "summary.json: methods.oracle.miou.mean: found 78.3333, expected 78.6667 by the scores",
    ),
    "forged scores": (
        lambda: change("oracle/seed0/metrics.json", miou=77.7),
        "miou: found 77.7, but the mean of its classes' IoU is 78.3333",
    ),
    "forged measures": (
        lambda: change("oracle/seed0/analysis.json", linear_probe=123.0),
        "linear_probe: found 123.0, expected 0 to 100",
    ),
    "a folder of scores": (
        lambda: folder_for(Path("results/streets/oracle/seed0/metrics.json")),
        "metrics.json: cannot be read (Is a directory)",
    ),
    "no scores": (Path("results/streets/oracle/seed0/metrics.json").unlink, "run `udaseg evaluate"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_the_old_page_stays(written: Path, case: str) -> None:
    before = page()
    spoil, message = BAD[case]
    spoil()
    with pytest.raises(UserError) as error:
        page()
    assert message in str(error.value) and "\n" not in str(error.value)
    assert written.read_text(encoding="utf-8") == before
