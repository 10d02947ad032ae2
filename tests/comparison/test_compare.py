"""Means, intervals and paired gains against values worked out by hand; the table; the selected method."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from udaseg import params
from udaseg.artifacts import write_json, write_text
from udaseg.classes import NAMES
from udaseg.comparison import compare, tables
from udaseg.errors import UserError
from udaseg.params import Params

MakeParams = Callable[..., Params]
ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("results/streets")


def put(method: str, seed: int, miou: float, benchmark: str = "streets", **more: Any) -> None:
    metrics = {"miou": miou, "miou19": miou, "iou": {"road": miou + 1, "car": miou - 1}, "other": {}}
    metrics |= {"pixel_accuracy": 90.0, "images": 2, "pixels": 100} | more
    metrics |= {"absent": [name for name in NAMES if name not in metrics["iou"]]}
    write_json(Path("results", benchmark, method, f"seed{seed}", "metrics.json"), metrics)


def three_seeds() -> None:
    for seed, (source_only, self_training, oracle) in enumerate(
        [(30.0, 40.0, 60.0), (31.0, 42.0, 62.0), (35.0, 44.0, 64.0)]
    ):
        put("source_only", seed, source_only)
        put(
            "self_training",
            seed,
            self_training,
            miou13=self_training,
            other={"teacher": {"miou": self_training + seed}},
        )
        put("oracle", seed, oracle)


def summary() -> dict[str, Any]:
    found = json.loads((FOLDER / "summary.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert isinstance(found, dict)
    return found


def test_three_seeds_by_hand(make_params: MakeParams) -> None:
    three_seeds()
    text = compare.compare_benchmark(make_params(seeds=[0, 1, 2]), "streets")
    found = summary()
    assert found["benchmark"] == "streets" and found["protocol"] == "matched" and found["seeds"] == [0, 1, 2]
    methods = found["methods"]
    # t(0.975, 2) = 4.302653; 4.302653 * 2 / sqrt(3) = 4.968275
    assert methods["self_training"]["miou"] == {"mean": 42.0, "std": 2.0, "n": 3, "ci95": [37.0317, 46.9683]}
    assert methods["self_training"]["gain"] is None  # the reference itself
    # differences -10, -11, -9: t = -17.3205, and for two degrees of freedom p = 1 - |t| / sqrt(2 + t^2)
    assert methods["source_only"]["gain"] == {
        **{"mean": -10.0, "std": 1.0, "n": 3, "ci95": [-12.4841, -7.5159]},
        "p": pytest.approx(0.003317, abs=1e-6),
    }
    # the same difference for every seed has no spread, so that t has no value
    assert methods["oracle"]["gain"] == {"mean": 20.0, "std": 0.0, "n": 3, "ci95": [20.0, 20.0], "p": None}
    assert methods["self_training"]["iou"] == {"road": 43.0, "car": 41.0}
    assert methods["self_training"]["other"]["teacher"]["miou"]["mean"] == 43.0
    assert methods["self_training"]["miou13"]["mean"] == 42.0 and "miou13" not in methods["oracle"]
    assert all(block["published"] is None for block in methods.values())

    assert (FOLDER / "summary.md").read_text() == text
    assert "42.00 ± 2.00 (3)" in text and "-10.00 [-12.48, -7.52]" in text and "reference" in text
    assert "synthetic images" in text and "seeds 0, 1, 2" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and len({len(row) for row in rows}) == 1
    header = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert header == ["method", "mIoU", "gain [95 %]", "mIoU13", "teacher", "published"]

    with (FOLDER / "summary.csv").open() as handle:
        table = {row["method"]: row for row in csv.DictReader(handle)}
    assert table["source_only"]["gain_low"] == "-12.4841" and table["source_only"]["iou.road"] == "33.0"
    assert table["self_training"]["gain_mean"] == "" and table["self_training"]["published"] == ""


def test_one_seed_has_no_interval(make_params: MakeParams) -> None:
    three_seeds()
    text = compare.compare_benchmark(make_params(), "streets")
    block = summary()["methods"]["source_only"]
    assert block["miou"] == {"mean": 30.0, "std": None, "n": 1, "ci95": None}
    assert block["gain"] == {"mean": -10.0, "std": None, "n": 1, "ci95": None, "p": None}
    assert "One seed: no standard deviation and no interval." in text
    assert "±" not in text and "-10.00 |" in text


def test_two_seeds(make_params: MakeParams) -> None:
    three_seeds()
    compare.compare_benchmark(make_params(seeds=[0, 1]), "streets")
    # std = sqrt(2), t(0.975, 1) = 12.706205: half an interval is 12.706205
    assert summary()["methods"]["oracle"]["miou"] == {"mean": 61.0, "std": 1.4142, "n": 2, "ci95": [48.2938, 73.7062]}


def test_without_the_reference_there_is_no_gain(make_params: MakeParams) -> None:
    three_seeds()
    text = compare.compare_benchmark(make_params(methods=["source_only", "oracle"]), "streets")
    found = summary()
    assert found["reference"] is None and found["methods"]["oracle"]["gain"] is None
    assert "reference" not in text


def test_a_class_that_one_seed_lacks(make_params: MakeParams) -> None:
    three_seeds()
    put("oracle", 1, 70.0, iou={"road": 70.0})
    compare.compare_benchmark(make_params(seeds=[0, 1]), "streets")
    assert summary()["methods"]["oracle"]["iou"] == {"road": 65.5, "car": 59.0}


def test_missing_and_damaged_scores(make_params: MakeParams) -> None:
    three_seeds()
    path = FOLDER / "oracle" / "seed1" / "metrics.json"
    command = "udaseg evaluate --benchmark streets --method oracle --seed 1"
    path.unlink()
    with pytest.raises(UserError, match=rf"oracle/seed1/metrics.json: not found.*run `{command}`"):
        compare.compare_benchmark(make_params(seeds=[0, 1]), "streets")
    assert not (FOLDER / "summary.json").exists()
    for damaged in ("{", "{}", "[]"):
        path.write_text(damaged)
        with pytest.raises(UserError, match=rf"oracle/seed1/metrics.json: .*{command}"):
            compare.compare_benchmark(make_params(seeds=[0, 1]), "streets")


def test_published_numbers_stand_beside(make_params: MakeParams) -> None:
    for method in ("source_only", "self_training", "self_training-dacs"):
        put(method, 0, 50.0, "gta2cityscapes")
        put(method, 0, 50.0, "cityscapes2darkzurich")
    methods = ["source_only", "self_training", "self_training-dacs"]
    text = compare.compare_benchmark(make_params(methods=methods), "gta2cityscapes")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "68.3 DAFormer (MiT-B5) [2]" in lines["self_training"]
    assert "52.1 DeepLab-V2 (ResNet-101) [3]" in lines["self_training-dacs"]
    assert "not readable DAFormer (MiT-B5) [1]" in lines["source_only"]
    assert "[2] paper mean over seeds; mIoU: lhoyer/DAFormer README.md:90-99" in text
    assert "0.0 " not in text.replace("50.0", "")
    text = compare.compare_benchmark(make_params(methods=methods), "cityscapes2darkzurich")
    assert "53.8 DAFormer (MiT-B5) on dark_zurich/test" in text
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert lines["self_training-dacs"].rstrip("| ").endswith("| -")  # DACS is not DAFormer


def test_quantiles_of_student() -> None:
    for freedom, value in ((1, 12.706205), (2, 4.302653), (4, 2.776445), (9, 2.262157)):
        assert compare.quantile(freedom) == pytest.approx(value, abs=1e-6)


def references(benchmark: str, method: str, *scores: float, protocol: str = "matched") -> Path:
    home = Path("results/reference", benchmark)
    for seed, miou in enumerate(scores):
        put(method, seed, miou, f"reference/{benchmark}")
        write_json(home / method / f"seed{seed}" / "run.json", {"protocol": protocol})
    return home


def test_reference_results_are_those_that_lie_there(make_params: MakeParams) -> None:
    references("streets", "pipa", 42.0, 44.0)
    home = references("streets", "self_training", 40.0, 41.0)
    (home / "pipa/seed0-old").mkdir()
    (home / "pipa/seed0-old/metrics.json").write_text("{}")
    text = compare.compare_benchmark(make_params(methods=["source_only", "self_training"]), "streets", reference=True)
    assert "| +2.50 [-3.85, +8.85] |" in text and "without contrast" in text
    methods = json.loads((home / "summary.json").read_text())["methods"]
    assert list(methods) == ["pipa", "self_training"], "what lies there, not what is to run"
    assert methods["pipa"]["over_off"]["mean"] == 2.5 and methods["self_training"]["over_off"] is None
    with pytest.raises(UserError, match=r"results/reference/gta2cityscapes: found no results, .*import-run"):
        compare.compare_benchmark(make_params(), "gta2cityscapes", reference=True)
    with pytest.raises(UserError, match="unknown benchmark 'street'; did you mean 'streets'"):
        compare.compare_benchmark(make_params(), "street")


def test_reference_results_keep_their_own_protocol(make_params: MakeParams) -> None:
    references("gta2cityscapes", "source_only", 40.0, protocol="native")
    assert "protocol native" in compare.compare_benchmark(make_params(), "gta2cityscapes", reference=True)
    references("gta2cityscapes", "oracle", 40.0)
    with pytest.raises(UserError, match=r"protocol native in .*source_only.*, matched in .*oracle.* one for all"):
        compare.compare_benchmark(make_params(), "gta2cityscapes", reference=True)


def test_twins_differ_in_contrast_alone() -> None:
    p = params.load(ROOT / "params.yaml")
    methods = list(p.methods)
    night = [m for m in methods if m != "sepico-night_off"]
    for method, among, expected in (
        ("sepico", methods, "sepico-off"),
        ("sepico-proto", methods, "sepico-off"),
        ("sepico-pipa", methods, "sepico-off"),
        ("sepico-night", methods, "sepico-night_off"),
        ("sepico-night", night, None),
        ("pipa", ["self_training", "pipa"], "self_training"),
        ("pipa-released", methods, None),
        ("bcl-uncalibrated", methods, "bcl-off"),
        ("bcl-released", methods, None),
        ("plca-direct", methods, "plca-off"),
        ("plca-released", methods, None),
        ("plca-off", methods, None),
        ("self_training", methods, None),
        ("oracle", methods, None),
    ):
        assert compare.twin(p, "gta2cityscapes", method, among) == expected, method


def test_select(make_params: MakeParams) -> None:
    p = make_params(seeds=[2, 0])
    run = FOLDER / "self_training" / "seed2"
    put("self_training", 2, 41.0)
    with pytest.raises(UserError, match=r"history.csv: not found; run `udaseg train .*--seed 2` first"):
        compare.select(p)
    write_text(run / "history.csv", f"step,learning_rate,source\n{p.benchmarks['streets'].train.steps},0.1,0.5\n")
    write_json(run / "analysis.json", {"silhouette": 0.5})
    with pytest.raises(UserError, match=r"iou.json: not found; run `udaseg evaluate .*--seed 2` first"):
        compare.select(p)
    assert not compare.SELECTED.exists()
    # half of 100 pixels of road and 100 of car are right
    counted(run, {("road", "road"): 50, ("road", "car"): 50, ("car", "car"): 50, ("car", "road"): 50})
    share = round(100 / 3, 4)
    iou = {"road": share, "car": share}
    put("self_training", 2, share, iou=iou, pixel_accuracy=50.0, pixels=200)
    write_json(run / "iou.json", [{"class": name, "iou": value} for name, value in iou.items()])
    with pytest.raises(UserError, match=r"headline.json: not found; run `udaseg evaluate .*--seed 2` first"):
        compare.select(p)
    write_json(run / "headline.json", {"miou": share})
    assert compare.select(p) == Path("results/selected/metrics.json")
    for name in ("metrics.json", "headline.json", "iou.json", "confusion.csv", "history.csv"):
        assert (compare.SELECTED / name).read_bytes() == (run / name).read_bytes()


def counted(folder: Path, cells: dict[tuple[str, str], int]) -> None:
    rows = [f"{actual},{predicted},{cells.get((actual, predicted), 0)}" for actual in NAMES for predicted in NAMES]
    write_text(folder / "confusion.csv", "\n".join(["actual,predicted,pixels", *rows]) + "\n")


def test_names_are_escaped_in_the_table(make_params: MakeParams) -> None:
    three_seeds()
    name = "<img src=x onerror=alert(1)>|`rm`*"
    put("self_training", 0, 40.0, other={name: {"miou": 3.0}})
    text = compare.compare_benchmark(make_params(), "streets")
    assert "<img" not in text and "&lt;img src=x onerror=alert(1)&gt;\\|\\`rm\\`\\*" in text
    assert name in summary()["methods"]["self_training"]["other"], "a file of values keeps the name"
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_classes_that_a_spreadsheet_would_run(make_params: MakeParams) -> None:
    p = make_params()
    p.raw["benchmarks"]["streets"]["classes"] = ["=1+1", "@x"]
    names = ("=1+1", "@x")
    for method in p.run.methods:
        put(method, 0, 30.0, iou=dict.fromkeys(names, 30.0), absent=[])
        path = FOLDER / method / "seed0/metrics.json"
        write_json(path, {k: v for k, v in json.loads(path.read_text()).items() if k != "miou19"} | {"absent": []})
    compare.compare_benchmark(params.parse(p.raw), "streets")
    head = (FOLDER / "summary.csv").read_text().splitlines()[0].split(",")
    assert head[-2:] == ["iou.=1+1", "iou.@x"], "behind its prefix a name is no formula"


def test_table_of_no_methods_with_a_value() -> None:
    assert tables.score(None) == tables.gain(None) == "-"


def test_bootstrap_over_images_is_paired_and_counts_images_not_seeds() -> None:
    base = {0: {f"i{k}": float(k) for k in range(40)}, 1: {f"i{k}": float(k) + 1 for k in range(40)}}
    better = {seed: {name: value + 5 for name, value in found.items()} for seed, found in base.items()}
    # images differ by 40 points among themselves, but each by 5 from its partner
    assert compare.resampled(better, base) == {"mean": 5.0, "n": 40, "ci95": [5.0, 5.0]}
    mixed = {0: {f"i{k}": k + (10.0 if k % 2 else -10.0) for k in range(40)}}
    found = compare.resampled(mixed, base)
    assert found is not None and found["mean"] == 0.0
    # 40 draws of +-10: standard error 10 / sqrt(40) = 1.58, times 1.96 = 3.1
    assert found["ci95"] == pytest.approx([-3.1, 3.1], abs=0.6)
    assert compare.resampled(mixed, base) == found  # the same draws every time
    less = {name: value for name, value in base[0].items() if name != "i0"}
    assert compare.resampled({0: less}, base) is None  # other images
    assert compare.resampled({2: base[0]}, base) is None  # no seed in common
    hidden = {0: base[0] | {"i0": float("nan")}}  # no scored pixel in it
    assert compare.resampled(hidden, base) == {"mean": 0.0, "n": 39, "ci95": [0.0, 0.0]}


def test_images_stand_beside_seeds_where_they_are_kept(make_params: MakeParams) -> None:
    three_seeds()
    for method, gap in (("self_training", 0), ("oracle", 10)):
        home = FOLDER / method / "seed0"
        metrics = json.loads((home / "metrics.json").read_text())
        rows = [f"i{k},{30 + gap + k / 100},50" for k in range(metrics["images"])]
        (home / "images.csv").write_text("\n".join(["image,miou,pixel_accuracy", *rows]) + "\n")
    text = compare.compare_benchmark(make_params(), "streets")
    methods = summary()["methods"]
    assert methods["oracle"]["images"]["mean"] == 10.0 and "images" not in methods["source_only"]
    assert "of images [95 %]" in text and "+10.00 [+10.00, +10.00]" in text and "paired bootstrap" in text

    p = make_params()
    found = compare.read_summary(p, "streets")
    for path in FOLDER.rglob("images.csv"):  # a clone has what git keeps
        path.unlink()
    assert compare.read_summary(p, "streets") == found
    for wrong in ({"mean": 10.0}, "much", {"mean": "10", "n": 2, "ci95": [1, 2]}, {"mean": 1.0, "n": 2, "ci95": [1]}):
        forged = summary()
        forged["methods"]["oracle"]["images"] = wrong
        write_json(FOLDER / "summary.json", forged)
        with pytest.raises(UserError, match="images"):
            compare.read_summary(p, "streets")
