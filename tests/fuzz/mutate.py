"""Edits as data: drawn from a seeded generator, applied to plain values, to texts and to bytes.

A recipe holds edits and nothing else, so that a failing case can be kept as one line of JSON.
"""

from __future__ import annotations

import copy
from random import Random
from typing import Any

Edit = list[Any]
Path = list[Any]

NUMBERS: list[Any] = [
    0, -1, 1, 2, 255, 256, 2**31, 2**32, 2**63, -(2**63), 10**18, 10**30, 0.0, -0.0, 0.5, -0.5, 1.5, 1e-300, 1e300, -1e300,
    float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
TEXTS = [
    "", " ", "x", "0", "-1", "1e3", "nan", "null", "true", "../outside/secret", "../../x", "/etc/hostname", "/dev/null", "a/b", ".",
    "..", "a\nb", "a\x1b[31mb", "a\x00b", "é", "e\u0301", "𝒳", "\u202egnp", "\u2028", "<img src=x onerror=alert(1)>",
    "$(touch x)", "`touch x`", "; touch x", "a b", "'", '"', "{x}", "{{x}}", "%s", "=1+1", "a,b", "-x", "--help", "x" * 300,
    "x" * 70000, "64x32", "0x0", "1x1", "64x", "-1x2", "100000x100000", "１２x３", "!!python/object/apply:os.system [id]",
]  # fmt: skip
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"": None}, {"x": 1}, {"$deep": 3000}, [1, "a", None]]


def value(rng: Random) -> Any:
    """Something of any type."""
    return copy.deepcopy(rng.choice(rng.choice([NUMBERS, TEXTS, OTHERS])))


def near(rng: Random, old: Any) -> Any:
    """A value like the old one, or of another type."""
    if rng.random() < 0.3:
        return value(rng)
    if isinstance(old, bool) or old is None:
        return rng.choice([not old, 0, 1, "yes", None])
    if isinstance(old, int | float):
        return rng.choice(
            [-old, old + 1, old - 1, old * 10, old / 10, old * 1e6, 0, float(old), str(old), rng.choice(NUMBERS)]
        )
    if isinstance(old, str):
        return rng.choice([old.upper(), old + " ", old[:-1], old[1:], old * 2, old + "/..", rng.choice(TEXTS)])
    if isinstance(old, list):
        return rng.choice([old * 2, old[:-1], old[::-1], [old], [*old, value(rng)], dict(enumerate(old))])
    if isinstance(old, dict):
        return rng.choice([list(old), {}, [old], {**old, "x": value(rng)}])
    return value(rng)


def places(tree: Any, here: Path | None = None) -> list[Path]:
    """The paths of all values below a plain value."""
    here = here or []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    out: list[Path] = []
    for key, child in items:
        out += [[*here, key], *places(child, [*here, key])]
    return out


def at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def edit(rng: Random, tree: Any, *, below: Path | None = None, whole: bool = True) -> Edit:
    """One edit of a plain value; `below` keeps it to one block, `whole` allows the value itself."""
    spots = [path for path in places(tree) if not below or path[: len(below)] == below]
    if not spots or (whole and rng.random() < 0.02):
        return ["set", [], value(rng)]
    path = rng.choice(spots)
    kind = rng.choice(["set", "set", "set", "set", "delete", "rename", "wrap", "swap", "add", "double"])
    if kind == "set":
        return ["set", path, near(rng, at(tree, path))]
    if kind == "rename":
        return ["rename", path, rng.choice([*TEXTS, *map(str, path), 0, None, True, 1.5])]
    if kind == "swap":
        return ["swap", path, rng.choice(spots)]
    if kind == "add":
        return ["set", [*path, rng.choice(TEXTS)], value(rng)]
    return [kind, path]


def edits(rng: Random, tree: Any, *, most: int = 3, below: Path | None = None, whole: bool = True) -> list[Edit]:
    return [edit(rng, tree, below=below, whole=whole) for _ in range(rng.choice([1, 1, 1, 2, most]))]


def edited(tree: Any, changes: list[Edit]) -> Any:
    """A copy of a plain value with the edits; one that no longer has its place is left out."""
    tree = {"": copy.deepcopy(tree)}
    for kind, path, *rest in changes:
        try:
            _apply(tree, kind, ["", *path], rest)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    return deepened(tree[""])


def _apply(tree: Any, kind: str, path: Path, rest: list[Any]) -> None:
    parent, key = at(tree, path[:-1]), path[-1]
    if kind == "set":
        parent[key] = copy.deepcopy(rest[0])
    elif kind == "delete":
        del parent[key]
    elif kind == "rename":
        parent[rest[0]] = parent.pop(key)
    elif kind == "wrap":
        parent[key] = [parent[key]]
    elif kind == "double":
        parent.insert(key, parent[key]) if isinstance(parent, list) else parent.__setitem__(f"{key}2", parent[key])
    elif kind == "swap":
        other = ["", *rest[0]]
        mine, theirs = copy.deepcopy(at(tree, path)), copy.deepcopy(at(tree, other))
        parent[key] = theirs
        at(tree, other[:-1])[other[-1]] = mine


def deepened(tree: Any) -> Any:
    """{"$deep": n} as n nested lists."""
    if isinstance(tree, dict):
        if "$deep" in tree:
            out: list[Any] = []
            for _ in range(tree["$deep"]):
                out = [out]
            return out
        return {key: deepened(child) for key, child in tree.items()}
    return [deepened(child) for child in tree] if isinstance(tree, list) else tree


def damage(rng: Random) -> Edit:
    """One edit of bytes. Places are parts of 10 000 of the length."""
    place = rng.choice([rng.randrange(10000), rng.randrange(200), 9999 - rng.randrange(200)])
    kind = rng.choice(["flip", "flip", "flip", "cut", "insert", "zero", "drop", "repeat", "byte"])
    amount = {
        "flip": rng.randrange(8),
        "zero": rng.randrange(1, 64),
        "drop": rng.randrange(1, 64),
        "repeat": rng.randrange(1, 64),
    }
    if kind == "insert":
        return [kind, place, rng.randbytes(rng.randrange(1, 16)).hex()]
    if kind == "byte":
        return [kind, place, rng.choice([0, 1, 127, 128, 255])]
    return [kind, place, amount.get(kind, 0)]


def damages(rng: Random, most: int = 6) -> list[Edit]:
    return [damage(rng) for _ in range(rng.choice([1, 1, 2, most]))]


def damaged(data: bytes, changes: list[Edit]) -> bytes:
    out = bytearray(data)
    for kind, part, amount in changes:
        place = min(len(out) * part // 10000, max(0, len(out) - 1))
        if kind == "flip" and out:
            out[place] ^= 1 << amount
        elif kind == "byte" and out:
            out[place] = amount
        elif kind == "cut":
            del out[place:]
        elif kind == "insert":
            out[place:place] = bytes.fromhex(amount)
        elif kind == "zero":
            out[place : place + amount] = bytes(len(out[place : place + amount]))
        elif kind == "drop":
            del out[place : place + amount]
        elif kind == "repeat":
            out[place:place] = out[place : place + amount]
    return bytes(out)
