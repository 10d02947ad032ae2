"""What the program itself wrote, altered: prepared data, model files, restart states, scores and records."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any

import base
import mutate
import torch
import yaml
from sandbox import Said, Wrong, command, watched

from udaseg.engine import checkpoint
from udaseg.errors import UserError
from udaseg.models.files import load_model_file, save_model

DATA = "data/streets"
PREPARED = [
    f"{DATA}/data.json", *(f"{DATA}/{name}-64x32/{file}" for name in ("streets_photo", "streets_game") for file in ("manifest.json", "images.zip", "labels.zip")),
]  # fmt: skip
JSON = ("metrics.json", "headline.json", "run.json", "analysis.json", "iou.json", "summary.json")
RESULTS = [
    *(f"{base.RUN}/{name}" for name in ("metrics.json", "metrics.json", "headline.json", "run.json", "analysis.json", "iou.json", "history.csv", "confusion.csv", "images.csv", "features.npz", "tsne.npz", "predictions.zip")),
    "results/streets/summary.json", "results/streets/summary.json",
]  # fmt: skip
INSTEAD = ["", "folder", "link", "empty", "deep", "long", "nan", "lone", "binary", "twice", "missing"]


def draw_edit(rng: Random, name: str) -> dict[str, Any]:
    """How to alter a file: JSON by its structure, others by their bytes, now and then by putting something else there."""
    recipe: dict[str, Any] = {"file": name, "edits": [], "damage": [], "instead": ""}
    if rng.random() < 0.1:
        recipe["instead"] = rng.choice(INSTEAD[1:])
    elif name.endswith(".json") and rng.random() < 0.85:
        recipe["edits"] = mutate.edits(rng, base.BASE.json(name))
    else:
        recipe["damage"] = mutate.damages(rng)
    return recipe


def alter(recipe: dict[str, Any]) -> bool:
    """Whether the file in the working directory now holds other bytes, or for JSON another value."""
    path = Path(recipe["file"])
    old = path.read_bytes()
    path.unlink()
    texts = {
        "empty": b"", "deep": b"[" * 100000 + b"]" * 100000, "long": b'{"x": ' + b"9" * 100000 + b"}", "nan": b"NaN", "lone": b'"\\ud800"', "binary": bytes(range(256)),
        "twice": old + old,
    }  # fmt: skip
    kind = recipe["instead"]
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.name)
    elif kind in texts:
        path.write_bytes(texts[kind])
    elif kind != "missing":
        if recipe["edits"]:
            try:
                new = json.dumps(mutate.edited(json.loads(old), recipe["edits"]), indent=2).encode()
            except (RecursionError, TypeError, ValueError):
                new = texts["deep"]
        else:
            new = mutate.damaged(old, recipe["damage"])
        path.write_bytes(new)
        if path.suffix == ".json":
            try:
                return json.dumps(json.loads(new)) != json.dumps(json.loads(old))
            except (ValueError, RecursionError):
                return True
        return new != old
    return True


def advised(said: Said) -> list[list[str]]:
    """The commands of this program that a refusal names in back quotes."""
    return [text.split()[1:] for text in re.findall(r"`(udaseg [a-z-]+ [^`]*)`", said.err)]


def follow(words: tuple[str, ...], said: Said) -> Said:
    """Do what a refusal advises, as far as it names a command, and try again. Raises Wrong if the same is said again."""
    before = said.err
    for step in advised(said)[:1]:
        if step[0] == "prepare":
            step += ["--jobs", "1"]
        if step == list(words) or not command(*step).accepted:
            return said
        said = command(*words)
        if not said.accepted and said.err == before:
            raise Wrong(f"`udaseg {' '.join(step)}` ends well and mends nothing: {before}")
    return said


# --- prepared data --------------------------------------------------------------------------------------------------


def draw_prepared(rng: Random, number: int) -> dict[str, Any]:
    name = rng.choice(PREPARED)
    return {
        **draw_edit(rng, name),
        "step": rng.choice(
            ["evaluate", "evaluate", "train", "prepare"] if "game" not in name else ["train", "train", "prepare"]
        ),
    }


def play_prepared(recipe: dict[str, Any], home: Path) -> bool:
    base.BASE.copy("params.yaml", "data")
    alter(recipe)
    if recipe["step"] == "prepare":
        said = command("prepare", "--benchmark", "streets", "--jobs", "1")
        if not said.accepted:
            return False
        words: tuple[str, ...] = base.TRAIN
        said = command(*words)
    else:
        words = base.TRAIN if recipe["step"] == "train" else base.EVALUATE
        if recipe["step"] == "evaluate":
            base.BASE.copy(base.MODEL, f"{base.RUN}/history.csv", f"{base.RUN}/run.json")
        said = command(*words)
        if not said.accepted:
            said = follow(words, said)
    if not said.accepted:
        return False
    if words[0] == "train":
        if (Path(base.MODEL)).read_bytes() != (base.BASE.folder / base.MODEL).read_bytes():
            made, right = (load_model_file(p) for p in (base.MODEL, base.BASE.folder / base.MODEL))
            if any(not torch.equal(made[0][key], value) for key, value in right[0].items()):
                raise Wrong("training accepts other data: other weights")
        return True
    same_scores(f"{base.RUN}/metrics.json")
    return True


def same_scores(name: str) -> None:
    found, right = json.loads(Path(name).read_text()), base.BASE.json(name)
    if any(found.get(key) != right[key] for key in ("miou", "iou", "images", "pixels") if key in right):
        raise Wrong(f"accepted, and scored {found.get('miou')} where {right['miou']} is right")


# --- model files ----------------------------------------------------------------------------------------------------


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def unfolded(header: dict[str, Any]) -> dict[str, Any]:
    """With the texts of the metadata that are JSON as values, so that edits reach into them."""
    meta = dict(header["__metadata__"])
    for key in ("model", "colours", "test"):
        if key in meta:
            meta[key] = json.loads(meta[key])
    return {**header, "__metadata__": meta}


def draw_model(rng: Random, number: int) -> dict[str, Any]:
    header, _ = header_of((base.BASE.folder / base.MODEL).read_bytes())
    header = unfolded(header)
    recipe: dict[str, Any] = {
        "edits": [],
        "damage": [],
        "place": "",
        "instead": "",
        "step": rng.choice(["predict", "predict", "evaluate"]),
    }
    way = rng.choice(["meta", "meta", "meta", "meta", "tensors", "header", "data", "file", "instead"])
    if way == "meta":
        recipe["edits"] = mutate.edits(rng, header, below=["__metadata__"], whole=False)
        if rng.random() < 0.4:
            block = ["__metadata__", "model"]
            recipe["edits"] = [
                rng.choice([
                    ["set", [*block, "backbone_args", rng.choice(["checkpoint_path", "pretrained", "out_indices", "in_chans", "cache_dir", "pretrained_cfg_overlay", "features_only", "output_stride", "depth", "embed_dim", "scriptable", "x"])], rng.choice(["../outside/secret", "/etc/hostname", True, 10**6, [0, 1], -1, {"file": "../outside/secret"}])],
                    ["set", [*block, "backbone"], rng.choice(["resnet101c", "vit_giant_patch14_dinov2", "hf-hub:x/y", "test_vit", "swin_tiny_patch4_window7_224", "x", "../outside/secret", "eva02_enormous_patch14_clip_224"])],
                    ["set", [*block, "width"], rng.choice([0, -1, 10**6, 10**9, 2**63, 16.0])],
                    ["set", [*block, "dilations"], rng.choice([[1] * 1000, [0], [-1], [10**9]])],
                    ["set", [*block, "head"], rng.choice(["deeplabv2", "daformer", "x"])],
                    ["set", [*block, "weights"], rng.choice(["../outside/secret", "timm:a1_in1k", "x.pth"])],
                    ["set", ["__metadata__", "classes"], rng.choice([",".join(f"c{k}" for k in range(n)) for n in (1, 18, 20, 254, 255, 256, 1000)] + ["", ","])],
                    ["set", ["__metadata__", "size"], rng.choice(["1x1", "0x0", "100000x100000", "99999999x1", "64x32x1", "-64x32", "x"])],
                ])
            ]  # fmt: skip
    elif way == "tensors":
        recipe["edits"] = [
            mutate.edit(rng, header, below=[name], whole=False)
            for name in rng.sample([k for k in header if k != "__metadata__"], 2)
        ]
    elif way in ("header", "data", "file"):
        recipe["place"], recipe["damage"] = way, mutate.damages(rng)
    else:
        recipe["instead"] = rng.choice(INSTEAD[1:])
    return recipe


def altered_model(recipe: dict[str, Any], data: bytes) -> bytes:
    header, body = header_of(data)
    if recipe["place"] == "file":
        return mutate.damaged(data, recipe["damage"])
    text = json.dumps(header, separators=(",", ":")).encode()
    if recipe["place"] == "header":
        text = mutate.damaged(text, recipe["damage"])
    elif recipe["place"] == "data":
        body = mutate.damaged(body, recipe["damage"])
    elif recipe["edits"]:
        changed = mutate.edited(unfolded(header), recipe["edits"])
        try:
            meta = changed.get("__metadata__") if isinstance(changed, dict) else None
            if isinstance(meta, dict):
                changed["__metadata__"] = {
                    key: json.dumps(value, sort_keys=True)
                    if key in ("model", "colours", "test") and not isinstance(value, str)
                    else value
                    for key, value in meta.items()
                }
            text = json.dumps(changed, separators=(",", ":")).encode()
        except (RecursionError, TypeError, ValueError):
            text = b"[" * 100000
    return len(text).to_bytes(8, "little") + text + body


def play_model(recipe: dict[str, Any], home: Path) -> bool:
    outside = home.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_bytes(b"secret")
    predict = recipe["step"] == "predict"
    base.BASE.copy(
        "photos", *(["params.yaml", "data", f"{base.RUN}/history.csv", f"{base.RUN}/run.json"] if not predict else [])
    )
    path = Path("model.safetensors" if predict else base.MODEL)
    base.BASE.copy(base.MODEL)
    old = Path(base.MODEL).read_bytes()
    if path != Path(base.MODEL):
        shutil.move(base.MODEL, path)
    if recipe["instead"]:
        alter({"file": str(path), "edits": [], "damage": [], "instead": recipe["instead"]})
        new = b""
    else:
        new = altered_model(recipe, old)
        path.write_bytes(new)
    if predict:
        said = command("predict", "model.safetensors", "photos", "--out", "labels")
        if said.accepted and new == old:
            for name in ("a", "b"):
                if (
                    Path(f"labels/ids/{name}.png").read_bytes()
                    != (base.BASE.folder / f"labels/ids/{name}.png").read_bytes()
                ):
                    raise Wrong("the same model labels otherwise")
        elif not said.accepted and new == old:
            raise Wrong(f"a good model is refused: {said.err}")
        elif said.accepted and {p.name for p in Path("labels/ids").glob("*")} != {"a.png", "b.png"}:
            raise Wrong("accepted, but not all are labelled")
        return said.accepted
    said = command(*base.EVALUATE)
    if not said.accepted:
        said = follow(base.EVALUATE, said)
    if said.accepted:
        same_scores(f"{base.RUN}/metrics.json")
    return said.accepted


# --- restart states -------------------------------------------------------------------------------------------------

RESTART = "results/.restart/streets/self_training/seed0/state.pt"


class Hostile:
    """What a pickle can be."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch ../outside/owned",)


