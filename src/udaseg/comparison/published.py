"""Published numbers to stand beside ours: published.csv, each row with its source.

Columns: our names of method and benchmark (methods that this project lacks keep the literature's), `tested_on` as
dataset/split, variant and backbone in the source's words, mIoU over 19, 16 and 13 classes and IoU by class in percent.
An empty cell could not be read in public material. Of rows alike the first is the one put beside ours.
"""

from __future__ import annotations

import csv
import functools
import io
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from udaseg.classes import NAMES
from udaseg.params import Benchmark, Model

SCORES = ("miou", "miou16", "miou13")
HEADLINE = {"cityscapes19": "miou", "cityscapes16": "miou16", "cityscapes13": "miou13"}  # class space -> column
# measured without the pixels of classes that the source lacks: an easier test, ours under `other.ignored`
IGNORING = {("plca", "synthia2cityscapes")}
PAPERS_OWN = (
    "released",
    "night",
    "synthia",
    "hrda",
    "hrda_released",
)  # variants: the same method as its authors run it
NETWORKS = {"deeplabv2": "DeepLab-V2", "daformer": "DAFormer", "segformer": "SegFormer"}


@dataclass(frozen=True)
class Row:
    method: str
    benchmark: str
    tested_on: str
    variant: str
    backbone: str  # network (encoder)
    scores: dict[str, float]  # what could be read of SCORES, in percent
    iou: dict[str, float]  # what could be read, by class
    source: str


@functools.cache
def rows() -> tuple[Row, ...]:
    """The whole table, in its order."""
    text = (resources.files("udaseg.comparison") / "published.csv").read_text(encoding="utf-8")
    return tuple(parse(cells) for cells in csv.DictReader(io.StringIO(text)))


def parse(cells: dict[str, str]) -> Row:
    def numbers(names: tuple[str, ...]) -> dict[str, float]:
        return {name: float(cells[name]) for name in names if cells[name]}

    return Row(
        method=cells["method"],
        benchmark=cells["benchmark"],
        tested_on=cells["tested_on"],
        variant=cells["variant"],
        backbone=cells["backbone"],
        scores=numbers(SCORES),
        iou=numbers(NAMES),
        source=cells["source"],
    )


def lookup(method: str, name: str, benchmark: Benchmark) -> dict[str, Any] | None:
    """The published result nearest to a method of ours on a benchmark, for summary.json.

    Nearest: the same test images first (Dark Zurich is published on its test server only), then the same network, then the
    same encoder, then a row that can be read. `miou` is the mean over the benchmark's classes, None where not readable.

    Returns:
        None if the table holds nothing for this method and benchmark.
    """
    column = HEADLINE.get(benchmark.classes) if isinstance(benchmark.classes, str) else None
    family = family_of(method)
    families = {family, "hrda"} if family == "self_training" and benchmark.model.hrda else {family}
    data = name.partition("-")[0]  # gta2cityscapes-hrda: the same data, another network
    found = [row for row in rows() if column and row.method in families and row.benchmark == data]
    test_sets = {use.partition("/")[0] for use in benchmark.evaluate[:1]}
    found = [row for row in found if row.tested_on.partition("/")[0] in test_sets]
    if not found or column is None:
        return None
    network, encoder = backbone_of(benchmark.model)

    def distance(row: Row) -> tuple[bool, ...]:
        other = row.tested_on not in benchmark.evaluate[:1]
        return other, network not in row.backbone, encoder not in row.backbone, column not in row.scores

    best = min(found, key=distance)
    return {
        "miou": best.scores.get(column),
        **{key: value for key, value in best.scores.items() if key not in ("miou", column)},
        "iou": best.iou,
        "backbone": best.backbone,
        "variant": best.variant,
        "tested_on": best.tested_on,
        "source": best.source,
        "ignoring": (best.method, best.benchmark) in IGNORING,
    }


def family_of(method: str) -> str | None:
    """The table's name for a method of ours: its own if listed, else its family's where it stands for the paper's own result.

    Ablations, twins and combinations of ours have none.
    """
    known = {row.method for row in rows()}
    kind, _, variant = method.partition("-")
    if method in known:
        return method
    return kind if kind in known and variant in PAPERS_OWN else None


def backbone_of(model: Model) -> tuple[str, str]:
    """Network and encoder in the words of the table."""
    mit = re.fullmatch(r"pvt_v2_b(\d)", model.backbone)
    resnet = re.fullmatch(r"resnet(\d+)\w*", model.backbone)
    encoder = f"MiT-B{mit[1]}" if mit else f"ResNet-{resnet[1]}" if resnet else model.backbone
    return "HRDA" if model.hrda else NETWORKS.get(model.head, model.head), encoder
