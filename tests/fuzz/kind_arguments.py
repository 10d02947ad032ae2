"""Command lines, drawn from the program's own parser."""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import base
from sandbox import Handed, command

from udaseg.cli import make_parser

RIGHT = {
    "params": "params.yaml", "dataset": "streets_game", "size": "64x32", "benchmark": "streets", "jobs": "1", "show": "2",
    "method": "self_training", "seed": "0", "rule": "evaluate", "target": f"{base.RUN}/metrics.json", "run": "streets/self_training/0",
    "runs": "streets/self_training/0", "steps": "2", "count": "0", "command": "true", "folder": "photos", "methods": "self_training",
    "model": base.MODEL, "images": "photos", "out": "out", "device": "cpu", "server": "dark_zurich", "name": "mine", "like": "streets",
    "what": "step", "shrink": "4096",
}  # fmt: skip
NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "1e3",
    "1.5",
    "٣",
    "1_000",
    " 5 ",
    "+1",
    "-0",
    "nan",
    "1000000000000000000",
    "9" * 400,
    "9" * 5000,
    "",
    "0x10",
]
SIZES = [
    "0x0",
    "1x1",
    "8x8",
    "-1x2",
    "64x",
    "x",
    "64X32",
    "１２x３",
    "64x32x1",
    "9" * 5000 + "x1",
    "100000x100000",
    "1x100000",
    "64 x 32",
    "64x32\n",
]
PATHS = [
    "", ".", "/", "nowhere", "nowhere/x", "params.yaml", "photos", "photos/a.png", "results", base.RUN, base.MODEL, "x" * 300, "x/" * 3000, "-", "--",
    "\udcff", "a\nb", "a\x1b[31mb", "/dev/null", "/proc/self/mem", "/etc/hostname", "../outside/secret", "params.yaml/x", "~", "loop", "e\u0301",
    "<img src=x onerror=alert(1)>", "$(touch x)", "http://localhost/x", "data/streets", "out.zip", "photos/", "labels/../photos", "{benchmark}",
]  # fmt: skip
NAMES = [
    "",
    "x",
    "Streets",
    "streets ",
    "../x",
    "raw",
    "selected",
    "reference",
    "source_only",
    "oracle",
    "my.set",
    "a b",
    "é",
    "-",
    "--help",
    "--version",
    "x" * 5000,
]
COUNTED = ("jobs", "show", "seed", "steps", "count", "shrink")
LONG = ("train", "pretrain", "bench", "export", "resign")  # they do what other kinds do, or nothing for hours


def draw(rng: Random, number: int) -> dict[str, Any]:
    parsers = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    name = rng.choice(list(parsers))
    words = [name]
    wildness = rng.choice([0.1, 0.3, 0.7])
    for action in parsers[name]._actions:
        flags = action.option_strings
        if isinstance(action, argparse._HelpAction):
            continue
        if not action.required and flags and rng.random() < 0.6:
            continue
        if flags and rng.random() < 0.05:
            continue  # a required one is left out
        if flags:
            words.append(rng.choice(flags))
        if action.nargs == 0:
            continue
        many = rng.choice([1, 1, 2]) if action.nargs in ("*", "+", argparse.REMAINDER) else 1
        for _ in range(many):
            words.append(one(rng, action, wildness))
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        words.insert(
            rng.randrange(len(words) + 1), rng.choice([*PATHS, *NAMES, "--params", "--seed", "--benchmark", "-h"])
        )
    return {"words": words}


def one(rng: Random, action: argparse.Action, wildness: float) -> str:
    right = rng.choice(list(action.choices)) if action.choices else RIGHT.get(action.dest, "x")
    if rng.random() > wildness:
        return str(right)
    if action.dest in COUNTED:
        return rng.choice(NUMBERS)
    if action.dest == "size":
        return rng.choice(SIZES)
    return rng.choice(rng.choice([PATHS, NAMES, NUMBERS]))


def play(recipe: dict[str, Any], home: Path) -> bool:
    words = recipe["words"]
    base.BASE.copy("params.yaml", "photos", "data")
    step = words[0] if words else ""
    if step in ("evaluate", "analyse", "predict", "submit", "export", "import-run", "why", "doctor", "select"):
        base.BASE.copy(base.RUN)
    Path("loop").symlink_to("loop")
    never = mock.Mock(side_effect=Handed())
    with (
        mock.patch("udaseg.engine.training._train", never),
        mock.patch("udaseg.deploy.export.convert", never),
        mock.patch("udaseg.bench.losses.bench_losses", never),
        mock.patch("udaseg.bench.step.bench", never),
        mock.patch("udaseg.analysis.tsne.embed", never, create=True),
    ):
        return command(*words, hands_over=True).accepted
