"""Both tools notice by content what is delivered: a corrected label, and not a file that was only touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from repository import TRAINED, Repository

from udaseg.data import streets

MODEL = f"{TRAINED}/model.safetensors"


def photographs(root: Path) -> None:
    for split, start in (("train", 0), ("test", 50)):
        for k in range(4):
            image, label = streets.render(start + k, seed=3, width=64, height=32, look="photo")
            for kind, pixels in (("images", image), ("labels", label)):
                path = root / kind / split / f"{k}.bmp"  # a kind of file whose size tells nothing
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


def test_a_corrected_label_makes_trainings_stale_and_a_touched_one_nothing(finished: Repository) -> None:
    photographs(finished / "photographs")
    mine = {"format": "folder", "root": "photographs", "images": "images/{split}", "labels": "labels/{split}"}
    finished.set("datasets/mine", mine)
    finished.set("benchmarks/streets/target", "mine/train")
    finished.set("benchmarks/streets/evaluate", ["mine/test"])
    finished.snakemake(MODEL)
    assert finished.planned(MODEL) == {}
    finished.udaseg("identity")
    finished.dvc("commit", "--force", "identity", "prepare@streets")

    label = finished / "photographs/labels/train/1.bmp"
    os.utime(label)
    assert finished.planned(MODEL) == {}
    finished.udaseg("identity")
    assert "prepare@streets" not in json.loads(finished.dvc("status", "--json"))

    about = label.stat()
    corrected = np.asarray(Image.open(label)).copy()
    corrected[:4] = 13
    Image.fromarray(corrected).save(label)
    os.utime(label, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert label.stat().st_size == about.st_size
    assert finished.planned(MODEL) == {"prepare": 1, "pretrain": 1, "train": 1}
    assert "prepare@streets" in json.loads(finished.dvc("status", "--json"))

    finished.snakemake(MODEL)
    assert finished.planned(MODEL) == {}
    manifest = json.loads((finished / "data/streets/mine-64x32/manifest.json").read_text())
    counts = manifest["splits"]["train"][1]["counts"]
    assert int(counts["13"]) >= 4 * 64
