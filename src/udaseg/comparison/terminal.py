"""Tables for people at a terminal: summary.md, no wider than the screen. Part of no result."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from udaseg.comparison import compare, tables
from udaseg.errors import UserError
from udaseg.params import Params

KEPT = ("method", "model file", "mIoU")  # whatever the width


def show(p: Params, benchmarks: Sequence[str], *, reference: bool = False, width: int | None = None) -> str:
    """The comparison of the methods of each benchmark.

    Args:
        p: the parameters.
        benchmarks: names; none: all of `run`, or all below results/reference/.
        reference: what lies in results/reference/ (committed), not results/.
        width: columns of the screen; None: as wide as it is.

    Raises:
        UserError: not compared yet, damaged, or of other methods.
    """
    known = [path.parent.name for path in sorted(compare.REFERENCES.glob("*/summary.json"))]
    names = list(benchmarks) or (known if reference else list(p.run.benchmarks))
    if not names:
        raise UserError(f"{compare.REFERENCES}: found no table, expected results/reference/<benchmark>/summary.json")
    found = [tables.markdown(compare.read_summary(p, name, reference=reference), p) for name in names]
    return "\n".join(fitted(text, width) for text in found).rstrip("\n")


def fitted(text: str, width: int | None) -> str:
    """Markdown whose tables lose their last columns, by name, until they are no wider; other lines are wrapped."""
    if width is None:
        return text
    lines, table = [], list[str]()
    for line in [*text.split("\n"), ""]:
        if line.startswith("|"):
            table.append(line)
            continue
        if table:
            lines += narrowed(table, width)
            table = []
        lines += textwrap.wrap(line, width) or [""]
    return "\n".join(lines[:-1])


def narrowed(table: Sequence[str], width: int) -> list[str]:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table]  # a bar in a name is escaped
    left_out: list[str] = []
    while len("|".join(rows[0])) + 2 > width:
        droppable = [i for i, name in enumerate(rows[0]) if name.strip() not in KEPT]
        if not droppable:
            break
        left_out.insert(0, rows[0][droppable[-1]].strip())
        rows = [row[: droppable[-1]] + row[droppable[-1] + 1 :] for row in rows]
    shown = [f"|{'|'.join(row)}|" for row in rows]
    if left_out:
        shown += textwrap.wrap(f"not shown, the screen is too narrow: {', '.join(left_out)}", width)
    return shown