def state() -> dict[str, Any]:
    data = (base.BASE.folder / RESTART).read_bytes()
    return dict(torch.load(io.BytesIO(data[len(checkpoint.FORMAT) + 32 :]), weights_only=True))


def skeleton(value: Any, depth: int = 3) -> Any:
    """The keys and plain values, tensors left out: where edits can go."""
    if isinstance(value, dict) and depth:
        return {str(key): skeleton(child, depth - 1) for key, child in value.items()}
    return value if isinstance(value, int | float | str | bool | list | None) and not isinstance(value, list) else 0


def draw_restart(rng: Random, number: int) -> dict[str, Any]:
    way = rng.choice(["damage", "damage", "edits", "edits", "edits", "shape", "hostile", "instead", "previous"])
    return {
        "way": way,
        "damage": mutate.damages(rng),
        "edits": [edit for edit in mutate.edits(rng, skeleton(state()), whole=False) if edit[0] != "swap"]
        if way == "edits"
        else [],
        "instead": rng.choice(INSTEAD[1:]),
        "number": rng.randrange(1000),
        "trains": rng.random() < 0.5,
    }


def signed(payload: bytes) -> bytes:
    return checkpoint.FORMAT + hashlib.sha256(payload).digest() + payload


def play_restart(recipe: dict[str, Any], home: Path) -> bool:
    outside = home.parent / "outside"
    outside.mkdir(exist_ok=True)
    base.BASE.copy("params.yaml", "data", RESTART)
    path, way = Path(RESTART), recipe["way"]
    good = path.read_bytes()
    buffer = io.BytesIO()
    if way == "damage":
        path.write_bytes(mutate.damaged(good, recipe["damage"]))
    elif way == "previous":  # a damaged one and a good one before it
        path.with_name("state.previous.pt").write_bytes(good)
        path.write_bytes(mutate.damaged(good, recipe["damage"]))
    elif way == "hostile":
        torch.save({"fingerprint": Hostile()}, buffer)
        path.write_bytes(signed(buffer.getvalue()))
    elif way == "instead":
        alter({"file": RESTART, "edits": [], "damage": [], "instead": recipe["instead"]})
    else:
        content = state()
        if way == "shape":
            names = sorted(content["method"])
            content["method"][names[recipe["number"] % len(names)]] = torch.zeros(recipe["number"] % 7 + 1)
        else:
            content = mutate.edited(content, recipe["edits"])
        try:
            torch.save(content, buffer)
        except Exception:
            return False
        path.write_bytes(signed(buffer.getvalue()))
    if recipe["trains"]:
        said = command(*base.TRAIN)
        accepted = said.accepted
        if accepted and way in ("damage", "previous", "hostile", "instead"):
            made, right = (load_model_file(p)[0] for p in (base.MODEL, base.BASE.folder / base.MODEL))
            if any(not torch.equal(made[key], value) for key, value in right.items()):
                raise Wrong("other weights than without a stop")
    else:
        try:
            with watched():
                accepted = checkpoint.load(path.parent, {}) is not None
        except UserError as error:
            if "\n" in str(error):
                raise Wrong(f"several lines: {error}") from None
            accepted = False
    if any(outside.iterdir()):
        raise Wrong("a restart state ran a program")
    return accepted


