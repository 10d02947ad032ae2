"""A run with values from the command line, kept apart from all that is recorded: `udaseg train --set key=value`.

It lies below scratch/<name>/, in no ledger, table or report; what it starts from and its data are those of params.yaml.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from udaseg import params
from udaseg.artifacts import RECORD, read_record
from udaseg.errors import UserError
from udaseg.params import Params, Run

HOME = Path("scratch")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,99}")


def changed(path: str, changes: Sequence[str], name: str | None) -> Params:
    """The parameters with these changes, whose runs lie in scratch/<name>/.

    Args:
        path: the parameter file.
        changes: as `["methods.sepico.sepico.temperature=0.5"]`.
        name: of the folder; None: the last part of each key with its value, as `temperature=0.5`.

    Raises:
        UserError: as `params.changed`; a name that is none.
    """
    p = params.changed(path, changes)
    if name is None:
        name = ",".join(
            re.sub(
                r"[^A-Za-z0-9._=,+-]+",
                "_",
                change.rpartition("=")[0].rpartition(".")[2] + "=" + change.partition("=")[2],
            )
            for change in changes
        )[:100]
    if not NAME.fullmatch(name):
        raise UserError(f"--name: found {name!r}, expected letters, digits and . _ = , + - as in hot-sepico")
    return dataclasses.replace(p, home=HOME / name, origin=params.load(path), known={})


def check_free(run: Run) -> None:
    """Raises UserError where another run of that name lies there already."""
    path = run.folder / RECORD
    if path.exists() and (found := read_record(path).get("params_hash")) != run.hash:
        raise UserError(
            f"{run.folder}: found a run of other values (params_hash {found}, expected {run.hash}); choose another --name, or delete it"
        )
