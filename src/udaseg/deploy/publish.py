"""A finished run as one folder or archive, for a hub of models or an archive that gives a DOI."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from udaseg.artifacts import IN_THE_WAY, MODEL, RECORD, checked_hash, file_hash, read_record, write_text, writing
from udaseg.deploy import card
from udaseg.errors import UserError

TAKEN = (MODEL, RECORD, "metrics.json", "iou.json", "confusion.csv", "history.csv", "analysis.json")
NEEDED = (MODEL, RECORD, "metrics.json")
PINS = Path("requirements.lock")
SUMS = "SHA256SUMS"
EPOCH = (1980, 1, 1, 0, 0, 0)  # in archives, so that equal files give equal archives


def publish(run: Path, out: Path) -> str:
    """Pack model, card, parameters, scores and environment of a run.

    Args:
        run: its folder.
        out: a folder that is not there yet or empty, or an archive (.zip).

    Returns:
        What was written.

    Raises:
        UserError: not a finished, scored run; a model that is not what run.json says; something in the way.
    """
    for name in NEEDED:
        if not (run / name).is_file():
            raise UserError(f"{run / name}: not found; expected the folder of a run that is trained and scored")
    made = read_record(run / RECORD)
    if made.get("model_hash", found := checked_hash(run / MODEL)) != found:
        raise UserError(f"{run / MODEL}: found sha256 {found}, expected {made['model_hash']} as {RECORD} says")
    archive = out.suffix == ".zip"
    if (out.is_dir() and (archive or any(out.iterdir()))) or (out.is_file() and not archive):
        raise UserError(f"--out: found {out}, expected a new folder or a .zip archive; {IN_THE_WAY}")
    with tempfile.TemporaryDirectory(prefix="udaseg-publish-", dir=None) as scratch:
        folder = Path(scratch)
        for name in TAKEN:
            if (run / name).is_file():
                shutil.copyfile(run / name, folder / name)
        write_text(folder / card.CARD, card.card(run, scored=True))
        write_text(folder / "parameters.json", card.parameters(made))
        versions = made.get("versions", {})
        write_text(folder / "environment.txt", "".join(f"{name}=={version}\n" for name, version in versions.items()))
        if PINS.is_file():
            shutil.copyfile(PINS, folder / PINS.name)
        names = sorted(path.name for path in folder.iterdir())
        write_text(folder / SUMS, "".join(f"{file_hash(folder / name)}  {name}\n" for name in names))
        if archive:
            zipped(folder, out)
        else:
            for name in [*names, SUMS]:
                with writing(out / name) as temporary:
                    shutil.copyfile(folder / name, temporary)
    return f"{out}: {', '.join([*names, SUMS])}"


def zipped(folder: Path, out: Path) -> None:
    with writing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            about = zipfile.ZipInfo(f"{out.stem}/{path.name}", EPOCH)
            about.compress_type, about.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with path.open("rb") as source, archive.open(about, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)
