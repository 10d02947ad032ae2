"""From a model file and a data set to the files of a scored run."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_data import FakePrepared, random_data
from torch import Tensor, nn

from udaseg.classes import NAMES
from udaseg.errors import UserError
from udaseg.evaluation import confusion, evaluate, scores
from udaseg.models import build_model, save_model, trained
from udaseg.params import Model, Params, Run, Use
from udaseg.progress import Scoring

MakeParams = Callable[..., Params]


class Tiny(nn.Module):
    """Stands for a Segmenter: one pointwise layer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 19, 1)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def normalise(self, images: Tensor) -> Tensor:
        return images.float() / 255 if images.dtype == torch.uint8 else images

    def predict(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(self.layer(images), size=size, mode="bilinear", align_corners=False)


def save(run: Run, student: nn.Module, teacher: nn.Module | None = None, **header: str) -> None:
    state = dict(student.state_dict())
    if teacher is not None:
        state |= {f"teacher.{name}": value for name, value in teacher.state_dict().items()}
    about = {"params_hash": run.hash, "classes": ",".join(run.classes.names)} | header
    save_model(run.folder / "model.safetensors", state, about)


def expected(network: Tiny, data: FakePrepared) -> Tensor:
    """The matrix, one image at a time and without any of the machinery."""
    matrix = confusion.empty(19)
    for name, image in data.images.items():
        label = torch.from_numpy(data.labels[name])[None]
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        logits = network.predict(network.normalise(x), (label.shape[1], label.shape[2]))
        confusion.update(matrix, logits.argmax(1), label)
    return matrix


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakePrepared]:
    """What `find` gives, by data set; networks are stand-ins."""
    sets = {"streets_photo": random_data([(8, 12)] * 9 + [(7, 13), (8, 12), (1, 1)], scale=2)}

    def find(benchmark: str, use: Use) -> FakePrepared:
        return sets[use.dataset]

    def build(spec: Model, classes: int) -> Tiny:
        return Tiny(99)

    monkeypatch.setattr(evaluate, "find_prepared", find)
    monkeypatch.setattr(trained, "build_model", build)
    return sets


