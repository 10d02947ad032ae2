"""Counts and scores against values worked out by hand and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from udaseg.classes import class_space
from udaseg.evaluation import confusion, scores


def matrix_of(prediction: list[int], label: list[int], classes: int) -> torch.Tensor:
    matrix = confusion.empty(classes)
    confusion.update(matrix, torch.tensor([[prediction]]), torch.tensor([[label]], dtype=torch.uint8))
    return matrix


def test_base_o16() -> None:
    matrix = matrix_of([0, 0, 1, 1, 2, 2, 0, 1], [0, 0, 0, 1, 1, 2, 255, 255], 4)
    values = scores.iou(matrix)
    assert values[:3].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert math.isnan(values[3])
    assert scores.miou(matrix) == pytest.approx(0.5)
    assert matrix.sum() == 8 and matrix[-1].tolist() == [1, 1, 0, 0]
    assert scores.pixel_accuracy(matrix) == pytest.approx(4 / 6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 19), height=st.integers(1, 23), width=st.integers(1, 31))
def test_agrees_with_torchmetrics(seed: int, classes: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes + 1, (3, height, width), generator=generator)
    label[label == classes] = 255
    logits = torch.randn(3, classes, height, width, generator=generator)
    ours = confusion.empty(classes)
    for one, truth in zip(logits, label, strict=True):
        confusion.update(ours, confusion.most_likely(one[None]), truth[None].to(torch.uint8))
    jaccard = MulticlassJaccardIndex(classes, average=None, ignore_index=255)
    theirs = jaccard(logits, label).double()
    values = scores.iou(ours)
    present = ~values.isnan()
    assert torch.allclose(values[present], theirs[present], atol=1e-6)
    assert theirs[~present].nan_to_num().eq(0).all()  # what has no score here is not more than 0 there
    if present.any():
        accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=255)(logits, label)
        assert scores.pixel_accuracy(ours) == pytest.approx(float(accuracy), abs=1e-6)


def test_argmax_takes_the_first_of_equals() -> None:
    logits = torch.randn(2, 19, 33, 17, generator=torch.Generator().manual_seed(0)).round()  # many ties
    assert torch.equal(confusion.most_likely(logits), torch.from_numpy(logits.numpy().argmax(1)))


def test_counts_do_not_lose_single_pixels() -> None:
    matrix = confusion.empty(2)
    matrix[0, 0] = 2**53
    confusion.update(matrix, torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert int(matrix[0, 0]) == 2**53 + 1


def test_largest_class_list() -> None:
    matrix = matrix_of([253, 253], [253, 255], 254)
    assert matrix[253, 253] == 1 and matrix[255, 253] == 1 and matrix.sum() == 2


def test_all_ignored_image_changes_no_score() -> None:
    matrix = matrix_of([0, 1, 1], [0, 1, 0], 2)
    before = scores.iou(matrix)
    confusion.update(matrix, torch.ones(1, 5, 7, dtype=torch.int64), torch.full((1, 5, 7), 255, dtype=torch.uint8))
    assert torch.equal(scores.iou(matrix), before)
    assert math.isnan(scores.pixel_accuracy(matrix_of([0, 1], [255, 255], 2)))


def test_report_leaves_absent_classes_out() -> None:
    space = class_space("cityscapes19")
    # class 2 is predicted but in no label: it is scored, with 0; all from 3 on are absent
    block = scores.report(matrix_of([0, 0, 1, 2], [0, 0, 1, 1], 19), space)
    assert block["iou"] == {"road": 100.0, "sidewalk": 50.0, "building": 0.0}
    assert block["miou"] == block["miou19"] == block["miou16"] == block["miou13"] == 50.0
    assert block["absent"] == list(space.names[3:])
    assert block["pixels"] == 4 and block["pixel_accuracy"] == 75.0


def test_subsets_by_name() -> None:
    space = class_space("cityscapes19")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 19, 5000).tolist()
    prediction = [k if rng.random() < 0.5 else int(rng.integers(0, 19)) for k in label]
    block = scores.report(matrix_of(prediction, label, 19), space)
    for key, left_out in (
        ("miou16", {"terrain", "truck", "train"}),
        ("miou13", {"terrain", "truck", "train", "wall", "fence", "pole"}),
    ):
        wanted = np.mean([value for name, value in block["iou"].items() if name not in left_out])
        assert block[key] == pytest.approx(wanted, abs=2e-4)


def test_a_subset_without_any_present_class_has_no_score() -> None:
    space = class_space("cityscapes19")
    block = scores.report(matrix_of([3, 4], [3, 3], 19), space)  # wall and fence only: not in the 13
    assert "miou13" not in block and block["miou"] == 25.0