# --- scores, records ------------------------------------------------------------------------------------------------


def draw_results(rng: Random, number: int) -> dict[str, Any]:
    name = rng.choice(RESULTS)
    drawn = f"figure {rng.choice(figures())}"
    if "summary" in name:
        steps = ["report", drawn]
    elif name.endswith("metrics.json"):
        steps = ["compare", "compare", "compare", "select", "report", "import", "reference", drawn]
    elif name.endswith("run.json"):
        steps = ["report", "import", "import", "evaluate", "train", "why", "reference"]
    elif name.endswith("analysis.json"):
        steps = ["report", "select", drawn]
    elif name.endswith("history.csv"):
        steps = ["figure curves", "evaluate", "train", "import"]
    elif name.endswith("npz"):
        steps = ["figure tsne", drawn]
    else:
        steps = ["select", "figure qualitative", "report", drawn]
    return {**draw_edit(rng, name), "step": rng.choice(steps)}


def play_results(recipe: dict[str, Any], home: Path) -> bool:
    step = recipe["step"]
    base.BASE.copy("params.yaml", "data/streets/data.json", "results/streets", "docs", "figures")
    if step.startswith("figure") or step in ("evaluate", "train", "import"):
        base.BASE.copy("data")
    changed = alter(recipe)
    run = ("--benchmark", "streets", "--method", "self_training")
    name, _, what = step.partition(" ")
    words = {
        "figure": ("figure", what, "--benchmark", "streets"), "evaluate": ("evaluate", *run), "train": ("train", *run), "why": ("why", "streets/self_training/0"),
        "import": ("import-run", base.RUN, "--reference"), "select": ("select",),
    }.get(name, (name, "--benchmark", "streets"))  # fmt: skip
    if name == "reference":
        home = Path("results/reference/streets/self_training/seed0")
        shutil.copytree(base.RUN, home, symlinks=True)
        words = ("compare", "--benchmark", "streets", "--reference")
    said = command(*words)
    if not said.accepted:
        said = follow(words, said)
    if not said.accepted:
        return False
    if (
        changed
        and recipe["file"].endswith("metrics.json")
        and name in ("compare", "select", "report", "import", "reference")
    ):
        found = Path(recipe["file"])
        values = json.loads(found.read_text())
        right = base.BASE.json(recipe["file"])
        if any(not same(values.get(key), right[key]) for key in ("miou", "iou")):
            raise Wrong(f"{name} accepts altered scores: miou {values.get('miou')}, right is {right['miou']}")
    if changed and recipe["file"].endswith("summary.json") and name == "report":
        values, right = json.loads(Path(recipe["file"]).read_text()), base.BASE.json(recipe["file"])
        mine = (values["methods"] if isinstance(values, dict) else {}).get("self_training", {})
        if mine.get("miou") != right["methods"]["self_training"]["miou"]:
            raise Wrong("the report accepts a summary that is not that of the scores")
    return True


