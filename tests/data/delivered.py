"""Small stand-ins for every data set, in its true layout and encoding. Each function returns the labels that must come out.

The result is {split: {name: (H, W) uint8 prepared values at delivered size, or None where there is no label}}.
"""

from __future__ import annotations

import copy
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from udaseg import params
from udaseg.classes import NAMES
from udaseg.data import camvid, formats
from udaseg.data.found import Found
from udaseg.params import Dataset, Size

Labels = dict[str, dict[str, np.ndarray | None]]
W, H = 48, 27
CAMVID_NAMES = {
    "train": ["0001TP_006690", "0006R0_f00930", "0016E5_00390"],
    "val": ["0016E5_07959"],
    "test": ["0001TP_008550", "Seq05VD_f00000"],
}


def photograph(path: Path, size: tuple[int, int] = (W, H), seed: int = 0) -> None:
    rng = np.random.default_rng([seed, *path.name.encode()])
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize(size, Image.Resampling.BICUBIC).save(path)


def values(path: Path, allowed: Sequence[int], size: tuple[int, int] = (W, H)) -> np.ndarray:
    rng = np.random.default_rng([1, *path.name.encode()])
    return rng.choice(np.array(allowed, np.uint8), (size[1], size[0]))


def grey(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def palette(path: Path, ids: np.ndarray) -> None:
    """A palette PNG whose colours say nothing about the index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", (ids.shape[1], ids.shape[0]), ids.tobytes())
    image.putpalette([(k * 7 + c * 91) % 256 for k in range(256) for c in range(3)])
    image.save(path)


def png16(array: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write, from (H, W, 3) integers."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen_bit(path: Path, ids: np.ndarray) -> None:
    """Class id, instance id (beyond 8 bits), and an unused channel."""
    instances = np.random.default_rng(0).integers(0, 1000, ids.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png16(np.stack([ids.astype(np.uint16), instances, np.zeros_like(instances)], -1)))


def mapped(kind: str, ids: np.ndarray) -> np.ndarray:
    """What the encoding means, by a loop of its own."""
    table = formats.ENCODINGS[kind].table
    return np.array([[table[int(v)] for v in row] for row in ids], np.uint8)


def gta5(root: Path, n: int = 3) -> Labels:
    out: dict[str, np.ndarray | None] = {}
    for k in range(1, n + 1):
        label = root / "labels" / f"{k:05d}.png"
        ids = values(label, range(35))
        photograph(root / "images" / label.name)
        palette(label, ids)
        out[label.stem] = mapped("gta5", ids)
    return {"train": out}


def synthia(root: Path, n: int = 2) -> Labels:
    out: dict[str, np.ndarray | None] = {}
    for k in range(n):
        label = root / "RAND_CITYSCAPES" / "GT" / "LABELS" / f"{k:07d}.png"
        ids = values(label, range(23))
        photograph(root / "RAND_CITYSCAPES" / "RGB" / label.name)
        sixteen_bit(label, ids)
        out[label.stem] = mapped("synthia", ids)
    return {"train": out}


def cityscapes(root: Path) -> Labels:
    out: Labels = {}
    for split, cities in {"train": ["aachen", "zurich"], "val": ["munster"], "test": ["bonn"]}.items():
        for city in cities:
            stem = f"{city}_000000_000019"
            photograph(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            label = root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
            ids = values(label, range(34))
            grey(label, ids)
            out.setdefault(split, {})[stem] = None if split == "test" else mapped("cityscapes", ids)
    return out


TRAIN_IDS = [*range(len(NAMES)), 255]


def dark_zurich(root: Path) -> Labels:
    """Unpacked as three archives with a folder each. The first night image has a day correspondence, the second none."""
    train, val, test = (root / f"Dark_Zurich_{part}" for part in ("train_anon", "val_anon", "test_anon_withoutGt"))
    stems = [f"GOPR0351_frame_00000{k}" for k in (1, 2)]
    for stem in stems:
        photograph(train / "rgb_anon" / "train" / "night" / "GOPR0351" / f"{stem}_rgb_anon.png")
    day = "train/day/GOPR0345/GOPR0345_frame_000077"
    photograph(train / "rgb_anon" / f"{day}_rgb_anon.png")
    table = train / "corresp" / "train" / "night" / "GOPR0351_ref_day.csv"
    table.parent.mkdir(parents=True)
    table.write_text(f"train/night/GOPR0351/{stems[0]},{day}\n")
    shown = "GOPR0356_frame_000321"
    photograph(val / "rgb_anon" / "val" / "night" / "GOPR0356" / f"{shown}_rgb_anon.png")
    photograph(val / "rgb_anon" / "val_ref" / "day" / "GOPR0356_ref" / f"{shown}_ref_rgb_anon.png")
    label = val / "gt" / "val" / "night" / "GOPR0356" / f"{shown}_gt_labelTrainIds.png"
    ids = values(label, TRAIN_IDS)
    grey(label, ids)
    photograph(test / "rgb_anon" / "test" / "night" / "GOPR0364" / "GOPR0364_frame_000001_rgb_anon.png")
    return {"train": dict.fromkeys(stems), "val": {shown: ids}, "test": {"GOPR0364_frame_000001": None}}


def acdc(root: Path) -> Labels:
    out: Labels = {}
    for k, condition in enumerate(("fog", "night", "rain", "snow")):
        for split in ("train", "val", "test"):
            stem = f"GP01040{k}_frame_00000{['train', 'val', 'test'].index(split)}"
            photograph(root / "rgb_anon" / condition / split / f"GP01040{k}" / f"{stem}_rgb_anon.png")
            label = root / "gt" / condition / split / f"GP01040{k}" / f"{stem}_gt_labelTrainIds.png"
            ids = values(label, TRAIN_IDS)
            if split != "test":
                grey(label, ids)
            for name in (split, f"{condition}_{split}"):
                out.setdefault(name, {})[stem] = None if split == "test" else ids
    return out


def nighttime_driving(root: Path) -> Labels:
    base, stem = root / "NighttimeDrivingTest", "01_frame_0555"
    photograph(base / "leftImg8bit" / "test" / "night" / f"{stem}_leftImg8bit.png")
    label = base / "gtCoarse_daytime_trainvaltest" / "test" / "night" / f"{stem}_gtCoarse_labelTrainIds.png"
    ids = values(label, TRAIN_IDS)
    grey(label, ids)
    return {"test": {stem: ids}}


def bdd100k_night(root: Path) -> Labels:
    """Two chosen images and one by day, which the list leaves out."""
    out: dict[str, np.ndarray | None] = {}
    chosen = {"00aad4a0-ee8135fe": "train", "81d5165d-fcfc6c67": "val"}
    for name, split in {**chosen, "ffffffff-00000000": "train"}.items():
        photograph(root / "bdd100k" / "seg" / "images" / split / f"{name}.jpg")
        label = root / "bdd100k" / "seg" / "labels" / split / f"{name}_train_id.png"
        ids = values(label, TRAIN_IDS)
        grey(label, ids)
        if name in chosen:
            out[name] = ids
    lines = "".join(f"seg/images/{split}/{name}.jpg\n" for name, split in chosen.items())
    (root / "images_trainval_night_correct_filenames.txt").write_text(lines)
    return {"test": out}


DELIVER: dict[str, Callable[[Path], Labels]] = {
    "gta5": gta5,
    "synthia": synthia,
    "cityscapes": cityscapes,
    "dark_zurich": dark_zurich,
    "acdc": acdc,
    "nighttime_driving": nighttime_driving,
    "bdd100k_night": bdd100k_night,
}


def camvid_origin(folder: Path) -> Labels:
    """CamVid as its public repository lays it out."""
    table = camvid.ORIGIN.table
    out: Labels = {}
    for split, names in CAMVID_NAMES.items():
        for name in names:
            photograph(folder / split / f"{name}.png", camvid.SIZE)
            label = folder / f"{split}annot" / f"{name}.png"
            ids = values(label, range(12), camvid.SIZE)
            grey(label, ids)
            prepared = np.array([table[k] for k in range(12)], np.uint8)[ids]
            light = "dusk" if name.startswith("0001TP") else "day"
            for key in (split, f"{light}_{split}"):
                out.setdefault(key, {})[name] = prepared
    return out


def totals(labels: Labels) -> dict[str, dict[int, int]]:
    """Sums as in `camvid.TOTALS`."""
    return {
        split: {v: int(sum((label == v).sum() for label in labels[split].values())) for v in (0, 10, 12, 255)}
        for split in ("train", "val", "test")
    }


# --- helpers of several test files ----------------------------------------------------------------------------------

RAW = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
KINDS = sorted(DELIVER)
SMALL = Size(24, 14)
FILES = ("images.zip", "labels.zip", "manifest.json")


def expect(monkeypatch: pytest.MonkeyPatch, kind: str, labels: Labels) -> None:
    """The stand-in's counts take the place of the true ones."""
    counts = {split: len(labels.get(split, ())) for split in formats.EXPECTED[kind]}
    monkeypatch.setitem(formats.EXPECTED, kind, counts)


def stand_in(monkeypatch: pytest.MonkeyPatch, kind: str, root: Path) -> Labels:
    labels = DELIVER[kind](root)
    expect(monkeypatch, kind, labels)
    return labels


def find(kind: str, root: Path, **keys: object) -> Found:
    return formats.find_delivered(kind, Dataset(format=kind, root=str(root), **keys))  # type: ignore[arg-type]


def zipped(folder: Path, archive: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                opened.write(path, inside + path.relative_to(folder).as_posix())
    return archive


def photos(root: Path, n: int, size: tuple[int, int] = (32, 24)) -> Dataset:
    """A folder data set of three classes with labels."""
    for k in range(n):
        photograph(root / "images" / "train" / f"{k:03d}.png", size)
        label = root / "labels" / "train" / f"{k:03d}.png"
        grey(label, values(label, (0, 1, 2, 255), size))
    return Dataset(
        "folder", str(root), images="images/{split}", labels="labels/{split}", classes=("road", "sky", "car")
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def with_params(folder: Path, **datasets: Dataset) -> Path:
    raw = copy.deepcopy(RAW)
    for name, dataset in datasets.items():
        block = {k: v for k, v in vars(dataset).items() if v}
        raw["datasets"][name] = json.loads(json.dumps(block))
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def two_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> params.Params:
    """`one` and `two` on a stand-in of Cityscapes, `streets` on procedural scenes."""
    stand_in(monkeypatch, "cityscapes", tmp_path / "raw")
    raw = copy.deepcopy(RAW)
    raw["datasets"]["cityscapes"]["root"] = str(tmp_path / "raw")
    raw["datasets"]["streets_game"]["count"] = {"train": 3}
    raw["datasets"]["streets_photo"]["count"] = {"train": 2, "test": 2}
    streets = {**raw["benchmarks"]["streets"], "size": {"source": "64x32", "target": "24x14"}}
    streets |= {"classes": ["road", "building", "sky"], "train": {**streets["train"], "crop": "16x8"}}
    city = {"source": "streets_game/train", "target": "cityscapes/train", "evaluate": ["cityscapes/val"]}
    raw["benchmarks"] = {
        "streets": {**streets, "size": {"source": "64x32", "target": "64x32"}},
        "one": {**streets, **city},
        "two": {**streets, **city},
        "three": {**streets, **city, "evaluate": ["cityscapes/val", "streets_photo/test"], "target": "cityscapes/val"},
    }
    raw["benchmarks"]["three"]["size"] = {"source": "64x32", "target": "64x32"}
    raw["benchmarks"]["four"] = {**streets, **city, "target": "cityscapes/val"}
    raw["select"]["benchmark"] = "streets"
    return params.parse(raw)
