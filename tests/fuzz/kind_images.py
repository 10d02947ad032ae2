"""Image and label files of many formats and modes, whole and damaged, through prepare, predict and new-target; and their names."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import base
import mutate
import numpy as np
import yaml
from PIL import Image
from sandbox import Wrong, command

from udaseg.data import formats

FORMATS = {
    "png": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "16bit"), "jpg": ("RGB", "L", "CMYK"), "tif": ("RGB", "RGBA", "L", "P", "1", "CMYK", "LAB", "I;16", "I", "F", "YCbCr"),
    "gif": ("P", "L", "RGB"), "webp": ("RGB", "RGBA"), "bmp": ("RGB", "L", "P", "1", "RGBA"), "ppm": ("RGB", "L", "1", "I"),
}  # fmt: skip
LOSSLESS = ("png", "tif", "webp", "bmp", "ppm")
IDS = {0: "x", 1: "y", 2: "z", 7: "void"}
EXIF = [
    "",
    "4578696600004d4d002a000000080002011200030000000100060000011a00020000000461626300000000",
    "45786966000049492a00ffffffff",
    "457869660000",
    "00" * 40,
]
NAMES = [
    "a", "e\u0301", "é", "a b", "a\nb", "a\x1b[31mb", "a\u2028b", "\u202egnp", "-rf", "--out", "$(touch x)", "`touch x`", "; touch x", "'", '"',
    "<img src=x onerror=alert(1)>", "{split}", "*", "**", "[a]", "?", "~", "#", "a: b", "=1+1", "\udcff\udcfe", "a\\b", "x" * 240, "é" * 120, "...", "a.png",
    "%00", "a\tb", "\u200b", "𝒳" * 60, "!!python", "&a", ", ", "a\rb", "con", "..a",
]  # fmt: skip


def draw(rng: Random, number: int) -> dict[str, Any]:
    ending = rng.choice(list(FORMATS))
    role = rng.choice(["image", "image", "label"])
    recipe = {
        "role": role,
        "format": ending,
        "mode": rng.choice(FORMATS[ending]),
        "size": [rng.choice([1, 2, 16, 33, 64]), rng.choice([1, 2, 16, 33])],
        "seed": rng.randrange(1000),
        "exif": rng.choice(EXIF) if rng.random() < 0.2 else "",
        "turn": rng.randrange(10) if rng.random() < 0.2 else 0,
        "frames": rng.choice([1, 1, 1, 3]),
        "special": rng.choice(["", "", "", "huge", "text", "icc", "interlace", "other"]),
        "edits": mutate.damages(rng) if rng.random() < 0.6 else [],
        "as": rng.choice([None, None, None, "png", "jpg", "gif", "tif"]),
        "high": rng.random() < 0.1,
        "step": "prepare"
        if role == "label"
        else rng.choice(["prepare", "prepare", "prepare", "predict", "new-target"]),
    }
    return recipe


def values_of(recipe: dict[str, Any]) -> np.ndarray:
    """(H, W) label values, or (H, W, 3) colours."""
    width, height = recipe["size"]
    generator = np.random.default_rng(recipe["seed"])
    if recipe["role"] == "label":
        return generator.choice(
            np.array([0, 1, 2, 7, 255, *([9] if recipe["high"] else [])], np.uint8), (height, width)
        )
    return generator.integers(0, 256, (height, width, 3), np.uint8)


def bytes_of(recipe: dict[str, Any]) -> bytes:
    array, ending, mode = values_of(recipe), recipe["format"], recipe["mode"]
    if mode == "16bit":
        wide = np.zeros((*array.shape[:2], 3), np.uint16)
        wide[..., 0] = array if array.ndim == 2 else array[..., 0]
        data = png16(wide)
    else:
        image = Image.fromarray(array)
        if array.ndim == 2 and mode == "P":
            image.putpalette([(k * 7 + c * 91) % 256 for k in range(256) for c in range(3)])
        elif mode.startswith("I") or mode == "F":
            image = Image.fromarray(
                np.asarray(image.convert("L")).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
            )
        elif image.mode != mode:
            image = image.convert("RGB").convert(mode) if mode == "LAB" else image.convert(mode)
        buffer = io.BytesIO()
        options: dict[str, Any] = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(ending, {})
        if (
            recipe["frames"] > 1
            and ending in ("gif", "webp", "tif", "png")
            and not mode.startswith("I")
            and mode != "F"
        ):
            options |= {"save_all": True, "append_images": [image] * (recipe["frames"] - 1)}
        exif = bytes.fromhex(recipe["exif"])
        if recipe["turn"]:
            block = Image.Exif()
            block[0x0112] = recipe["turn"]
            exif = block.tobytes()
        if exif and ending in ("jpg", "webp", "png"):
            options["exif"] = exif
        if recipe["special"] == "icc" and ending in ("jpg", "png", "tif", "webp"):
            options["icc_profile"] = b"no profile" * 10
        image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper()), **options)
        data = buffer.getvalue()
    data = special(recipe, data)
    return mutate.damaged(data, recipe["edits"])


def special(recipe: dict[str, Any], data: bytes) -> bytes:
    kind, ending = recipe["special"], recipe["format"]
    if kind == "huge":  # sizes that the file declares and does not have
        side = [30000, 60000, 2**31 - 1, 0][recipe["seed"] % 4]
        if ending == "png":
            head = struct.pack(">II", side, side) + data[24:29]
            return data[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + data[33:]
        if ending == "bmp":
            return data[:18] + struct.pack("<ii", min(side, 2**31 - 1), side) + data[26:]
        if ending == "gif":
            return data[:6] + struct.pack("<HH", side & 0xFFFF, side & 0xFFFF) + data[10:]
        if ending == "ppm":
            return b"P6\n%d %d\n255\n" % (side, side) + data[-100:]
        if ending == "jpg" and (place := data.find(b"\xff\xc0")) > 0:
            return data[: place + 5] + struct.pack(">HH", side & 0xFFFF, side & 0xFFFF) + data[place + 9 :]
    if kind == "text" and ending == "png":  # a compressed text of 64 MiB
        body = b"zTXt" + b"x\0\0" + zlib.compress(bytes(1 << 26))
        return data[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    if kind == "interlace" and ending == "png":
        head = data[16:28] + b"\1"
        return data[:28] + b"\1" + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + data[33:]
    if kind == "other":
        return [
            b"",
            b"\0",
            b"GIF89a",
            b"\x89PNG\r\n\x1a\n",
            b"II*\0\xff\xff\xff\xff",
            b"RIFF\0\0\0\0WEBPVP8L",
            b"\xff\xd8\xff",
            b"BM",
            b"P6",
        ][recipe["seed"] % 9]
    return data


def png16(array: np.ndarray) -> bytes:
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def untouched(recipe: dict[str, Any]) -> bool:
    """A file as anyone would have it, which must be taken."""
    plain = not (
        recipe["edits"] or recipe["special"] not in ("", "icc") or recipe["exif"] or recipe["turn"] or recipe["high"]
    )
    mode = recipe["mode"] == ("L" if recipe["role"] == "label" else "RGB")
    return plain and mode and recipe["frames"] == 1 and recipe["format"] in LOSSLESS and recipe["as"] in (None, recipe["format"]) and not (
        recipe["role"] == "label" and recipe["format"] == "webp"
    )  # fmt: skip


def write_set(folder: Path, raw: dict[str, Any], **block: Any) -> None:
    raw["datasets"]["mine"] = {"format": "folder", "root": str(folder), "classes": ["x", "y", "z"], **block}
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")


def play(recipe: dict[str, Any], home: Path) -> bool:
    try:
        data = bytes_of(recipe)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False  # Pillow cannot write what was drawn
    ending = recipe["as"] or recipe["format"]
    label = recipe["role"] == "label"
    path = Path("mine", "labels" if label else "images", f"a.{ending}")
    Path("mine/images").mkdir(parents=True)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    width, height = recipe["size"]
    step = recipe["step"]
    if step == "predict":
        base.BASE.copy(base.MODEL)
        said = command("predict", base.MODEL, "mine/images", "--out", "out")
        if said.accepted and not any(Path("out/ids").glob("*")):
            raise Wrong("accepted, but nothing is labelled")
    elif step == "new-target":
        base.BASE.copy("params.yaml")
        said = command("new-target", "mine/images", "--name", "mine")
        return said.accepted or untouched(recipe)  # small ones are refused
    else:
        raw = mutate.edited(base.BASE.raw, [])
        if label:
            Image.new("RGB", (width, height)).save("mine/images/a.png")
            write_set(Path("mine"), raw, images="images", labels="labels", ids=IDS)
        else:
            write_set(Path("mine"), raw, images="images")
        said = command("prepare", "mine", "--size", f"{max(width, height)}x{min(width, height)}", "--jobs", "1")
        if said.accepted:
            check_prepared(recipe)
    if not said.accepted and untouched(recipe):
        raise Wrong(f"a good file is refused: {said.err}")
    return said.accepted


def check_prepared(recipe: dict[str, Any]) -> None:
    """What prepare made of a file that no edit has touched, against the pixels that were written."""
    (folder,) = Path("data").glob("mine-*")
    label = recipe["role"] == "label"
    with zipfile.ZipFile(folder / ("labels.zip" if label else "images.zip")) as archive:
        (member,) = archive.namelist()
        with Image.open(io.BytesIO(archive.read(member))) as image:
            found = np.asarray(image)
    values = values_of(recipe)
    if label:
        if recipe["format"] == "jpg" or not set(np.unique(found)) <= {0, 1, 2, 255}:
            raise Wrong(
                f"accepted a label file of format {recipe['format']}: values {sorted(map(int, np.unique(found)))}"
            )
        counts = json.loads((folder / "manifest.json").read_text())["splits"]["train"][0]["counts"]
        here = {str(k): int((found == k).sum()) for k in (0, 1, 2) if (found == k).any()}
        if counts != here:
            raise Wrong(f"counts {counts} in the manifest, {here} in the label")
    if not untouched(recipe):
        return
    expected = np.where(values == 7, 255, values) if label else values
    if not np.array_equal(found, expected):
        raise Wrong("prepared pixels are not those of the file")


# --- names ----------------------------------------------------------------------------------------------------------


def draw_names(rng: Random, number: int) -> dict[str, Any]:
    return {
        "folder": rng.choice(NAMES),
        "files": [rng.choice(NAMES) for _ in range(rng.choice([1, 2, 3]))],
        "ending": rng.choice([".png", ".PNG", ".png", ".jpg"]),
        "step": rng.choice(["prepare", "prepare", "predict", "new-target", "submit"]),
        "bad": rng.random() < 0.3,  # the last file is no image, so that its name is told
        "labels": rng.random() < 0.4,
    }


def play_names(recipe: dict[str, Any], home: Path) -> bool:
    root = Path("mine", recipe["folder"])
    try:
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True)
        for k, name in enumerate(recipe["files"]):
            path = root / "images" / f"{name}{recipe['ending']}"
            Image.new("RGB", (64, 48), (k, 9, 9)).save(path, {".jpg": "JPEG"}.get(recipe["ending"], "PNG"))
            Image.new("L", (64, 48), k % 3).save(root / "labels" / f"{name}.png", "PNG")
        if recipe["bad"]:
            path.write_bytes(b"no image")
    except (OSError, ValueError):
        return False  # no such name on this file system
    base.BASE.copy("params.yaml")
    step = recipe["step"]
    if step == "predict":
        base.BASE.copy(base.MODEL)
        said = command("predict", base.MODEL, "./" + str(root / "images"), "--out", "out")
        if said.accepted and len(list(Path("out/ids").iterdir())) != len(
            {name for name in recipe["files"] if not name.startswith(".")}
        ):
            raise Wrong("accepted, but not every image has a result of its name")
        return said.accepted
    if step == "submit":
        base.BASE.copy(base.MODEL)
        return command(
            "submit", base.MODEL, "./" + str(root / "images"), "--server", "dark_zurich", "--out", "out.zip"
        ).accepted
    if step == "new-target":
        raw = mutate.edited(base.BASE.raw, [])
        raw["benchmarks"]["streets"]["train"]["crop"] = "32x32"
        Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        said = command("new-target", "./" + str(root / "images"), "--name", "mine")
        if said.accepted:
            found = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["datasets"]["mine"]["root"]
            if Path(found) != root / "images":
                raise Wrong(f"params.yaml now names {found!r}, not {str(root / 'images')!r}")
            return command("prepare", "--benchmark", "mine", "--jobs", "1").accepted
        return False
    raw = mutate.edited(base.BASE.raw, [])
    try:
        write_set(root, raw, images="images", **({"labels": "labels"} if recipe["labels"] else {}))
    except UnicodeEncodeError:
        return False  # a name that YAML cannot hold
    return command("prepare", "mine", "--size", "32x24", "--jobs", "1").accepted


# --- class tables, split lists --------------------------------------------------------------------------------------

CLASSES = [
    "x",
    "y",
    "z",
    "road",
    "sky",
    "",
    " ",
    "a,b",
    "=1+1",
    "<img src=x onerror=alert(1)>",
    "$(touch x)",
    "a\nb",
    "void",
    "é",
    "e\u0301",
    "\x1b[31m",
    "x" * 5000,
    None,
    1,
    True,
    1.5,
    [],
    {},
]


PATTERNS = [
    "images",
    "images/*.png",
    "{split}",
    "**",
    "../mine",
    "/etc",
    "images/*",
    "[",
    "(",
    "\\",
    "",
    "{split}/{split}",
    "*/*",
    "images/**/*",
    "x" * 300,
    "{name}",
    "images/?.png",
]


def draw_classes(rng: Random, number: int) -> dict[str, Any]:
    """A good table, one or two parts of which are drawn anew."""
    texts = [name for name in CLASSES if isinstance(name, str)]
    recipe: dict[str, Any] = {
        "classes": ["x", "y", "z"],
        "ids": rng.choice([{}, {"0": "x", "1": "y", "2": "z"}, {"0": "z", "1": "void", "2": "x", "7": "y"}]),
        "exclude": [],
        "images": "images",
        "labels": "labels",
        "values": [rng.choice([0, 1, 2, 255]) for _ in range(4)],
    }
    for part in rng.choices(
        ["classes", "names", "ids", "exclude", "images", "labels", "values"], k=rng.choice([1, 1, 2])
    ):
        if part == "classes":
            some = [
                [rng.choice(CLASSES) for _ in range(rng.choice([0, 1, 2, 3, 4]))],
                "cityscapes19",
                "camvid11",
                "cityscapes",
                "",
                None,
                19,
            ]
            recipe["classes"] = rng.choice([*some, [f"c{k}" for k in range(rng.choice([254, 255, 256, 300]))]])
        elif part == "names":
            recipe["classes"] = rng.sample(texts, 3)
            recipe["ids"] = {str(k): name for k, name in enumerate(recipe["classes"])} if rng.random() < 0.5 else {}
        elif part == "ids":
            keys = ["0", "1", "2", "255", "256", "-1", "7", "1.5", "x", "99999999999999999999"]
            recipe["ids"] = {**recipe["ids"], rng.choice(keys): rng.choice([*CLASSES, "x", "y", "z"])}
        elif part == "exclude":
            recipe["exclude"] = [
                rng.choice(["a", "b", "nowhere", "", "*", 1, None, "a.png"]) for _ in range(rng.choice([1, 2]))
            ]
        elif part == "values":
            recipe["values"][0] = rng.choice([3, 7, 254])
        else:
            recipe[part] = rng.choice([*PATTERNS, None, "labels", "labels/*.png"])
    return recipe


def play_classes(recipe: dict[str, Any], home: Path) -> bool:
    for folder in ("images", "labels"):
        Path("mine", folder).mkdir(parents=True)
    array = np.array(recipe["values"], np.uint8).reshape(2, 2).repeat(16, 0).repeat(16, 1)
    for name in ("a", "b"):
        Image.new("RGB", (32, 32)).save(f"mine/images/{name}.png")
        Image.fromarray(array).save(f"mine/labels/{name}.png")
    raw = mutate.edited(base.BASE.raw, [])
    ids = {int(k) if k.lstrip("-").isdigit() else k: v for k, v in recipe["ids"].items()}
    block = {key: recipe[key] for key in ("classes", "exclude", "images", "labels")}
    write_set(Path("mine"), raw, ids=ids, **block)
    said = command("prepare", "mine", "--size", "32x32", "--jobs", "1")
    if not said.accepted:
        return False
    names = recipe["classes"]
    folder = Path("data/mine-32x32")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if recipe["labels"] in ("labels", "labels/*.png") and isinstance(names, list):
        with zipfile.ZipFile(folder / "labels.zip") as archive:
            found = np.asarray(Image.open(io.BytesIO(archive.read(archive.namelist()[0]))))
        for value in set(recipe["values"]):
            name = ids.get(value) if ids else names[value] if value < len(names) else None
            expected = (
                255
                if value == 255 and value not in ids
                else 255
                if name == "void" and ids
                else names.index(name)
                if name in names
                else None
            )
            if expected is None or set(np.unique(found[array == value])) != {expected}:
                raise Wrong(f"value {value} became {np.unique(found[array == value])}, expected {expected}")
    if manifest["splits"].get("train") is not None and any(
        entry["name"] in recipe["exclude"] for entry in manifest["splits"]["train"]
    ):
        raise Wrong("an excluded image is in the manifest")
    return True


# --- lists that come with data sets ---------------------------------------------------------------------------------

LINES = [
    "seg/images/train/a.jpg", "seg/images/val/b.jpg", "", "x", "/", "..", "../../outside/secret", "a/b/c/d/e.jpg", "/etc/hostname", "seg/images/train/a.jpg,train/day/x",
    "train/night/GOPR1/a,train/day/GOPR2/d", "train/night/GOPR1/a,", ",", ",,,", "train/night/GOPR1/a,../../../outside/secret", "\x00", "é", "a,b,c", "x" * 5000, "$(touch x)",
]  # fmt: skip


def draw_lists(rng: Random, number: int) -> dict[str, Any]:
    return {
        "format": rng.choice(["bdd100k_night", "dark_zurich"]),
        "lines": [rng.choice(LINES) for _ in range(rng.choice([0, 1, 2, 4]))],
        "edits": mutate.damages(rng) if rng.random() < 0.3 else [],
        "folder": rng.random() < 0.05,
        "counts": rng.random() < 0.7,  # as many images as are wanted
    }


def play_lists(recipe: dict[str, Any], home: Path) -> bool:
    outside = home.parent / "outside"
    outside.mkdir(exist_ok=True)
    Image.new("RGB", (16, 8)).save(outside / "secret_rgb_anon.png")
    night = recipe["format"] == "dark_zurich"
    root = Path("mine")
    if night:
        images = [root / "rgb_anon/train/night/GOPR1/a_rgb_anon.png", root / "rgb_anon/train/day/GOPR2/d_rgb_anon.png"]
        table, counts = root / "corresp/train/night/GOPR1_ref_day.csv", {"train": 1}
    else:
        images = [root / "seg/images/train/a.jpg", root / "seg/images/val/b.jpg"]
        table, counts = (
            root / "images_trainval_night_correct_filenames.txt",
            {"test": len({line for line in recipe["lines"] if line in LINES[:2]})},
        )
        for path in (root / "seg/labels/train/a_train_id.png", root / "seg/labels/val/b_train_id.png"):
            path.parent.mkdir(parents=True)
            Image.new("L", (16, 8)).save(path)
    for path in images:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 8)).save(path)
    table.parent.mkdir(parents=True, exist_ok=True)
    if recipe["folder"]:
        table.mkdir()
    else:
        table.write_bytes(mutate.damaged("\n".join(recipe["lines"]).encode(), recipe["edits"]))
    raw = mutate.edited(base.BASE.raw, [])
    raw["datasets"]["mine"] = {"format": recipe["format"], "root": str(root)}
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    expected = counts if recipe["counts"] else {"train": 5}
    with mock.patch.dict(formats.EXPECTED, {recipe["format"]: expected}):
        return command("prepare", "mine", "--size", "16x8", "--jobs", "1").accepted
