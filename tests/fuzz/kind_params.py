"""params.yaml: keys, values, types, structure, notations; and short trainings with what was accepted."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import base
import mutate
import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from sandbox import Wrong, command, watched

from udaseg import params
from udaseg.errors import UserError

TOKENS = (
    "1_000 0o17 0x1F 0b11 017 1:30 1e3 1.e+3 .5 5. +1 -0 .inf -.inf .nan yes no on off y True TRUE ~ null Null 1e400 1E5 0.1e-3 "
    "1,000 2001-01-01 12:30:45 !!int '!!int \"3\"' '!!float 3' !!null !!bool !!binary '!!set {a}' '!!timestamp x' "
    "'!!python/name:os.system' '!!python/object/apply:os.system [\"touch x\"]' '!!python/tuple [1]' '&a [*a]' '&a {x: *a}' '*nowhere' "
    "{ [ \" ' | > ? - @x `x` %x ! & * {a:1} [1,2 {[1]:2} '? [a]' '{a: 1, a: 2}' '!!merge <<' '<<: 1' '#' ': ' '- -' '\\x00' "
    "'\"\\x00\"' '\"\\ud800\"' '\"\\e[31m\"' '\u0085' '\ufeff' 9007199254740993 123456789012345678901234567890 1.0000000000000001 "
    "1.0e-3 1.0E-03 +1.0e-3 0.001 -1e-3 64x32 0x10 '0x 10' 1e-3 1.0e+3 1e+3 -.5"
)  # words of a shell: what has a space is quoted
LINES = [
    "\t",
    "---",
    "...",
    "%YAML 1.2",
    "a: &a [*a]",
    "run: {}",
    "x: y: z",
    "- 1",
    "<<: *source_only",
    "<<: [1]",
    "? {}",
    "\x00",
    "  x",
]
# Where a number cannot be right, whatever else stands in the file: last key of its path -> test of the number.
NEVER = {
    "lr": lambda v: v <= 0, "std": lambda v: v <= 0, "threshold": lambda v: v > 1 or v < 0, "dropout": lambda v: not 0 <= v <= 1,
    "steps": lambda v: v < 1, "batch": lambda v: v < 1, "width": lambda v: v < 1, "threads": lambda v: v < 1,
    "workers": lambda v: v < 0, "temperature": lambda v: v <= 0, "top": lambda v: not 0 <= v <= 1, "bottom": lambda v: not 0 <= v <= 1,
    "teacher_horizon": lambda v: v < 0, "perplexity": lambda v: v <= 0, "momentum": lambda v: not 0 <= v <= 1,
    "weight_decay": lambda v: v < 0, "feature_distance": lambda v: v < 0, "crop_max_ratio": lambda v: v <= 0, "p": lambda v: not 0 <= v <= 1,
}  # fmt: skip


def tokens() -> list[str]:
    return [a or b for a, b in re.findall(r"'((?:[^'])*)'|(\S+)", TOKENS)]


def raw_of(recipe: dict[str, Any]) -> Any:
    return base.BASE.full_raw if recipe["file"] == "full" else base.BASE.raw


def draw(rng: Random, number: int) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "file": "full" if rng.random() < 0.1 else "small",
        "edits": [],
        "token": None,
        "lines": [],
    }
    raw = raw_of(recipe)
    way = rng.choice(["edits", "edits", "edits", "token", "lines", "same"])
    if way == "same":
        recipe["same"] = {
            "sorted": rng.random() < 0.5,
            "flow": rng.choice([True, False, None]),
            "comments": rng.randrange(1000),
            "numbers": rng.choice([".6e", ".9f", "+.7e", ".3E"]),
            "quotes": rng.choice([None, "'", '"']),
        }
        return recipe
    if way == "edits":
        recipe["edits"] = mutate.edits(rng, raw)
    elif way == "token":
        recipe["token"] = [rng.choice(mutate.places(raw)), rng.choice(tokens())]
    else:
        count = (base.BASE.full_text if recipe["file"] == "full" else base.BASE.text).count("\n")
        for _ in range(rng.choice([1, 1, 2, 4])):
            what = rng.choice(["copy", "drop", "insert", "indent", "bytes", "tail", "key"])
            detail = {
                "insert": rng.choice(LINES),
                "bytes": mutate.damages(rng),
                "tail": rng.choice(tokens()),
                "key": rng.choice(tokens()),
            }
            recipe["lines"].append([what, rng.randrange(count), rng.randrange(count), detail.get(what)])
    return recipe


def rewritten(raw: Any, how: dict[str, Any]) -> str:
    """The same values in other words: order of keys, style, comments, notation of fractions."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def fraction(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
        text = format(value, how["numbers"])
        plain = repr(value) if "." in repr(value) else repr(value).replace("e", ".0e")
        return dumper.represent_scalar("tag:yaml.org,2002:float", text if float(text) == value else plain)

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=how["quotes"])

    Dumper.add_representer(float, fraction)
    Dumper.add_representer(str, text)
    out = yaml.dump(raw, Dumper=Dumper, sort_keys=how["sorted"], default_flow_style=how["flow"], width=10**6)
    lines = out.split("\n")
    if how["flow"] is not True:
        lines = [
            f"{line}   # {how['comments']}: a note" if k % 3 == how["comments"] % 3 and line else line
            for k, line in enumerate(lines)
        ]
    return "# another first line\n\n" + "\n".join(lines)


