"""Snakemake decides by its own records; results without one (fetched by DVC, copied by hand) would pass as up to date."""

from __future__ import annotations

import os
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path

from udaseg.errors import UserError

OFF = "UDASEG_GUARD"  # set to "off" by the bridges, where DVC vouches for what is there


def check(results: Iterable[str]) -> None:
    """Stop where one of `results` exists without a record of Snakemake.

    A missing result is no matter (it will be made), nor is one that Snakemake was writing when it was killed.

    Raises:
        UserError: names the first such file and `udaseg sync`.
    """
    # A lock left by a killed Snakemake must be removable whatever else is wrong.
    if os.environ.get(OFF) == "off" or "--unlock" in sys.argv:
        return
    strange = [path for path in results if Path(path).exists() and not known(path)]
    if strange:
        raise UserError(
            f"found {len(strange)} results that Snakemake has no record of (the first: {strange[0]}), so it could not tell "
            f"whether they belong to these parameters; run `udaseg sync` if DVC made or fetched them, else delete them"
        )


def known(path: str) -> bool:
    name = urlsafe_b64encode(path.encode()).decode()  # how Snakemake's file backend names its records
    return any(Path(".snakemake", kind, name).exists() for kind in ("metadata", "incomplete"))
