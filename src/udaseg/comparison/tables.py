"""summary.md: a table that reads well in a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from udaseg.checking import lookup
from udaseg.comparison import checkpoints
from udaseg.errors import UserError
from udaseg.params import Params

MARK = " †"  # of a row that a correction has superseded
UNPAIRED = "Trained elsewhere and scored here, each file once: nothing pairs them with the seeds above."
ROUNDING = 2.6  # largest difference of mIoU between two kinds of CPU, same seed: BCL on streets
SYNTHETIC = ("streets", "gta5", "synthia")  # formats of rendered images


def markdown(summary: dict[str, Any], p: Params) -> str:
    """Methods, scores, paired gains, published numbers with their sources below."""
    size = len(p.resolve(summary["benchmark"], "source_only", 0).classes)
    blocks = summary["methods"]
    # a subset over all classes (miou19 of 19) says what mIoU says
    extra = sorted({key for b in blocks.values() for key in b if key.startswith("miou")} - {"miou", f"miou{size}"})
    other = sorted({name for block in blocks.values() for name in block["other"]})
    shown = [plain(name) for name in other]
    twins = any(block["over_off"] for block in blocks.values())
    images = any(block.get("images") for block in blocks.values())
    notes: list[str] = []
    header = [
        "method",
        "mIoU",
        "gain [95 %]",
        *(["over its twin"] if twins else []),
        *(["of images [95 %]"] if images else []),
        *(f"mIoU{key.removeprefix('miou')}" for key in extra),
        *shown,
        "published",
    ]
    rows = [
        [
            method + (MARK if "superseded" in block else ""),
            score(block["miou"]),
            "reference" if method == summary["reference"] else gain(block["gain"]),
            *([gain(block["over_off"])] if twins else []),
            *([gain(block.get("images"))] if images else []),
            *(score(block.get(key)) for key in extra),
            *(score(block["other"].get(name, {}).get("miou")) for name in other),
            paper(block["published"], test_split(p, summary["benchmark"]), notes),
        ]
        for method, block in blocks.items()
    ]
    lines = [*heading(summary, p, size), "", *aligned(header, rows), "", *footnotes(summary, notes)]
    return "\n".join([*lines, *files_scored(summary, test_split(p, summary["benchmark"]))]) + "\n"


def files_scored(summary: dict[str, Any], test_set: str) -> list[str]:
    """The table of published checkpoints and other model files, where there are any: comparison/checkpoints.py."""
    found = summary.get("checkpoints", {})
    if not found:
        return []
    notes: list[str] = []
    extra = sorted({key for row in found.values() for key in row if key.startswith("miou")} - {"miou"})
    header = [
        "model file",
        "kind",
        "mIoU",
        *(f"mIoU{key.removeprefix('miou')}" for key in extra),
        "our runs",
        "published",
    ]
    rows = [
        [
            name,
            row["kind"],
            f"{row['miou']:.2f}",
            *(f"{row[key]:.2f}" if key in row else "-" for key in extra),
            score(summary["methods"].get(row["method"], {}).get("miou")),
            paper(row["published"], test_set, notes),
        ]
        for name, row in found.items()
    ]
    numbered = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    return ["", *aligned(header, rows), "", UNPAIRED, *checkpoints.notes(found), *numbered]


def test_split(p: Params, benchmark: str) -> str:
    """The split that the headline is measured on; UserError for a benchmark without one, or that is not known."""
    splits = lookup(p.benchmarks, benchmark, "benchmark").evaluate
    if not splits:
        raise UserError(
            f"params.yaml: benchmarks.{benchmark}.evaluate: found none, expected at least one labelled split"
        )
    return splits[0]


def synthetic(p: Params, split: str) -> bool:
    """Whether the images of `<data set>/<split>` are rendered."""
    return p.datasets[split.partition("/")[0]].format in SYNTHETIC


def heading(summary: dict[str, Any], p: Params, classes: int) -> list[str]:
    name, seeds = summary["benchmark"], summary["seeds"]
    first = test_split(p, name)
    rendered = ", synthetic images" if synthetic(p, first) else ""
    return [
        f"# {name}",
        "",
        f"mIoU over {classes} classes in %, {plain(first)}{rendered}; protocol {summary['protocol']}; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}.",
    ]


def footnotes(summary: dict[str, Any], notes: Sequence[str]) -> list[str]:
    if len(summary["seeds"]) == 1:
        text = (
            f"One seed: no standard deviation and no interval. Rounding alone, as on another processor, has moved single runs by up to "
            f"{ROUNDING} points (docs/evidence.md): smaller differences mean nothing."
        )
    else:
        text = "mean ± sample standard deviation (number of seeds); intervals are 95 % of Student's t."
    if summary["reference"]:
        text += f" Gain: paired difference to {summary['reference']} of the same seed."
    if any(block["over_off"] for block in summary["methods"].values()):
        text += " Twin: the same recipe without contrast; a dash where none was trained."
    if any(block.get("images") for block in summary["methods"].values()):
        text += (
            " Of images: that difference for each test image, its mean, and 95 % of a paired bootstrap over the images: how far other "
            "images would move it, not other seeds."
        )
    if old := sorted({block["superseded"] for block in summary["methods"].values() if "superseded" in block}):
        text += f" {MARK.strip()} made before correction {' or '.join(old)} (CHANGELOG.md), to be made again."
    if notes:
        text += " Published numbers come from the papers' own recipes and are not measured here."
    return [text, *(f"[{number}] {note}" for number, note in enumerate(notes, 1))]


def plain(name: str) -> str:
    """A name of the user's as Markdown shows it: no HTML, no mark-up, no end of a cell."""
    text = "".join(letter if letter.isprintable() else " " for letter in name)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*[]|!" else letter for letter in text)


def score(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    if value["std"] is None:
        return f"{value['mean']:.2f}"
    return f"{value['mean']:.2f} ± {value['std']:.2f} ({value['n']})"


def gain(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    if value["ci95"] is None:
        return f"{value['mean']:+.2f}"
    low, high = value["ci95"]
    return f"{value['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"


def paper(value: dict[str, Any] | None, test_set: str, notes: list[str]) -> str:
    """A published number with its backbone; where it comes from goes to `notes`."""
    if value is None:
        return "-"
    easier = "; other classes were not scored there: compare with the column `ignored`" if value.get("ignoring") else ""
    notes.append(f"{value['variant']}; {value['source']}{easier}")
    number = "not readable" if value["miou"] is None else f"{value['miou']:.1f}"
    elsewhere = "" if value["tested_on"] == test_set else f" on {value['tested_on']}"
    return f"{number} {value['backbone']}{elsewhere} [{len(notes)}]"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up; the first and the last to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    left = {0, len(header) - 1}

    def line(cells: Sequence[str]) -> str:
        padded = (f"{c:<{w}}" if i in left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ("-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths))
    return [line(header), f"| {' | '.join(rule)} |", *map(line, rows)]