def text_of(recipe: dict[str, Any]) -> bytes:
    if recipe.get("same"):
        return rewritten(raw_of(recipe), recipe["same"]).encode()
    text = base.BASE.full_text if recipe["file"] == "full" else base.BASE.text
    if recipe["edits"] or recipe["token"]:
        raw = mutate.edited(raw_of(recipe), recipe["edits"])
        if recipe["token"]:
            raw = mutate.edited(raw, [["set", recipe["token"][0], "PLACEHOLDER"]])
        try:
            text = yaml.dump(raw, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=10**6)
        except RecursionError:
            text = json.dumps(mutate.edited(base.BASE.raw, [])) + "\nx: " + "[" * 3000 + "]" * 3000
        if recipe["token"]:
            text = text.replace("PLACEHOLDER", recipe["token"][1])
    data: bytes | None = None
    for what, here, there, detail in recipe["lines"]:
        lines = text.split("\n")
        line = lines[here % len(lines)]
        if what == "copy":
            lines.insert(there % len(lines), line)
        elif what == "drop":
            lines.remove(line)
        elif what == "insert":
            lines.insert(here, detail)
        elif what == "indent":
            lines[here % len(lines)] = " " + line
        elif what == "tail":
            lines[here % len(lines)] = re.sub(r": .*", lambda _, detail=detail: f": {detail}", line)
        elif what == "key":
            lines[here % len(lines)] = re.sub(r"[a-z_]+:", lambda _, detail=detail: f"{detail}:", line, count=1)
        elif what == "bytes":
            data = mutate.damaged("\n".join(lines).encode(), detail)
        text = "\n".join(lines)
    return data if data is not None else text.encode("utf-8", "surrogatepass")


def play(recipe: dict[str, Any], home: Path) -> bool:
    data = text_of(recipe)
    Path("params.yaml").write_bytes(data)
    try:
        with watched():
            p = params.load("params.yaml")
    except UserError as error:
        one_line(error)
        if not recipe["edits"] and not recipe["token"] and not recipe["lines"]:
            raise Wrong(f"the shipped values are refused: {error}") from None
        return False
    check_numbers(p.raw, [])
    for benchmark in p.benchmarks:
        for method in p.methods:
            try:
                with watched():
                    run = p.resolve(benchmark, method, 0)
                    describe = (
                        run.hash,
                        run.classes,
                        run.twins,
                        run.uncontrasted,
                        params.uses(run.benchmark),
                        run.command("train"),
                    )
                json.dumps(run.resolved, default=str)
                assert describe
            except UserError as error:
                one_line(error)
    if recipe.get("same") and hashes(p) != base.BASE.hashes(recipe["file"]):
        raise Wrong("the same values in other words have other hashes")
    if b"<<" not in data:  # merges are of YAML 1.1, which DVC's reader knows and reads in another order
        compare_readers(data, p.raw)
    return True


