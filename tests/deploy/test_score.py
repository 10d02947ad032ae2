"""Model files scored as they are: the same numbers as a run's, a place of their own, a row beside the methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_model import write_model

from tiny_project import Project
from udaseg import cli, params
from udaseg.artifacts import file_hash, write_json
from udaseg.classes import NAMES, class_space
from udaseg.comparison import compare
from udaseg.deploy import score
from udaseg.errors import UserError
from udaseg.evaluation import confusion, evaluate, scores
from udaseg.models.files import load_model_file, save_model
from udaseg.workflow import plan

SCORED = Path("results/published/streets")
ORIGIN = {"file": "latest.pth", "sha256": "ab" * 32, "family": "HRDA or MIC", "network": "student"}


def published(path: Path, **header: str) -> Path:
    """The model file as `udaseg import-checkpoint` writes it."""
    state, about = load_model_file(path)
    own = {"method": "published", "seed": "none", "params_hash": "none", "origin": json.dumps(ORIGIN)}
    save_model(path, state, about | own | header)
    return path


def test_the_same_numbers_as_those_of_a_run(project: Project) -> None:
    project.set("benchmarks/streets/init", {"default": "none"})
    run = params.load().resolve("streets", "source_only", 0)
    model = write_model(run.folder)
    state, header = load_model_file(model)
    save_model(model, state, header | {"params_hash": run.hash})
    evaluate.evaluate_run(run)
    copy = project.folder / "mic_gta.safetensors"
    copy.write_bytes(model.read_bytes())
    said = score.evaluate_file(params.load(), published(copy), "streets", method="self_training")
    assert said.startswith("streets mic_gta: 4 images of streets_photo/test\nmiou ")
    for name in ("metrics.json", "confusion.csv", "iou.json", "images.csv", "predictions.zip"):
        assert (SCORED / "mic_gta" / name).read_bytes() == (run.folder / name).read_bytes(), name
    made = json.loads((SCORED / "mic_gta/run.json").read_text())
    assert made["model_hash"] == file_hash(copy) and made["origin"] == ORIGIN and made["method"] == "self_training"
    assert made["test"]["mode"] == "whole" and made["size"] == "64x32" and made["data_hash"]


def test_the_command_and_the_name(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_model(project.folder))
    words = ["evaluate", "--model", model, "--benchmark", "streets"]
    assert cli.main([*words, "--name", "a.b-1"]) == 0
    assert (SCORED / "a.b-1/metrics.json").is_file()
    for wrong, said in (
        (["--name", "../x"], "found '../x', expected letters"),
        (["--method", "mik"], "unknown method 'mik'"),
    ):
        assert cli.main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["evaluate", "--benchmark", "streets"]) == 2
    assert "name --method, or --model" in capsys.readouterr().err


def test_other_classes_are_refused(project: Project) -> None:
    model = write_model(project.folder, classes=["road", "sky"])
    with pytest.raises(UserError, match=r"knows the 2 classes road, sky \.\.\., streets is scored over 19"):
        score.evaluate_file(params.load(), model, "streets")
    assert not SCORED.exists()


def test_a_network_of_19_classes_on_a_benchmark_of_16(project: Project) -> None:
    """As the authors of DAFormer score their SYNTHIA models: predictions of the other three classes are misses."""
    model = published(write_model(project.folder))
    project.set("benchmarks/streets/classes", "cityscapes16")
    score.evaluate_file(params.load(), model, "streets", name="a")
    found = json.loads((SCORED / "a/metrics.json").read_text())
    assert list(found["iou"]) == sorted(found["iou"]) and set(found["iou"]) <= set(class_space("cityscapes16").names)
    assert found["miou"] == found["miou16"] and "miou19" not in found and "miou13" in found
    matrix = matrix_of(SCORED / "a/confusion.csv")
    rows = [NAMES.index(name) for name in found["iou"]]
    ious = [matrix[k, k] / (matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]) for k in rows]
    assert found["miou"] == pytest.approx(100 * float(torch.stack(ious).mean()), abs=1e-3)


def matrix_of(path: Path) -> torch.Tensor:
    matrix = torch.zeros(19, 19, dtype=torch.double)
    for line in path.read_text().splitlines()[1:]:
        actual, predicted, pixels = line.split(",")
        matrix[NAMES.index(actual), NAMES.index(predicted)] = int(pixels)
    return matrix


def test_sixteen_of_nineteen_by_hand() -> None:
    matrix = confusion.empty(19)
    matrix[:19] = torch.randint(1, 50, (19, 19), generator=torch.Generator().manual_seed(0))
    absent = [NAMES.index(name) for name in ("terrain", "truck", "train")]
    matrix[:, absent] = (
        0  # never predicted: IoU 0, so that the mean over 16 is 19/16 of that over 19 (DAFormer's README)
    )
    known, wanted = class_space("cityscapes19"), class_space("cityscapes16")
    found = score.report(matrix, known, wanted)
    assert found["miou"] == found["miou16"] == pytest.approx(100 * scores.miou(matrix) * 19 / 16, abs=1e-3)
    easier = score.without_absent(matrix, known, wanted)
    assert easier is not None and easier[absent].sum() == 0
    assert score.means(easier, known, wanted)["miou"] > found["miou"]
    assert score.report(matrix, known, known)["miou"] == pytest.approx(100 * scores.miou(matrix), abs=1e-3)


# --- beside the methods ---------------------------------------------------------------------------------------------


def put(folder: Path, **made: object) -> None:
    write_json(folder / "metrics.json", {"miou": 75.5, "miou13": 80.25, "iou": {"road": 90.0}, "other": {}})
    network = {**params.load().raw["benchmarks"]["streets"]["model"], "head": "daformer", "backbone": "pvt_v2_b5"}
    block = {
        "benchmark": "streets",
        "name": folder.name,
        "method": None,
        "model": "x.safetensors",
        "model_hash": "cd" * 32,
    }
    trained = {"benchmark": "town", "method": "pipa", "seed": "1"}
    block |= {"trained": trained, "origin": None, "network": network, "test": {"mode": "whole"}, "size": "64x32"}
    write_json(folder / "run.json", block | made)


def test_rows_beside_the_methods_and_nothing_without(project: Project) -> None:
    project.set("run/methods", ["self_training"])
    matrix = torch.zeros(21, 19, dtype=torch.int64)
    matrix[0, 0] = 9  # road alone, and all of it found
    found = scores.report(matrix, class_space("cityscapes19")) | {"images": 8, "other": {}}
    write_json(Path("results/streets/self_training/seed0/metrics.json"), found)
    p = params.load()
    before, signed = compare.compare_benchmark(p, "streets"), plan.identity_of(p, "compare", "streets")
    assert "checkpoints" not in json.loads(Path("results/streets/summary.json").read_text())
    put(SCORED / "mic", origin=ORIGIN, method="self_training")
    put(SCORED / "other")
    text = compare.compare_benchmark(p, "streets")
    assert text.startswith(before), "the methods stand as they stood"
    head, _, mic, other = (line for line in text.removeprefix(before).splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "model file",
        "kind",
        "mIoU",
        "mIoU13",
        "our runs",
        "published",
    ]
    assert [cell.strip() for cell in mic.split("|")[1:-1]] == [
        "mic",
        "published checkpoint",
        "75.50",
        "80.25",
        "100.00",
        "-",
    ]
    assert [cell.strip() for cell in other.split("|")[1:-1]] == ["other", "model file", "75.50", "80.25", "-", "-"]
    assert "mic: published checkpoint, HRDA or MIC, student, of latest.pth (sha256 abababababababab)" in text
    assert "other: model file, town/pipa/1, student, of x.safetensors" in text
    # both tools notice: the compare and report of this benchmark, and nothing else
    assert plan.identity_of(p, "compare", "streets") != signed
    assert "checkpoints" in plan.identity_of(p, "report", "streets")["params"]
    assert "checkpoints" not in plan.identity_of(p, "figure", "streets")["params"]
    Path(SCORED / "mic/run.json").write_text("{}")
    with pytest.raises(UserError, match="found files of another program"):
        compare.compare_benchmark(p, "streets")


def test_the_published_number_is_that_of_the_files_network(project: Project) -> None:
    project.set("benchmarks/gta2cityscapes", {**project.raw["benchmarks"]["streets"], "evaluate": ["cityscapes/val"]})
    project.set("datasets/cityscapes", {"format": "cityscapes", "root": "raw"})
    p = params.load()
    from udaseg.comparison import checkpoints

    folder = checkpoints.folder_of("gta2cityscapes", "daformer")
    put(folder, origin=ORIGIN, method="self_training")
    found = checkpoints.rows(p, "gta2cityscapes")["daformer"]
    assert found["published"]["miou"] == 68.3 and found["published"]["backbone"] == "DAFormer (MiT-B5)"
