"""The table of published numbers: plausible, complete in its sources, and looked up as documented."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from udaseg import params
from udaseg.classes import NAMES, NOT_IN_13, NOT_IN_16
from udaseg.comparison import published

ROOT = Path(__file__).parents[2]
OURS = {"source_only", "oracle", "self_training", "self_training-dacs", "hrda", "mic", "bcl", "plca", "pipa", "cluda"}
OURS |= {"sepico", "sepico-bank", "sepico-proto"}
LITERATURE = {
    *("AdaptSegNet", "AdvEnt", "ProDA", "ProDA warm-up", "CPSL", "QuadMix", "VFM-UDA", "VFM-UDA++"),
    *("MIC + MRM", "MIC + BLDA", "DAFormer + BLDA", "DAFormer recipe on source only", "HRDA recipe on source only"),
    *("DFUDA", "DiDA", "CoPT", "MRM", "MaskTwins", "Refign", "InforMS", "CoDA", "Ultra", "Rein"),
}
TESTED_ON = {
    "cityscapes/val",
    "dark_zurich/val",
    "dark_zurich/test",
    "nighttime_driving/test",
    "bdd100k_night/test",
    "acdc/test",
}
LEFT_OUT = {"miou": (), "miou16": NOT_IN_16, "miou13": NOT_IN_13}
# rows whose class IoUs do not average to their mIoU within 0.3, with the reason
UNEQUAL: dict[tuple[str, str, str], str] = {}
# a row that only says that its authors did not evaluate there
NO_NUMBER = {("BCL", "Cityscapes->DarkZurich")}
SHARED_NAMES = dict(zip(NAMES, NAMES, strict=True)) | {
    "traffic light": "light",
    "traffic sign": "sign",
    "motorcycle": "motorbike",
    "miou": "mIoU",
    "miou16": "mIoU16",
    "miou13": "mIoU13",
}


def load() -> params.Params:
    return params.load(ROOT / "params.yaml")


def test_rows_are_plausible() -> None:
    benchmarks = {*load().benchmarks, "all_synthetic2all_real"}
    for row in published.rows():
        assert row.method in OURS | LITERATURE, row
        assert row.benchmark in benchmarks and row.tested_on in TESTED_ON, row
        assert row.source and row.variant and row.backbone, row
        assert all(0 <= value <= 100 for value in [*row.scores.values(), *row.iou.values()]), row
        assert row.benchmark != "synthia2cityscapes" or "miou" not in row.scores, row  # SYNTHIA lacks three classes


def test_class_means_agree() -> None:
    checked = 0
    for row in published.rows():
        for key, value in row.scores.items():
            names = [name for name in NAMES if name not in LEFT_OUT[key]]
            if all(name in row.iou for name in names) and (row.method, row.variant, key) not in UNEQUAL:
                assert sum(row.iou[name] for name in names) / len(names) == pytest.approx(value, abs=0.3), row
                checked += 1
    assert checked > 15


def test_nothing_was_lost_or_changed_on_the_way() -> None:
    rows = published.rows()
    assert len(rows) == 118
    assert len({(r.method, r.benchmark, r.tested_on, r.variant, r.backbone) for r in rows}) == len(rows)
    shared = ROOT.parent / "shared" / "published"  # the collection that the table was made from, where it is at hand
    for path in sorted(shared.glob("*.csv")) if shared.is_dir() else []:
        with path.open(newline="") as handle:
            for cells in csv.DictReader(handle):
                twins = [
                    row
                    for row in rows
                    if row.variant.startswith(cells["variant"]) and row.source.startswith(cells["source"])
                ]
                twins = [row for row in twins if agrees(row, cells)]
                assert twins or (cells["method"], cells["benchmark"]) in NO_NUMBER, cells


def agrees(row: published.Row, cells: dict[str, str]) -> bool:
    """Every number of ours is the collection's; what ours lacks is a mean or class that the benchmark does not have."""
    ours = row.scores | row.iou
    theirs = {key: float(cells[name]) for key, name in SHARED_NAMES.items() if cells[name]}
    computed = {"miou16"} if row.source.endswith("; mIoU16 computed here from the listed classes") else set()
    lacking = {"miou", *NOT_IN_16} if row.method == "oracle" and row.benchmark == "synthia2cityscapes" else set()
    return {k: v for k, v in ours.items() if k not in computed} == {k: v for k, v in theirs.items() if k not in lacking}