def hashes(p: params.Params) -> dict[str, str]:
    """Of the runs that there are."""
    out = {}
    for benchmark in p.benchmarks:
        for method in p.methods:
            with contextlib.suppress(UserError):
                out[f"{benchmark}/{method}"] = p.resolve(benchmark, method, 0).hash
    return out


def one_line(error: UserError) -> None:
    if "\n" in str(error):
        raise Wrong(f"the message has several lines: {error}")


def check_numbers(raw: Any, path: list[Any]) -> None:
    if isinstance(raw, dict | list):
        for key, child in raw.items() if isinstance(raw, dict) else enumerate(raw):
            check_numbers(child, [*path, key])
    elif (
        isinstance(raw, int | float) and not isinstance(raw, bool) and "raw" not in path and "backbone_args" not in path
    ):
        words = [word for word in path if isinstance(word, str)]
        test = NEVER.get(words[-1]) if words else None
        if test and "native" not in path and test(raw):
            raise Wrong(f"accepted: {'.'.join(map(str, path))} = {raw!r}")


def compare_readers(data: bytes, raw: Any) -> None:
    """DVC reads the file as YAML 1.2; what it reads must be what we do."""
    if len(data) > 4000:
        return
    try:
        other = YAML(typ="safe", pure=True).load(io.BytesIO(data))
    except (YAMLError, ValueError, RecursionError) as error:
        raise Wrong(f"accepted, but DVC's reader refuses it: {str(error)[:300]}") from None
    if json.dumps(plain(other), sort_keys=True, default=str) != json.dumps(plain(raw), sort_keys=True, default=str):
        raise Wrong("accepted, but DVC's reader reads other values")


def plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {f"{type(key).__name__} {key}": plain(child) for key, child in tree.items()}
    return [plain(child) for child in tree] if isinstance(tree, list) else tree


# --- short trainings ------------------------------------------------------------------------------------------------


def draw_training(rng: Random, number: int) -> dict[str, Any]:
    """A method of the shipped file on the small benchmark, two steps, with one or two values changed."""
    method = rng.choice([name for name in base.BASE.full_raw["methods"] if "night" not in name])
    raw = training_raw(method)
    changes = []
    for _ in range(rng.choice([1, 1, 2])):
        block = rng.choice(
            [
                ["methods", method],
                ["methods", method],
                ["benchmarks", "streets", "train"],
                ["benchmarks", "streets", "model"],
                ["run"],
            ]
        )
        spots = [path for path in mutate.places(raw) if path[: len(block)] == block]
        path = rng.choice(spots)
        old = mutate.at(raw, path)
        if isinstance(old, int | float) and not isinstance(old, bool):
            new = rng.choice(
                [
                    0,
                    1,
                    2,
                    3,
                    7,
                    old / 2,
                    old * 2,
                    old + 1,
                    0.0,
                    0.1,
                    0.5,
                    1.0,
                    1.5,
                    -1,
                    1e-12,
                    1e3,
                    1e12,
                    int(old),
                    float(old),
                ]
            )
            changes.append(["set", path, int(new) if isinstance(old, int) and rng.random() < 0.8 else new])
        elif isinstance(old, bool):
            changes.append(["set", path, not old])
        else:
            changes.append(mutate.edit(rng, raw, below=path, whole=False))
    return {"method": method, "edits": changes}


def training_raw(method: str) -> dict[str, Any]:
    raw = mutate.edited(base.BASE.raw, [])
    raw["methods"][method] = mutate.edited(base.BASE.full_raw["methods"][method], [])
    return dict(raw)


def play_training(recipe: dict[str, Any], home: Path) -> bool:
    base.BASE.copy("data")
    raw = mutate.edited(training_raw(recipe["method"]), recipe["edits"])
    try:
        steps = int(raw["benchmarks"]["streets"]["train"]["steps"])
    except (KeyError, TypeError, ValueError, OverflowError):
        steps = 0
    if steps > 4:  # a long training is no hang
        raw["benchmarks"]["streets"]["train"]["steps"] = 2
    try:
        text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    except RecursionError:
        return False
    Path("params.yaml").write_text(text, encoding="utf-8")
    return command("train", "--benchmark", "streets", "--method", recipe["method"]).accepted