def draw_tables(rng: Random, number: int) -> dict[str, Any]:
    """results/reference/superseded.yaml, and encoder weights."""
    raw = {"streets": {"K3": ["self_training", "pipa"], "K1": ["bcl"]}, "camvid_day2dusk": {"K3": ["pipa"]}}
    if rng.random() < 0.5:
        return {
            "what": "superseded",
            "edits": mutate.edits(rng, raw),
            "raw": raw,
            "tail": rng.choice(
                ["", "", "x: [", "streets: 1", "? {}", "a: &a [*a]", "!!python/name:os.system", "\x00", "<<: 1"]
            ),
        }
    way = rng.choice(["names", "damage", "damage", "hostile", "instead"])
    return {
        "what": "weights",
        "ending": rng.choice(["pth", "pt", "safetensors"]),
        "way": way,
        "damage": mutate.damages(rng),
        "instead": rng.choice(INSTEAD[1:]),
        "number": rng.randrange(100),
    }


def play_tables(recipe: dict[str, Any], home: Path) -> bool:
    outside = home.parent / "outside"
    outside.mkdir(exist_ok=True)
    base.BASE.copy("params.yaml", base.RUN, f"{DATA}/data.json")
    if recipe["what"] == "superseded":
        shutil.copytree(base.RUN, "results/reference/streets/self_training/seed0")
        text = (
            yaml.safe_dump(
                mutate.edited(recipe["raw"], [edit for edit in recipe["edits"] if "$deep" not in json.dumps(edit)])
            )
            + recipe["tail"]
        )
        Path("results/reference/superseded.yaml").write_text(text, encoding="utf-8", errors="backslashreplace")
        return command("compare", "--benchmark", "streets", "--reference").accepted
    base.BASE.copy("data")
    raw = mutate.edited(base.BASE.raw, [])
    path = Path(f"encoder.{recipe['ending']}")
    raw["benchmarks"]["streets"]["model"]["weights"] = str(path)
    raw["benchmarks"]["streets"]["init"] = {"default": "imagenet"}
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    tensors = {
        name.removeprefix("encoder.body."): value
        for name, value in load_model_file(base.MODEL)[0].items()
        if name.startswith("encoder.body.")
    }
    names = sorted(tensors)
    if recipe["way"] == "names":
        tensors[f"{names[recipe['number'] % len(names)]}x"] = tensors.pop(names[recipe["number"] % len(names)])
    content: Any = {"state_dict": Hostile()} if recipe["way"] == "hostile" else tensors
    if recipe["ending"] == "safetensors" and recipe["way"] != "hostile":
        save_model(path, tensors, {})
    else:
        torch.save(content, path)
    if recipe["way"] == "damage":
        path.write_bytes(mutate.damaged(path.read_bytes(), recipe["damage"]))
    elif recipe["way"] == "instead":
        alter({"file": str(path), "edits": [], "damage": [], "instead": recipe["instead"]})
    said = command(*base.TRAIN)
    if any(outside.iterdir()):
        raise Wrong("a weights file ran a program")
    return said.accepted


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def figures() -> tuple[str, ...]:
    from udaseg.figures import NAMES

    return tuple(NAMES)
