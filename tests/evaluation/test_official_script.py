"""Agreement with the official Cityscapes script on generated label files."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from udaseg.classes import CITYSCAPES, NAMES, class_space
from udaseg.evaluation import confusion, scores

IDS = np.array([row[1] for row in CITYSCAPES], np.uint8)
VOID = np.array([0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30], np.uint8)
ABSENT = NAMES.index("train")


def write(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def test_same_scores_as_the_official_script(tmp_path: Path) -> None:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    rng = np.random.default_rng(0)
    matrix = confusion.empty(19)
    classes = np.array([k for k in range(19) if k != ABSENT], np.uint8)
    truths = []
    for n, (height, width) in enumerate([(32, 64), (17, 33), (40, 24), (1, 5)]):
        label = rng.choice(classes, (height, width))
        prediction = np.where(rng.random((height, width)) < 0.6, label, rng.choice(classes, (height, width)))
        void = rng.random((height, width)) < 0.15
        stem = f"frankfurt_{n:06d}_{n:06d}"
        truth = tmp_path / "gtFine" / "val" / "frankfurt" / f"{stem}_gtFine_labelIds.png"
        write(truth, np.where(void, rng.choice(VOID, (height, width)), IDS[label]).astype(np.uint8))
        write(tmp_path / "results" / f"{stem}_prediction.png", IDS[prediction])
        truths.append(str(truth))
        scored = torch.from_numpy(np.where(void, 255, label).astype(np.uint8))
        confusion.update(matrix, torch.from_numpy(prediction)[None].long(), scored[None])

    args = copy.copy(official.args)
    args.predictionPath, args.predictionWalk = str(tmp_path / "results"), None
    args.JSONOutput, args.evalInstLevelScore, args.quiet = False, False, True
    predictions = [official.getPrediction(args, truth) for truth in truths]
    theirs = official.evaluateImgLists(predictions, truths, args)

    ours = dict(zip(NAMES, scores.iou(matrix).tolist(), strict=True))
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs["classScores"][name], abs=1e-6, nan_ok=True)
    assert np.isnan(ours["train"])
    assert scores.miou(matrix) == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    assert scores.report(matrix, class_space("cityscapes19"))["absent"] == ["train"]
