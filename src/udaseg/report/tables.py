"""The tables of the page, as rows of cells; template.html makes HTML of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from udaseg.colours import shown
from udaseg.comparison import checkpoints as beside
from udaseg.comparison import tables as text
from udaseg.figures.measures import MEASURES, defined, limits, span
from udaseg.params import Params, Run

# key of run.json, its name in the page
FACTS = (
    ("protocol", "protocol"),
    ("device", "device"),
    ("ranks", "processes"),
    ("threads", "threads"),
    ("init", "start"),
    ("steps", "steps"),
    ("revision", "revision"),
    ("params_hash", "parameters"),
    ("code_hash", "code"),
    ("data_hash", "data"),
    ("versions", "versions"),
)
SHOWN = 0.05  # an IoU in % that does not read 0.0
FILES = (
    "metrics.json",
    "headline.json",
    "analysis.json",
    "iou.json",
    "confusion.csv",
    "images.csv",
    "history.csv",
    "model.safetensors",
)


@dataclass(frozen=True)
class Scored:
    """One run and what its files say."""

    run: Run
    metrics: dict[str, Any]
    measures: dict[str, Any]
    made: dict[str, Any] | None  # run.json, where there is one

    @property
    def place(self) -> str:
        """Its folder, seen from the page."""
        return f"{self.run.method_name}/seed{self.run.seed}"


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None  # what to sort by; None: the text
    best: bool = False
    colour: str | None = None  # of a class
    links: tuple[tuple[str, str], ...] = ()  # name, address


@dataclass(frozen=True)
class Table:
    key: str  # its id
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]  # the first cell names the row
    notes: Sequence[str] = field(default=())

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Titles, and how each column is sorted: "number", "text", or not at all ""."""

        def order(cells: Sequence[Cell]) -> str:
            if any(cell.links for cell in cells):
                return ""
            return "text" if any(cell.value is None for cell in cells) else "number"

        return list(zip(self.header, map(order, zip(*self.rows, strict=True)), strict=True))


def number(value: float | None, form: str) -> Cell:
    """A dash where there is no value; such rows are sorted last."""
    if value is None or not math.isfinite(value):
        return Cell("-", math.nan)
    return Cell(format(value, form), value)


def methods(p: Params, summary: dict[str, Any], runs: Mapping[str, Sequence[Scored]]) -> Table:
    """The headline: one row for each method. Columns of intervals only where there are several seeds."""
    several = len(summary["seeds"]) > 1
    interval = ["95 % interval"] if several else []
    twin = ["over its twin"] if any(block["over_off"] for block in summary["methods"].values()) else []
    test_set = text.test_split(p, summary["benchmark"])
    notes: list[str] = []
    rows = []
    for method, block in summary["methods"].items():
        miou, gain, paper = block["miou"], block["gain"], block["published"]
        reference = Cell("reference", 0.0) if method == summary["reference"] else None
        records = made(runs[method])
        seconds = known(records, "seconds")
        rows.append(
            [
                Cell(method),
                Cell(text.score(miou), miou["mean"]),
                *([interval_of(miou)] if several else []),
                reference or gain_of(gain),
                *([gain_of(block["over_off"])] if twin else []),
                Cell(text.paper(paper, test_set, notes), paper_value(paper)),
                number(max(known(records, "steps"), default=None), ".0f"),
                number(statistics.fmean(seconds) if seconds else None, ".0f"),
                number(max(known(records, "peak_memory_mb"), default=None), ".0f"),
            ]
        )
    head = ["method", "mIoU %", *interval, "gain", *twin, "published", "steps", "seconds", "memory MB"]
    times = "Seconds and memory: training alone, mean and largest over seeds; a dash where no run.json tells."
    none = [] if notes else ["No published number is known for this benchmark."]
    lines = [*text.footnotes(summary, notes), *none, times, *starts(runs)]
    return Table("methods", "Mean IoU, gain, published number, cost of training", head, rows, lines)


def starts(runs: Mapping[str, Sequence[Scored]]) -> list[str]:
    """Which methods had a training before their own, where not all had: their steps and seconds are not the whole."""
    before = [method for method, seeds in runs.items() if seeds[0].run.init == "source_only"]
    others = [method for method in runs if method not in before and method != "source_only"]
    if not before or not others:
        return []
    return [
        f"{', '.join(before)}: begin with a source-only model, whose steps and seconds are not counted in their rows."
    ]


