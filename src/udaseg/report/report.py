"""results/<benchmark>/report.html: one file with everything that a reader wants to see and check, without a network.

Every number comes from a file of the run or of `compare`; equal files give an equal page.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from udaseg import results
from udaseg.artifacts import writing
from udaseg.comparison.compare import read_summary
from udaseg.comparison.tables import synthetic, test_split
from udaseg.errors import UserError
from udaseg.params import Params, Run, uses
from udaseg.report import papers, tables
from udaseg.report.tables import Scored

LARGEST = 1_100_000  # bytes of one figure: nine of them stay below 15 MB as text
COLUMN = 1200  # pixels; a figure for one column of print has fewer
TOP = "../.."  # of the checkout, seen from the page
# in the order of the page: what each figure is called, and what it shows to somebody who cannot see it
FIGURES = {
    "gain": (
        "Gain over self-training",
        "Chart of the gain in mIoU of each method; the table of methods has the numbers",
    ),
    "published": (
        "Published and measured",
        "Chart of measured and published mIoU of each method; the table of methods has the numbers",
    ),
    "qualitative": ("Predictions", "Test images with their truth and, for each method, the prediction and its errors"),
    "iou_bars": ("IoU of each class", "Bars of the IoU of each class and method; the table of classes has the numbers"),
    "iou_heatmap": (
        "Methods by classes",
        "Heat map of the IoU, methods by classes; the table of classes has the numbers",
    ),
    "confusion": (
        "What is taken for what",
        "Confusion matrices, one for each method; confusion.csv of each run has the numbers",
    ),
    "tsne": ("Features as a map", "t-SNE maps of pixel features, one for each method, coloured by class"),
    "compactness": ("Tightness of classes", "Bars of measures of feature space; the table of features has the numbers"),
    "curves": ("Training", "Curves of the training losses over the steps; history.csv of each run has the numbers"),
}


def write_report(p: Params, benchmark: str) -> Path:
    """Write the page of a benchmark from summary.json, figures and the files of every method and seed of `run`.

    Raises:
        UserError: one of them is missing, damaged or of other methods and seeds; the benchmark has no labelled split; the
            folder cannot be written.
    """
    folder = Path("results") / benchmark
    test_split(p, benchmark)
    summary = read_summary(p, benchmark)
    methods = {
        method: [Scored(run, results.metrics(run), results.analysis(run), results.record(run)) for run in runs]
        for method, runs in results.runs_of(p, benchmark).items()
    }
    pictures = [read_picture(benchmark, name) for name in FIGURES]
    text = render(p, summary, methods, pictures)
    with writing(folder / "report.html") as temporary:
        temporary.write_bytes(text.encode())
    return folder / "report.html"


@dataclass(frozen=True)
class Picture:
    """One figure as it stands in the page."""

    name: str
    title: str
    alt: str
    caption: str
    uri: str
    width: int  # of the embedded image
    height: int
    wide: bool  # drawn for two columns of print
    shrunk: bool  # embedded smaller than its file

    @property
    def files(self) -> list[str]:
        return [f"{self.name}.png", f"{self.name}.pdf"]


def read_picture(benchmark: str, name: str) -> Picture:
    """A figure's PNG as a data URI; one above LARGEST is halved in width and height until it is below."""
    path = Path("figures") / benchmark / f"{name}.png"
    command = f"udaseg figure {name} --benchmark {benchmark}"
    try:
        data = path.read_bytes()
        Image.open(io.BytesIO(data)).verify()
        image: Image.Image = Image.open(io.BytesIO(data))
        width, height = image.size
        wide, shrunk = width > COLUMN, len(data) > LARGEST
        while len(data) > LARGEST:
            image = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            data, (width, height) = buffer.getvalue(), image.size
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `{command}`") from None
    # Pillow's answers to a damaged PNG, and to one of too many pixels
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: no complete PNG ({error}); run `{command}` again") from None
    title, alt = FIGURES[name]
    caption = " ".join(read_text(f"captions/{name}.rst").split())
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    return Picture(name, title, alt, caption, uri, width, height, wide, shrunk)


def render(p: Params, summary: dict[str, Any], methods: dict[str, list[Scored]], pictures: list[Picture]) -> str:
    """The page's text."""
    style, script = read_text("style.css"), read_text("script.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    runs = [scored for seeds in methods.values() for scored in seeds]
    first = [seeds[0].run for seeds in methods.values()]
    return environment.from_string(read_text("template.html")).render(
        style=Markup(style),  # our own two files
        script=Markup(script),
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        top=TOP,
        benchmark=summary["benchmark"],
        summary=summary,
        lead=lead(p, summary, runs[0]),
        headline=tables.methods(p, summary, methods),
        further=tables.further(summary, first[0]),
        checkpoints=tables.checkpoints(p, summary),
        pictures=pictures,
        classes=tables.classes(summary, methods),
        features=tables.features(methods),
        shared=tables.shared(runs),
        runs=tables.runs(runs),
        effort=tables.effort(runs),
        settings=[(run, settings(run), papers.pages(run)) for run in first],
        papers=papers.read_all(first, f"{TOP}/docs/methods"),
    )


def read_text(name: str) -> str:
    return (resources.files("udaseg.report") / name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """Of an inline style or script, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def lead(p: Params, summary: dict[str, Any], scored: Scored) -> list[tuple[str, str]]:
    """What was measured on what, as terms and their values."""
    run = scored.run
    sets: dict[str, list[str]] = {"source": [], "target": [], "evaluate": []}
    for use in uses(run.benchmark):
        split = f"{use.dataset}/{use.split}"
        sets[use.role].append(f"{split}, {use.size}{' (synthetic images)' if synthetic(p, split) else ''}")
    seeds = summary["seeds"]
    return [
        ("Source, labelled", sets["source"][0]),
        ("Target, unlabelled", sets["target"][0]),
        ("Scored on", sets["evaluate"][0]),
        ("Images, labelled pixels", f"{scored.metrics['images']:,}, {scored.metrics['pixels']:,}"),
        ("Classes", str(len(run.classes))),
        ("Protocol", summary["protocol"]),
        ("Seeds", "one seed: no interval" if len(seeds) == 1 else ", ".join(map(str, seeds))),
    ]


def settings(run: Run) -> str:
    """All that decides a run's result, as YAML."""
    plain = json.loads(json.dumps(run.resolved, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
