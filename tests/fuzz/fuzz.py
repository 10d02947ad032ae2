"""Thousands of bad inputs, each accepted and right or refused in one line: `make fuzz`, or a single case again.

python tests/fuzz/fuzz.py --cases 10000 --seconds 1500 --seed 0
python tests/fuzz/fuzz.py --seed 0 --only params:123      # one case alone
python tests/fuzz/fuzz.py --corpus --cases 0              # those that once failed: corpus.jsonl
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "CUDA_VISIBLE_DEVICES": "",
    "GIT_CEILING_DIRECTORIES": tempfile.gettempdir(),
}
CORPUS = HERE / "corpus.jsonl"


@dataclass(frozen=True)
class Kind:
    """One sort of input.

    Attributes:
        draw, play: names of two functions of `module`: generator -> recipe, (recipe, folder) -> accepted.
        share: of a run, in parts of all shares.
        needs: the part of the project that it starts from.
        batch: cases of one fork.
    """

    module: str
    draw: str
    play: str
    share: int
    needs: str = "folder"
    batch: int = 40


KINDS = {
    "params": Kind("kind_params", "draw", "play", 30),
    "training": Kind("kind_params", "draw_training", "play_training", 4, "trained", 10),
    "arguments": Kind("kind_arguments", "draw", "play", 10, "trained", 20),
    "images": Kind("kind_images", "draw", "play", 16, "trained"),
    "names": Kind("kind_images", "draw_names", "play_names", 4, "trained"),
    "classes": Kind("kind_images", "draw_classes", "play_classes", 5),
    "archives": Kind("kind_archives", "draw", "play", 12),
    "prepared": Kind("kind_files", "draw_prepared", "play_prepared", 5, "trained", 20),
    "models": Kind("kind_files", "draw_model", "play_model", 8, "trained", 20),
    "restart": Kind("kind_files", "draw_restart", "play_restart", 4, "trained", 20),
    "tables": Kind("kind_files", "draw_tables", "play_tables", 2, "trained", 20),
    "lists": Kind("kind_images", "draw_lists", "play_lists", 2, "folder", 20),
    "results": Kind("kind_files", "draw_results", "play_results", 8, "finished", 20),
}
PLANTED = Kind("planted", "draw", "play", 0)  # what the program must find; no part of a run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seconds", type=float, default=1500, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS, "planted"], help="default: all")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case alone, its recipe told")
    parser.add_argument("--corpus", action="store_true", help="before them the cases that once failed: corpus.jsonl")
    parser.add_argument("--failed", type=Path, metavar="FILE", help="append the recipes of what fails")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds of computing of one case (default: 10)")
    parser.add_argument(
        "--waiting", type=float, default=60.0, help="seconds of the clock (default: 60; at low priority more)"
    )
    parser.add_argument("--memory", type=int, default=1024, help="MiB that one case may take (default: 1024)")
    parser.add_argument("--keep", action="store_true", help="leave the folders, and say where")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="udaseg-fuzz-")).resolve()
    try:
        return fuzz(args, scratch)
    finally:
        if args.keep:
            print(f"folders: {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)


def fuzz(args: argparse.Namespace, scratch: Path) -> int:
    warm(scratch)
    import sandbox

    if args.only:
        kind, _, number = args.only.partition(":")
        rows = corpus()
        work = (
            [(rows[int(number)][0], int(number), rows[int(number)][2])]
            if kind == "corpus"
            else [(kind, int(number), None)]
        )
    else:
        work = (corpus() if args.corpus else []) + list(planned(args.kinds or list(KINDS), args.cases))
    kept = [recipe for _, _, recipe in work if recipe is not None]
    began = time.monotonic()
    table: dict[str, Counter[str]] = {}
    failures = []
    for name, numbers, recipes in batches(work, args.seed):
        if time.monotonic() - began > args.seconds:
            print(f"stopped after {args.seconds:g} s")
            break
        if args.only:
            print(json.dumps(recipes[0]))
        play = named(kind_of(name), "play")
        started = time.monotonic()
        limits: dict[str, Any] = {"seconds": args.limit, "waiting": args.waiting, "memory": args.memory << 20}
        outcomes = sandbox.run(play, recipes, scratch, **limits, keep=args.keep)
        for number, recipe, outcome in zip(numbers, recipes, outcomes, strict=True):
            row = table.setdefault(name, Counter())
            row["cases"] += 1
            row[outcome.verdict] += 1
            if outcome.verdict == "failed":
                again = f"--only corpus:{number}" if recipe in kept else f"--seed {args.seed} --only {name}:{number}"
                print(f"FAILED {name} {number}: {outcome.text}\n  again: python tests/fuzz/fuzz.py {again}", flush=True)
                failures.append({"kind": name, "recipe": recipe, "found": signature(outcome.text)})
        table.setdefault(name, Counter())["milliseconds"] += int(1000 * (time.monotonic() - started))
    if args.failed:
        with args.failed.open("a") as handle:
            handle.writelines(json.dumps(row) + "\n" for row in failures)
    for (name, found), count in Counter((row["kind"], row["found"]) for row in failures).most_common():
        print(f"{count} x {name}: {found}")
    show(table)
    return 1 if failures else 0


def signature(text: str) -> str:
    """The line that says what happened and the last place of this program: equal for what has one cause."""
    places = re.findall(r'src/(udaseg/\S+)", line (\d+)', text)
    place = ":".join(places[-1]) + " " if places else ""
    said = [line for line in text.strip().splitlines() if not line.startswith(" ")]
    return f"{place}{said[-1] if places and said else text}"[:200].strip()


def corpus() -> list[tuple[str, int, Any]]:
    rows = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    return [(row["kind"], number, row["recipe"]) for number, row in enumerate(rows)]


def warm(scratch: Path) -> None:
    """Import what cases need, once, and prepare the ground."""
    typing.get_type_hints = functools.cache(typing.get_type_hints)  # params.yaml is read in a fourth of the time
    import logging

    import torch

    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.WARNING)
    import base
    import PIL.Image

    PIL.Image.init()
    import udaseg.analysis.analyse
    import udaseg.deploy.export
    import udaseg.deploy.predict
    import udaseg.deploy.submit
    import udaseg.engine.training
    import udaseg.figures.draw
    import udaseg.report.report  # noqa: F401

    base.start(scratch / "base")
    gc.freeze()  # what was imported is looked at no more, in no fork


def planned(kinds: list[str], cases: int) -> Iterator[tuple[str, int, None]]:
    """(kind, number) of every case, in turns, so that a run that is stopped early has looked at all kinds."""
    shares = {name: KINDS[name].share if name in KINDS else 1 for name in kinds}
    total = sum(shares.values())
    counts = {name: -(-cases * share // total) for name, share in shares.items()}
    rounds = 5 if cases > 500 else 1
    for turn in range(rounds):
        for name, count in counts.items():
            for number in range(count * turn // rounds, count * (turn + 1) // rounds):
                yield name, number, None


def batches(work: list[tuple[str, int, Any]], seed: int) -> Iterator[tuple[str, list[int], list[Any]]]:
    """Neighbours of one kind together, with their recipes, which depend on seed, kind and number alone."""
    start = 0
    while start < len(work):
        name = work[start][0]
        kind, end = kind_of(name), start
        while end < len(work) and work[end][0] == name and end - start < kind.batch:
            end += 1
        import base

        getattr(base.BASE, kind.needs)
        draw = named(kind, "draw")
        recipes = [
            given if given is not None else json.loads(json.dumps(draw(Random(f"{seed} {name} {number}"), number)))
            for _, number, given in work[start:end]
        ]
        yield name, [number for _, number, _ in work[start:end]], recipes
        start = end


def kind_of(name: str) -> Kind:
    return PLANTED if name == "planted" else KINDS[name]


def named(kind: Kind, what: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(kind.module), getattr(kind, what))
    return function


def show(table: dict[str, Counter[str]]) -> None:
    columns = ("cases", "seconds", "accepted", "refused", "failed")
    print(f"{'kind':<12}" + "".join(f"{column:>10}" for column in columns))
    total: Counter[str] = Counter()
    for name, row in {**table, "all": total}.items():
        if name != "all":
            total.update(row)
        row["seconds"] = round(row["milliseconds"] / 1000)
        print(f"{name:<12}" + "".join(f"{row[column]:>10}" for column in columns))


if __name__ == "__main__":
    sys.exit(main())