def gain_of(value: Mapping[str, Any] | None) -> Cell:
    return Cell(text.gain(dict(value) if value else None), value["mean"] if value else math.nan)


def interval_of(value: Mapping[str, Any]) -> Cell:
    if value["ci95"] is None:
        return Cell("-", math.nan)
    low, high = value["ci95"]
    return Cell(f"{low:.2f} to {high:.2f}", low)


def paper_value(paper: Mapping[str, Any] | None) -> float:
    return math.nan if paper is None or paper["miou"] is None else paper["miou"]


def further(summary: Mapping[str, Any], run: Run) -> Table | None:
    """Scores over subsets of the classes and of other networks or views; None where there are none."""
    blocks = summary["methods"]
    same = {"miou", f"miou{len(run.classes)}"}
    extra = sorted({key for block in blocks.values() for key in block if key.startswith("miou")} - same)
    other = sorted({name for block in blocks.values() for name in block["other"]})
    if not extra + other:
        return None
    head = ["method", *(f"mIoU{key.removeprefix('miou')} %" for key in extra), *(f"{name}, mIoU %" for name in other)]
    rows = []
    for method, block in blocks.items():
        found = [block.get(key) for key in extra] + [block["other"].get(name, {}).get("miou") for name in other]
        rows.append([Cell(method), *(Cell(text.score(v), v["mean"] if v else math.nan) for v in found)])
    return Table("further", "Further scores: subsets of the classes, other networks or views of a run", head, rows)


def checkpoints(p: Params, summary: Mapping[str, Any]) -> Table | None:
    """Published checkpoints and other model files, scored as they are; None where there are none."""
    found = summary.get("checkpoints", {})
    if not found:
        return None
    test_set, notes = text.test_split(p, summary["benchmark"]), list[str]()
    rows = []
    for name, row in found.items():
        ours = summary["methods"].get(row["method"], {}).get("miou")
        rows.append(
            [
                Cell(name),
                Cell(row["kind"]),
                number(row["miou"], ".2f"),
                Cell(text.score(ours), ours["mean"] if ours else math.nan),
                Cell(text.paper(row["published"], test_set, notes), paper_value(row["published"])),
            ]
        )
    numbered = [f"[{k}] {note}" for k, note in enumerate(notes, 1)]
    head = ["model file", "kind", "mIoU %", "our runs", "published"]
    lines = [text.UNPAIRED, *beside.notes(found), *numbered]
    return Table("checkpoints", "Model files scored as they are", head, rows, lines)


def classes(summary: Mapping[str, Any], runs: Mapping[str, Sequence[Scored]]) -> Table:
    """IoU of each class and method, mean over seeds; the best of each class is marked, the oracle left out of that."""
    space = next(iter(runs.values()))[0].run.classes
    blocks = summary["methods"]
    judged = [method for method in blocks if not method.startswith("oracle")]
    rows = []
    for name, colour in zip(space.names, shown(space), strict=True):
        values = {method: block["iou"].get(name) for method, block in blocks.items()}
        best = max((values[method] or 0 for method in judged), default=0)
        cells = [number(value, ".1f") for value in values.values()]
        marked = [
            Cell(cell.text, cell.value, best=method in judged and best >= SHOWN and values[method] == best)
            for method, cell in zip(values, cells, strict=True)
        ]
        rows.append([Cell(name, colour="#{:02x}{:02x}{:02x}".format(*colour)), *marked])
    without = {
        name: [method for method, seeds in runs.items() if any(name not in scored.metrics["iou"] for scored in seeds)]
        for name in space.names
    }
    notes = ["★: the best of a class; the oracle, which has seen target labels, is left out of this."]
    if absent := [name for name in space.names if not any(name in block["iou"] for block in blocks.values())]:
        notes.append(f"Not counted, in neither truth nor prediction: {', '.join(absent)}.")
    if differ := [f"{name} (not for {', '.join(of)})" for name, of in without.items() if of and name not in absent]:
        notes.append(f"Counted for some runs only, whose mIoU is over more classes: {', '.join(differ)}.")
    return Table("classes", "IoU of each class in %, mean over seeds", ["class", *blocks], rows, notes)


