"""history.csv: the losses of a training, equal bytes for equal runs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from udaseg.artifacts import write_text

EXACT = ".9g"  # every float32 has its own text


def only_looks(column: str) -> bool:
    """Whether a column tells of looks at the training (scores, labels, gradients), in the rows in which somebody looked, and not of a loss."""
    return "/" in column


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """One line for each row; columns in the order in which they first come."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: format(v, EXACT) if k != "step" else int(v) for k, v in row.items()} for row in history)
    write_text(path, text.getvalue())