def result(run: Run) -> dict[str, Any]:
    found = json.loads((run.folder / "metrics.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert isinstance(found, dict)
    return found


def test_scores_of_student_and_teacher(make_params: MakeParams, data: dict[str, FakePrepared]) -> None:
    run = make_params().resolve("streets", "self_training", 0)
    student, teacher = Tiny(0), Tiny(1)
    save(run, student, teacher)
    text = evaluate.evaluate_run(run)

    metrics = result(run)
    matrix = expected(student, data["streets_photo"])
    block = scores.report(matrix, run.classes)
    assert metrics == block | {
        "images": 12,
        "other": {"teacher": scores.means(expected(teacher, data["streets_photo"]), run.classes)},
    }
    assert metrics["miou"] == metrics["miou19"] and metrics["pixels"] == int(matrix[:-1].sum())
    assert metrics["absent"] == [] or set(metrics["absent"]).isdisjoint(metrics["iou"])
    assert f"{metrics['miou']:.2f}" in text and "teacher" in text

    short = json.loads((run.folder / "headline.json").read_text())
    expect = {key: metrics[key] for key in ("miou", "miou13", "miou16")}
    assert short == expect | {"other": {"teacher": metrics["other"]["teacher"]["miou"]}}

    rows = json.loads((run.folder / "iou.json").read_text())
    assert {row["class"]: row["iou"] for row in rows} == metrics["iou"]
    with (run.folder / "confusion.csv").open() as handle:
        cells = list(csv.DictReader(handle))
    assert len(cells) == 19 * 19
    counts = {(c["actual"], c["predicted"]): int(c["pixels"]) for c in cells}
    assert counts["sidewalk", "road"] == int(matrix[1, 0])
    assert sum(counts.values()) == metrics["pixels"]


def test_equal_runs_give_equal_files(make_params: MakeParams, data: dict[str, FakePrepared]) -> None:
    run = make_params().resolve("streets", "oracle", 0)
    save(run, Tiny(0))
    names = ("metrics.json", "headline.json", "iou.json", "confusion.csv", "images.csv", "predictions.zip")
    evaluate.evaluate_run(run)
    first = [(run.folder / name).read_bytes() for name in names]
    evaluate.evaluate_run(run)
    assert [(run.folder / name).read_bytes() for name in names] == first


def test_flip_and_scales_stand_beside_the_headline(make_params: MakeParams, data: dict[str, FakePrepared]) -> None:
    plain = make_params().resolve("streets", "oracle", 0)
    save(plain, Tiny(0))
    evaluate.evaluate_run(plain)
    before = result(plain)
    assert before["other"] == {}
    for test, name in (
        ({"flip": True}, "flip"),
        ({"scales": [0.5, 1.0]}, "multiscale"),
        ({"flip": True, "scales": [0.5, 1.0]}, "multiscale-flip"),
    ):
        evaluate.evaluate_run(make_params(test=test).resolve("streets", "oracle", 0))
        after = result(plain)
        assert list(after["other"]) == [name]
        assert after | {"other": {}} == before
    evaluate.evaluate_run(make_params(test={"flip": True}).resolve("streets", "oracle", 0))
    assert result(plain)["other"]["flip"]["miou"] == before["miou"]  # a pointwise network is symmetric


def test_windows_and_further_sets(make_params: MakeParams, data: dict[str, FakePrepared]) -> None:
    data["camvid"] = random_data([(6, 10)] * 3, seed=5)
    test = {"mode": "slide", "window": "4x4", "stride": "3x3", "teacher": False}
    p = make_params(evaluate=["camvid/test", "streets_photo/test"], test=test)
    run = p.resolve("streets", "self_training", 0)
    save(run, Tiny(0), Tiny(1))
    evaluate.evaluate_run(run)
    metrics = result(run)
    assert metrics["images"] == 3 and list(metrics["other"]) == ["streets_photo-test"]  # no teacher asked for
    assert metrics["miou"] == scores.report(expected(Tiny(0), data["camvid"]), run.classes)["miou"]
    assert metrics["other"]["streets_photo-test"]["images"] == 12


def test_absent_classes_and_all_ignored_images(make_params: MakeParams, data: dict[str, FakePrepared]) -> None:
    data["streets_photo"].labels["3"][:] = 255
    network = Tiny(0)
    network.layer.get_parameter("bias").data[2:] = -100  # says road or sidewalk only
    for label in data["streets_photo"].labels.values():
        label[label > 1] = 255
    run = make_params().resolve("streets", "oracle", 0)
    save(run, network)
    text = evaluate.evaluate_run(run)
    metrics = result(run)
    assert list(metrics["iou"]) == ["road", "sidewalk"]
    assert metrics["absent"] == list(NAMES[2:]) and "absent, not counted: building" in text
    assert metrics["miou"] == pytest.approx(np.mean(list(metrics["iou"].values())), abs=1e-4)


def test_nothing_to_score(make_params: MakeParams, data: dict[str, FakePrepared]) -> None:
    run = make_params().resolve("streets", "oracle", 0)
    save(run, Tiny(0))
    data["streets_photo"].bare.add("2")
    with pytest.raises(UserError, match=r"streets_photo/test: found 2 without a label, expected a labelled split"):
        evaluate.evaluate_run(run)
    data["streets_photo"].bare.clear()
    for label in data["streets_photo"].labels.values():
        label[:] = 255
    with pytest.raises(UserError, match="found 12 images without one pixel of the classes road, "):
        evaluate.evaluate_run(run)
    data["streets_photo"].images.clear()
    with pytest.raises(UserError, match="streets_photo/test: found no image"):
        evaluate.evaluate_run(run)
    assert not (run.folder / "metrics.json").exists()
    with pytest.raises(UserError, match=r"benchmarks\.streets\.evaluate: found none"):
        evaluate.evaluate_run(make_params(evaluate=[]).resolve("streets", "oracle", 0))


def test_wrong_model_files(make_params: MakeParams, data: dict[str, FakePrepared]) -> None:
    run = make_params().resolve("streets", "oracle", 3)
    command = "udaseg train --benchmark streets --method oracle --seed 3"
    with pytest.raises(UserError, match=rf"seed3/model.safetensors: not found; run `{command}` first"):
        evaluate.evaluate_run(run)
    save(run, Tiny(0), params_hash="0123")
    with pytest.raises(UserError, match=rf"params_hash: found 0123, expected {run.hash}; run `{command}` again"):
        evaluate.evaluate_run(run)
    save(run, Tiny(0), classes="sky,road")
    with pytest.raises(UserError, match=r"classes: found sky,road, expected road,sidewalk.*run `udaseg train"):
        evaluate.evaluate_run(run)
    save(run, nn.Conv2d(3, 19, 1))
    with pytest.raises(UserError, match=r"tensor layer\.weight: found no such tensor"):
        evaluate.evaluate_run(run)
    (run.folder / "model.safetensors").write_bytes(b"PK\x03\x04 this is something else")
    with pytest.raises(UserError, match=r"model\.safetensors: found .* no complete safetensors file"):
        evaluate.evaluate_run(run)


def test_device_that_is_not_there(
    make_params: MakeParams, data: dict[str, FakePrepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = make_params(device="cuda").resolve("streets", "oracle", 0)
    with pytest.raises(UserError, match="no CUDA device is visible"):
        evaluate.evaluate_run(run)


def test_share_of_time_is_logged_once(
    make_params: MakeParams, data: dict[str, FakePrepared], caplog: pytest.LogCaptureFixture
) -> None:
    run = make_params().resolve("streets", "oracle", 0)
    save(run, Tiny(0))
    with caplog.at_level(logging.INFO, logger="udaseg"):
        evaluate.evaluate_run(run, Scoring)
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "outside forward pass and up-sampling" in line]) == 1


def test_a_real_network(
    make_params: MakeParams, data: dict[str, FakePrepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "build_model", build_model)
    data["streets_photo"] = random_data([(32, 64), (33, 47)])
    run = make_params().resolve("streets", "oracle", 0)
    torch.manual_seed(0)
    save(run, build_model(run.benchmark.model, 19))
    evaluate.evaluate_run(run)
    assert 0 <= result(run)["miou"] <= 100


def test_counts_of_two_ranks_add_up(
    make_params: MakeParams, data: dict[str, FakePrepared], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_params().resolve("streets", "oracle", 0)
    network = Tiny(0)
    shares = []
    monkeypatch.setattr(evaluate.ranks, "world", lambda: 2)
    monkeypatch.setattr(evaluate.ranks, "total", lambda tensor: tensor)
    use = evaluate.uses(run.benchmark)[-1]
    for rank in (0, 1):
        monkeypatch.setattr(evaluate.ranks, "rank", lambda rank=rank: rank)
        matrices, images = evaluate.count(run, use, network, {"": network.predict}, torch.device("cpu"))
        assert images == 12
        shares.append(matrices[""])
    assert torch.equal(shares[0] + shares[1], expected(network, data["streets_photo"]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_counts_the_same(make_params: MakeParams, data: dict[str, FakePrepared]) -> None:
    found = []
    for device in ("cpu", "cuda"):
        run = make_params(device=device).resolve("streets", "oracle", 0)
        save(run, Tiny(0))
        evaluate.evaluate_run(run)
        found.append(result(run)["miou"])
    assert found[0] == pytest.approx(found[1], abs=0.5)  # pixels on the border between two classes may change sides