def features(runs: Mapping[str, Sequence[Scored]]) -> Table:
    """Measures of feature space of each method, mean over seeds with the standard deviation."""
    rows = [
        [Cell(method), *(measured([s.measures.get(key) for s in seeds], m.digits) for key, m in MEASURES.items())]
        for method, seeds in runs.items()
    ]
    head = ["method", *(f"{measure.title} {'↑' if measure.more else '↓'}" for measure in MEASURES.values())]
    found = {method: [scored.measures for scored in seeds] for method, seeds in runs.items()}
    cells, count = (span(one.get(key) for seeds in found.values() for one in seeds) for key in ("cells", "classes"))
    notes = [
        "↑ higher is better, ↓ lower is better. Of target features where nothing else is said; what each measure is: "
        "docs/analysis.md.",
        f"A run has {cells} cells of {count} classes in each domain.",
        *limits(found),
    ]
    if left_out := sorted({name for seeds in found.values() for one in seeds for name in one.get("left_out", [])}):
        notes.append(f"Left out of it, too few pure cells: {', '.join(left_out)}.")
    return Table("features", "Tightness and separation of classes, likeness of domains", head, rows, notes)


def measured(values: Sequence[Any], digits: int) -> Cell:
    found = defined(values)
    if not found:
        return Cell("-", math.nan)
    mean = statistics.fmean(found)
    spread = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return Cell(f"{mean:.{digits}f}{spread}", mean)


def shared(runs: Sequence[Scored]) -> list[tuple[str, str]]:
    """What all run.json say alike, as names and values."""
    return [(title, fact(made(runs)[0], key)) for key, title in FACTS if made(runs) and alike(runs, key)]


def made(runs: Sequence[Scored]) -> list[dict[str, Any]]:
    return [scored.made for scored in runs if scored.made]


def known(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The numbers that there are under a key."""
    return [one[key] for one in records if isinstance(one.get(key), int | float)]


def alike(runs: Sequence[Scored], key: str) -> bool:
    return len({fact(one, key) for one in made(runs)}) == 1


def fact(one: Mapping[str, Any], key: str) -> str:
    value = one.get(key)
    if value is None:
        return "-"
    if key == "versions":
        return ", ".join(f"{name} {version}" for name, version in sorted(value.items()))
    if key == "revision":
        return f"{value[:12]} with uncommitted changes" if one.get("dirty") else value[:12]
    return str(value)[:16] if key.endswith("_hash") else str(value)


def runs(all_runs: Sequence[Scored]) -> Table:
    """How each number was made: what run.json says and the files of each run."""
    columns = [(key, title) for key, title in FACTS if not alike(all_runs, key)] if made(all_runs) else []
    rows = []
    for scored in all_runs:
        one = scored.made
        links = tuple((name, f"{scored.place}/{name}") for name in FILES if (scored.run.folder / name).exists())
        if one is None:
            facts = [Cell("-") for _ in columns] + [Cell("-", math.nan)] * 2 + [Cell("no run.json here")]
        else:
            facts = [Cell(fact(one, key)) for key, _ in columns]
            facts += [number(one.get("seconds"), ".0f"), number(one.get("peak_memory_mb"), ".0f")]
            facts += [Cell("; ".join([one.get("command", "-"), *remarks(scored, one)]))]
        name, seed = scored.run.method_name, scored.run.seed
        rows.append(
            [Cell(f"{name}, seed {seed}"), number(scored.metrics["miou"], ".2f"), *facts, Cell("", links=links)]
        )
    head = ["run", "mIoU %", *(title for _, title in columns), "seconds", "memory MB", "command", "files"]
    return Table("runs", "How each number was made", head, rows)


def remarks(scored: Scored, one: Mapping[str, Any]) -> list[str]:
    out = []
    if one.get("taken_from"):
        out.append(f"taken from {one['taken_from']}, which has the same recipe")
    if one.get("params_hash") != scored.run.hash:
        out.append(f"parameters differ from those of params.yaml now ({scored.run.hash})")
    return out


def effort(all_runs: Sequence[Scored]) -> str:
    """Time and memory of all trainings together; one that serves several methods counts once."""
    # a run that took another's training over has its record, but for these two keys
    own = {json.dumps(one | {"method": "", "taken_from": ""}, sort_keys=True): one for one in made(all_runs)}
    seconds, memory = (known(list(own.values()), key) for key in ("seconds", "peak_memory_mb"))
    if not seconds:
        return "No run.json here says how long the trainings took."
    most = f", at most {max(memory):,.0f} MB each" if memory else ""
    return f"{len(seconds)} trainings, {sum(seconds) / 60:.0f} minutes in all{most}."