@pytest.mark.parametrize(
    ("method", "benchmark", "value", "backbone"),
    [
        ("self_training", "gta2cityscapes", 68.3, "DAFormer (MiT-B5)"),
        ("self_training", "synthia2cityscapes", 60.9, "DAFormer (MiT-B5)"),
        ("self_training", "cityscapes2darkzurich", 53.8, "DAFormer (MiT-B5)"),
        ("self_training-dacs", "synthia2cityscapes", 48.3, "DeepLab-V2 (ResNet-101)"),
        ("sepico", "gta2cityscapes", 70.3, "DAFormer (MiT-B5)"),
        ("sepico-bank", "gta2cityscapes", 68.7, "DAFormer (MiT-B5)"),
        ("sepico-released", "synthia2cityscapes", 64.3, "DAFormer (MiT-B5)"),
        ("self_training", "cityscapes2acdc", 55.4, "DAFormer (MiT-B5)"),
        ("sepico", "cityscapes2darkzurich", 54.21, "DAFormer (MiT-B5)"),
        ("pipa", "gta2cityscapes", 71.7, "DAFormer (MiT-B5)"),
        ("pipa", "synthia2cityscapes", 63.4, "DAFormer (MiT-B5)"),
        ("cluda", "gta2cityscapes", 70.11, "DAFormer (not stated)"),
        ("plca", "synthia2cityscapes", 46.9, "DeepLab-V2 (ResNet-101)"),
        ("oracle", "gta2cityscapes", 70.5, "DeepLab-V2 (ResNet-101)"),
        ("oracle", "synthia2cityscapes", 71.7, "DeepLab-V2 (ResNet-101)"),
        ("source_only", "gta2cityscapes", None, "DAFormer (MiT-B5)"),  # the same network, and not readable
        ("bcl", "gta2cityscapes", None, "DeepLab-V2 (ResNet-101)"),
        ("self_training", "gta2cityscapes-dlv2", 56.0, "DeepLab-V2 (ResNet-101)"),
        ("self_training-dacs", "gta2cityscapes-dlv2", 52.1, "DeepLab-V2 (ResNet-101)"),
        ("self_training", "gta2cityscapes-dlv2-hrda", 63.0, "HRDA (ResNet-101)"),
        ("mic-hrda", "gta2cityscapes-dlv2-hrda", 64.2, "HRDA (ResNet-101)"),
        ("self_training", "gta2cityscapes-hrda", 73.8, "HRDA (MiT-B5)"),
        ("self_training", "synthia2cityscapes-hrda", 65.8, "HRDA (MiT-B5)"),
        ("self_training", "cityscapes2darkzurich-hrda", 55.9, "HRDA (MiT-B5)"),
        ("self_training", "cityscapes2acdc-hrda", 68.0, "HRDA (MiT-B5)"),
        ("mic-hrda", "gta2cityscapes-hrda", 75.9, "HRDA (MiT-B5)"),
        ("mic", "gta2cityscapes", 70.6, "DAFormer (MiT-B5)"),
        ("mic-night", "cityscapes2darkzurich-hrda", 60.2, "HRDA (MiT-B5)"),
        ("pipa-hrda", "gta2cityscapes-hrda", 75.6, "HRDA (MiT-B5)"),
        ("cluda-hrda", "gta2cityscapes-hrda", 74.4, "HRDA (MiT-B5)"),
    ],
)
def test_lookup(method: str, benchmark: str, value: float | None, backbone: str) -> None:
    found = published.lookup(method, benchmark, load().benchmarks[benchmark])
    assert found is not None
    assert (found["miou"], found["backbone"]) == (value, backbone)
    assert found["source"]


def test_lookup_follows_the_benchmarks_network() -> None:
    benchmark = load().benchmarks["gta2cityscapes"]
    model = dataclasses.replace(benchmark.model, backbone="resnet101c", head="deeplabv2")
    found = published.lookup("sepico", "gta2cityscapes", dataclasses.replace(benchmark, model=model))
    assert found is not None and (found["miou"], found["backbone"]) == (61.0, "DeepLab-V2 (ResNet-101)")
    assert found["variant"] == "DistCL"


def test_lookup_finds_nothing_where_nothing_is_published() -> None:
    benchmarks = load().benchmarks
    for name in ("streets", "streets2camvid", "camvid_day2dusk"):
        assert published.lookup("self_training", name, benchmarks[name]) is None
    for ours in ("sepico-off", "sepico-night_off", "sepico-pipa", "pipa-patch"):  # twin, combination, ablation
        assert published.lookup(ours, "cityscapes2darkzurich", benchmarks["cityscapes2darkzurich"]) is None
        assert published.lookup(ours, "gta2cityscapes", benchmarks["gta2cityscapes"]) is None
    assert published.lookup("sepico-night", "cityscapes2darkzurich", benchmarks["cityscapes2darkzurich"]) is not None
    assert published.lookup("self_training-dacs", "cityscapes2darkzurich", benchmarks["cityscapes2darkzurich"]) is None
