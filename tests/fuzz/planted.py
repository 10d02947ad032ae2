"""Programs that do what none may do: the test of the fuzz program itself."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
from sandbox import command

from udaseg import cli, params
from udaseg.errors import UserError


def traceback(*_: object) -> None:
    raise KeyError("planted")


def hang(*_: object) -> None:
    time.sleep(3600)


def loop(*_: object) -> None:
    while True:
        pass


def memory(*_: object) -> None:
    np.ones(300 << 20, np.uint8)
    raise UserError("and then well")


def outside(*_: object) -> None:
    Path("../outside.txt").write_text("x")


def lines(*_: object) -> None:
    raise UserError("one line\nand one more")


def control(*_: object) -> None:
    raise UserError("a name \x1b[31m in red")


def program(*_: object) -> None:
    import subprocess

    subprocess.run(["true"], check=True)


def died(*_: object) -> None:
    import os

    os.abort()


def refused(*_: object) -> None:
    raise UserError("as it should be")


WHAT = [traceback, hang, loop, memory, outside, lines, control, program, died, refused]


def draw(rng: Random, number: int) -> dict[str, Any]:
    return {"what": number % len(WHAT)}


def play(recipe: dict[str, Any], home: Path) -> bool:
    # the command line spells such characters out; the program has to see it if it does not
    with mock.patch.object(params, "load", WHAT[recipe["what"]]), mock.patch.object(cli, "printable", str):
        return command("select").accepted
