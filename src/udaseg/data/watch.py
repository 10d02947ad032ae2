"""Whether the delivered files are still those that prepared data were made of: what both workflow tools ask before they plan."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from udaseg.data import formats
from udaseg.data.delivered import Notes
from udaseg.data.prepared import Prepared
from udaseg.errors import UserError
from udaseg.params import Dataset, Params, uses


def changed(p: Params, benchmark: str, root: Path = Path("data")) -> dict[str, str]:
    """Prepared data set -> what tells its delivered files as they are now from those that it was made of.

    Files whose listing is known are not read. Nothing is fetched, unpacked or converted; data that are not prepared, and those
    whose delivered files are gone, are no matter.
    """
    out = {}
    for use in uses(p.benchmarks[benchmark]):
        folder, dataset = root / benchmark / use.prepared, p.datasets[use.dataset]
        if use.prepared in out or dataset.format == "streets" or not (folder / "manifest.json").is_file():
            continue
        if formats.is_there(dataset) and (found := difference(folder, use.dataset, dataset)):
            out[use.prepared] = found
    return out


def difference(folder: Path, name: str, dataset: Dataset) -> str:
    """A digest of what is delivered now, or "" where it is what the data in `folder` were made of."""
    try:
        if anew := formats.touched_archives(dataset):
            return f"archives {anew}"
        manifest = Prepared(folder).manifest
        if "delivered" not in manifest["origin"]:  # prepared by an older version, which did not look at content
            return ""
        splits = formats.find_delivered(name, dataset, trusting=True).splits
        items = [item for split in manifest["splits"] for item in splits.get(split, [])]
        notes = Notes(folder)
        digest = notes.digest(items)
        if digest != manifest["origin"]["delivered"]:
            return digest
        if notes.changed:  # touched, but equal
            with contextlib.suppress(UserError):  # a read-only checkout: looked at again the next time
                notes.save(items)
    except UserError as error:  # the step itself says what is wrong
        return hashlib.sha256(str(error).encode()).hexdigest()
    return ""
