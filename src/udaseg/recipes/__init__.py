"""The table of papers: one file a paper, found by its name. What it leaves to be set, whether it contrasts, its colour and page.

`recipes/<paper>.py` holds the block of params.yaml and the row of the table (`PAPER`), `methods/<paper>.py` what it computes. All
else (which names there are, what is checked, twins, colours, pages) is read from here, so a new paper touches no other file:
docs/extend.md. No torch: every step can afford this.

Steps that papers give for 40 000 iterations are fractions of the run. A value that equals its declared default is not part of
a run's hash, so that a new key disowns no result; a declared default therefore never changes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from udaseg.errors import UserError

Start = Literal["imagenet", "source_only", "none"]
Variant = Literal["paper", "released"]
HERE = Path(__file__).parent
NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Paper:
    """One row. A method has a training step of its own; a term is added to the self-training step.

    Attributes:
        block: dataclass of its settings: a method's block `methods.<name>`, or a term's own block `<name>` in such a block.
        term: whether it is a term.
        contrasts: of a term: whether its loss is a contrast, which the twin of a run goes without. A method's block says
            so itself (`contrasts`).
        colour: in figures, `#rrggbb`; without one it gets a free one of a fixed cycle.
        page: its page docs/methods/<page>.md, where that is not named after the paper.
        broken: why its file cannot be used, where it cannot.
    """

    block: type | None
    term: bool = False
    contrasts: bool = False
    colour: str | None = None
    page: str | None = None
    broken: str | None = None


@functools.cache
def papers() -> Mapping[str, Paper]:
    """Every paper by name, in alphabetical order. A file that cannot be used is listed as broken and hinders no other.

    Raises:
        UserError: two papers have one name, or a name cannot stand in params.yaml.
    """
    names = [path.stem for path in HERE.glob("*.py") if not path.name.startswith("_")]
    names += [path.parent.name for path in HERE.glob("*/__init__.py")]
    found: dict[str, Paper] = {}
    for name in sorted(names):
        if name in found:
            raise UserError(f"{HERE / name}: found two papers of this name, a file and a folder; rename or delete one")
        if not NAME.fullmatch(name):
            raise UserError(f"{HERE / name}.py: no name of a paper; use small letters, digits and _")
        found[name] = read(name)
    return found


def read(name: str) -> Paper:
    """The row of one file; whatever is wrong with the file is its own matter."""
    path = f"src/udaseg/recipes/{name}.py"
    try:
        paper = importlib.import_module(f"udaseg.recipes.{name}").PAPER
    except Exception as error:  # a stranger's file may fail in any way
        return Paper(None, broken=f"{path} cannot be imported: {first_line(error)}")
    if not isinstance(paper, Paper) or not dataclasses.is_dataclass(paper.block):
        return Paper(None, broken=f"{path}: found PAPER = {paper!r}, expected Paper(<a dataclass>, ...)")
    return paper


def first_line(error: BaseException) -> str:
    """An error in one line, with the place of a mistake in the syntax."""
    where = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {next(iter(text.splitlines()), '')}{where}"


def terms() -> list[str]:
    """Names of the terms that can be used."""
    return [name for name, paper in papers().items() if paper.term]


@functools.cache
def block_of(kind: str) -> type:
    """The dataclass that a block `methods.<kind>` or `methods.<kind>-...` is checked against.

    For the self-training step and all terms that is the step's block with one optional block for each term.

    Raises:
        UserError: a term is named like a key of the step.
    """
    paper = papers()[kind]
    if kind != "self_training" and not paper.term:
        assert paper.block is not None
        return paper.block
    step = papers()["self_training"].block
    assert step is not None
    keys = {field.name for field in dataclasses.fields(step)}
    for name in terms():
        if name in keys:
            raise UserError(
                f"src/udaseg/recipes/{name}.py: {name} is a key of the self-training step; rename the paper"
            )
    own = [(name, papers()[name].block | None, None) for name in terms()]  # type: ignore[operator]
    return dataclasses.make_dataclass("SelfTraining", own, bases=(step,), frozen=True)
