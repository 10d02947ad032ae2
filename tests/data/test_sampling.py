"""The n-th pair is a pure function of (seed, n); crops, flips and rare classes follow docs/methods/self_training.md."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_project import Project
from udaseg import params
from udaseg.classes import class_space
from udaseg.data.prepared import find_prepared
from udaseg.data.sampling import Pairs, Views, cut, flip, offset
from udaseg.errors import UserError
from udaseg.params import RareClass, Size


def pairs(
    project: Project,
    views: Views,
    seed: int = 0,
    crop: str = "48x32",
    rare: RareClass | None = None,
    static: Path | None = None,
    classes: str = "cityscapes19",
) -> Pairs:
    p = params.load("params.yaml")
    source, target = params.uses(p.benchmarks["streets"])[:2]
    return Pairs(
        views,
        (find_prepared("streets", source), source.split),
        (find_prepared("streets", target), target.split),
        classes=class_space(classes),
        crop=Size.parse(crop, ""),
        rare_class=rare or RareClass(0, 0),
        seed=seed,
        static=static,
    )


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_items_are_pure(project: Project) -> None:
    views = Views(rare_class_temperature=0.1, crop_max_ratio=0.75)
    one, two = pairs(project, views), pickle.loads(pickle.dumps(pairs(project, views)))
    forward = [one[n] for n in range(6)]
    np.random.default_rng(0).random(100)
    for n in reversed(range(6)):
        assert same(two[n], forward[n])
    assert not same(pairs(project, views, seed=1)[0], forward[0])
    item = forward[3]
    assert item["image"].shape == item["target"].shape == (3, 32, 48) and item["image"].dtype == torch.uint8
    assert item["label"].shape == (32, 48) and int(item["index"]) == 3
    values = set(item["label"].unique().tolist())
    assert values <= {*range(19), 255}


def test_every_image_comes_once_before_any_comes_again(project: Project) -> None:
    data = pairs(project, Views())
    n = len(data.labelled_samples)
    for epoch in range(3):
        assert sorted(data._shuffled(epoch * n + i, n, "labelled") for i in range(n)) == list(range(n))
    first, second = ([data._shuffled(e * n + i, n, "labelled") for i in range(n)] for e in (0, 1))
    assert first != second


def test_rare_classes_come_more_often(project: Project) -> None:
    def share(views: Views, rarest: int) -> float:
        data = pairs(project, views, crop="32x16", rare=RareClass(20, 5))
        return float(np.mean([int((data[n]["label"] == rarest).sum()) > 5 for n in range(60)]))

    rare = Views(rare_class_temperature=0.001)  # so cold that little but the rarest class is drawn
    rarest = int(pairs(project, rare, rare=RareClass(20, 5)).probability.argmax())
    assert share(rare, rarest) > 2 * share(Views(), rarest) > 0


def test_crops_filled_by_one_class_are_redrawn(project: Project) -> None:
    def largest(views: Views) -> float:
        data = pairs(project, views, crop="12x8")
        shares = []
        for n in range(40):
            counts = np.bincount(data[n]["label"].numpy().reshape(-1), minlength=256)[:255]
            shares.append(counts.max() / max(counts.sum(), 1))
        return float(np.mean(np.array(shares) >= 0.75))

    assert largest(Views(crop_max_ratio=0.75)) < 0.5 * largest(Views())


def test_oracle_sees_target_labels_and_no_second_image(project: Project) -> None:
    item = pairs(project, Views(labelled="target", unlabelled=False))[0]
    assert "target" not in item


def test_missing_labels_are_named(project: Project) -> None:
    data = find_prepared("streets", params.uses(params.load("params.yaml").benchmarks["streets"])[0])
    for entry in data.manifest["splits"]["train"]:
        entry["label"] = None
    with pytest.raises(UserError, match="has no label"):
        Pairs(Views(), (data, "train"), (data, "train"), classes=class_space("cityscapes19"), crop=Size(8, 8),
              rare_class=RareClass(0, 0), seed=0)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_crop_geometry(height: int, width: int, crop_height: int, crop_width: int, seed: int) -> None:
    """Image and label are cut alike; what is missing is padded with 255 in the label."""
    label = np.arange(height * width, dtype=np.int64).reshape(height, width) % 200
    image = np.repeat(label[..., None], 3, axis=2).astype(np.uint8)
    crop = Size(crop_width, crop_height)
    top, left = offset(np.random.default_rng(seed), label.shape, crop)
    a, b = cut(image, top, left, crop), cut(label.astype(np.uint8), top, left, crop)
    assert a.shape == (crop_height, crop_width, 3) and b.shape == (crop_height, crop_width)
    inside = b != 255
    assert (a[inside][:, 0] == b[inside]).all()
    assert inside.sum() == min(height, crop_height) * min(width, crop_width)
    assert (flip(b, True)[:, ::-1] == b).all() and (flip(b, False) == b).all()


def test_static_labels_follow_the_geometry_of_their_image(project: Project, tmp_path: Path) -> None:
    """Labels that are a function of the image stay one through scale, crop and flip."""
    plain = pairs(project, Views())
    images = [plain.target.image(sample) for sample in plain.target_samples]
    labels = np.stack([image[..., 0] // 16 for image in images])
    np.save(tmp_path / "labels.npy", labels)
    data = pickle.loads(pickle.dumps(pairs(project, Views(static=True), static=tmp_path / "labels.npy")))
    for n in range(6):
        item = data[n]
        assert (item["static"] == item["target"][0] // 16).all()
        assert torch.equal(item["target"], plain[n]["target"])  # one more view changes no other
    scaled = pairs(project, Views(static=True, scale=(1.5, 2.0)), static=tmp_path / "labels.npy")[0]
    assert scaled["static"].shape == (32, 48)
    near = (scaled["static"].int() - (scaled["target"][0] // 16).int()).abs() <= 1  # bilinear against nearest
    assert near.float().mean() > 0.8


def test_whole_targets_come_with_corners_inside_the_image(project: Project) -> None:
    data = pairs(project, Views(whole_target=True))
    for n in range(4):
        item = data[n]
        assert item["target"].shape == (3, data.whole.height, data.whole.width)
        assert item["corners"].shape == (10, 2)
        assert (item["corners"] >= 0).all()
        assert (item["corners"] + torch.tensor([32, 48]) <= torch.tensor(item["target"].shape[1:])).all()
    assert len({tuple(corner.tolist()) for n in range(4) for corner in data[n]["corners"]}) > 4


def test_a_class_that_never_occurs_in_the_source_is_named(project: Project) -> None:
    source = params.uses(params.load("params.yaml").benchmarks["streets"])[0]
    path = find_prepared("streets", source).folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for sample in manifest["splits"][source.split]:
        sample["counts"].pop("16", None)  # train
    project.forge(path, manifest)
    with pytest.raises(UserError, match="no pixel of train in the source"):
        pairs(project, Views())
    pairs(project, Views(labelled="target", unlabelled=False))


def test_a_missing_day_reference_is_named(project: Project) -> None:
    with pytest.raises(UserError, match="has no day reference, which `day_reference` needs"):
        pairs(project, Views(reference=True))
