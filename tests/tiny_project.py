"""A folder with params.yaml and prepared data, and `udaseg` commands that run there."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

import forked
from udaseg.data.prepared import content_hash

ROOT = Path(__file__).parents[1]
RAW: dict[str, Any] = yaml.safe_load((ROOT / ".test" / "params.yaml").read_text())


class Project:
    """A folder with params.yaml and prepared data; `udaseg` commands run there."""

    def __init__(self, folder: Path, raw: dict[str, Any]) -> None:
        self.folder, self.raw = folder, raw
        self.write()

    def write(self) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.raw, sort_keys=False))

    def set(self, path: str, value: Any) -> None:
        """Change one value of params.yaml, e.g. `set("run/threads", 2)`."""
        *parents, last = path.split("/")
        block = self.raw
        for key in parents:
            block = block[key]
        block[last] = value
        self.write()

    def forge(self, path: Path, manifest: dict[str, Any]) -> None:
        """Another manifest of prepared data, and the record that vouches for it."""
        path.write_text(json.dumps(manifest))
        record = path.parents[1] / "data.json"
        content = json.loads(record.read_text())
        content["sets"][path.parent.name]["content_sha256"] = content_hash(manifest)
        record.write_text(json.dumps(content))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "udaseg", *words]

    def udaseg(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return forked.run(self.command(*words), self.folder, {**os.environ, **env}, timeout=300)


def stand_in(folder: Path) -> dict[str, Any]:
    """The test parameters with random pictures in the place of the scenes, which need SciPy; written below `folder`."""
    rng = np.random.default_rng(0)
    raw = copy.deepcopy(RAW)
    for name, splits in {"streets_game": {"train": 8}, "streets_photo": {"train": 6, "test": 4}}.items():
        root = folder / "pictures" / name
        for split, number in splits.items():
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True)
            for k in range(number):
                label = rng.permutation(32).reshape(4, 8).repeat(8, 0).repeat(8, 1) % 19
                image = np.stack([label * 13, 255 - label * 7, label * 5], axis=2) + rng.integers(0, 9, (32, 64, 3))
                Image.fromarray(label.astype(np.uint8)).save(root / f"labels/{split}/{k}.png")
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"images/{split}/{k}.png")
        raw["datasets"][name] = {
            "format": "folder",
            "root": str(root),
            "images": "images/{split}",
            "labels": "labels/{split}",
        }
    return raw
