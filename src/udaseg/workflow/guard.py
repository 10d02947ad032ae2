"""What Snakemake has recorded of a result, and whether it may be trusted.

Snakemake decides by its own records; results without one (fetched by DVC, copied by hand) would pass as up to date.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from udaseg.errors import UserError

OFF = "UDASEG_GUARD"  # set to "off" by the bridges, where DVC vouches for what is there


def check_records(results: Iterable[str]) -> None:
    """Stop where one of `results` exists without a record of Snakemake.

    A missing result is no matter (it will be made), nor is one that Snakemake was writing when it was killed.

    Raises:
        UserError: names the first such file and `udaseg sync`.
    """
    # A lock left by a killed Snakemake must be removable whatever else is wrong.
    if not is_on() or "--unlock" in sys.argv:
        return
    strange = [path for path in results if Path(path).exists() and not known(path)]
    if strange:
        raise UserError(
            f"found {len(strange)} results that Snakemake has no record of (the first: {strange[0]}), so it could not tell "
            f"whether they belong to these parameters; run `udaseg sync` if DVC made or fetched them, else delete them"
        )


def is_on() -> bool:
    """Whether this is a Snakemake that somebody called, and not one that a bridge did."""
    return os.environ.get(OFF) != "off"


def known(path: str) -> bool:
    return any(place(path, kind).exists() for kind in ("metadata", "incomplete"))


def place(path: str, kind: str = "metadata") -> Path:
    name = urlsafe_b64encode(path.encode()).decode()  # how Snakemake's file backend names its records
    return Path(".snakemake", kind, name)


def recorded(path: str) -> dict[str, Any] | None:
    """The identity (code and values) with which Snakemake made a result; None where it has no record of one."""
    try:
        (text,) = json.loads(place(path).read_text())["params"]
        found = json.loads(ast.literal_eval(text))
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):
        return None
    return found if isinstance(found, dict) and {"code", "params"} <= found.keys() else None
