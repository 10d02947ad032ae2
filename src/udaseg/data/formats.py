"""How each data set lies on disk: finds its samples, counts them and says what their label values mean.

`find` is the way in. Layouts, counts and encodings are those of docs/data.md. Nothing here opens an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udaseg.classes import CITYSCAPES, IGNORE, NAMES
from udaseg.data import archives, camvid, folder, walk
from udaseg.data.delivered import stat_of
from udaseg.data.found import Encoding, Found, Item, Scene
from udaseg.data.walk import Listing
from udaseg.errors import UserError
from udaseg.params import LICENSED, Dataset

# samples of a complete copy; a split that is absent altogether is simply not offered
EXPECTED: dict[str, dict[str, int]] = {
    "gta5": {"train": 24966},
    "synthia": {"train": 9400},
    "cityscapes": {"train": 2975, "val": 500, "test": 1525},
    "dark_zurich": {"train": 2416, "val": 50, "test": 151},
    "acdc": {"train": 1600, "val": 406, "test": 2000}
    | {f"{condition}_train": 400 for condition in ("fog", "night", "rain", "snow")}
    | {"fog_val": 100, "night_val": 106, "rain_val": 100, "snow_val": 100},
    "nighttime_driving": {"test": 50},
    "bdd100k_night": {"test": 87},
}
CITIES = {
    "train": dict(
        aachen=174, bochum=96, bremen=316, cologne=154, darmstadt=85, dusseldorf=221, erfurt=109, hamburg=248, hanover=196,
        jena=119, krefeld=99, monchengladbach=94, strasbourg=365, stuttgart=196, tubingen=144, ulm=95, weimar=142, zurich=122,
    ),
    "val": dict(frankfurt=267, lindau=59, munster=174),
    "test": dict(berlin=544, bielefeld=181, bonn=46, leverkusen=58, mainz=298, munich=398),
}  # fmt: skip

# the 23 ids of SYNTHIA in order; None: void, parking slot, road work and lane marking, which have no trainId
SYNTHIA = (
    None, "sky", "building", "road", "sidewalk", "fence", "vegetation", "pole", "car", "traffic sign", "person", "bicycle",
    "motorcycle", None, None, "traffic light", "terrain", "rider", "truck", "bus", "train", "wall", None,
)  # fmt: skip

_TRAIN_ID = {cityscapes_id: k for k, (_, cityscapes_id, _) in enumerate(CITYSCAPES)}
_TRAIN_IDS = Encoding({k: k for k in (*range(len(NAMES)), IGNORE)})
ENCODINGS: dict[str, Encoding] = {
    "streets": _TRAIN_IDS,
    "gta5": Encoding({k: _TRAIN_ID.get(k, IGNORE) for k in range(35)}),  # 34: license plate
    "synthia": Encoding({k: IGNORE if c is None else NAMES.index(c) for k, c in enumerate(SYNTHIA)}, sixteen_bit=True),
    "cityscapes": Encoding({k: _TRAIN_ID.get(k, IGNORE) for k in range(34)}),
    "dark_zurich": _TRAIN_IDS,
    "acdc": _TRAIN_IDS,
    "nighttime_driving": _TRAIN_IDS,
    "bdd100k_night": _TRAIN_IDS,
}


def is_there(dataset: Dataset) -> bool:
    """Whether delivered files lie on this machine; prepared data stay as they are where these are gone."""
    try:
        root = dataset.folder
    except UserError:  # a variable that is not set: whoever needs the files says so
        return False
    if dataset.format == "camvid":
        return camvid.is_there(root)
    return dataset.format == "streets" or (bool(dataset.root) and root.is_dir() and any(root.iterdir()))


def find_delivered(name: str, dataset: Dataset, *, trusting: bool = False) -> Found:
    """The samples of a data set, without those that it excludes.

    Args:
        trusting: only list; do not unpack, and do not compare a mirror with its checksums.

    Raises:
        UserError: a folder, file or label is missing, or a count is wrong.
    """
    where = f"datasets.{name}"
    if dataset.format == "streets":
        return streets(where, dataset)
    if not dataset.root:
        raise UserError(f"params.yaml: {where}.root is missing; name the folder that holds the data set")
    root = dataset.folder
    if dataset.format == "camvid":
        found = camvid.find_camvid(root, trusting=trusting)
    elif dataset.format == "folder":
        found = folder.find_in_folder(where, dataset, root)
    else:
        found = Found(licensed(dataset.format, root, trusting=trusting), ENCODINGS[dataset.format])
    excluded = set(map(walk.nfc, dataset.exclude))
    there = {item.name for items in found.splits.values() for item in items} | found.excluded
    kept = {
        split: sorted((i for i in items if i.name not in excluded), key=lambda i: i.name)
        for split, items in found.splits.items()
    }
    for split, items in kept.items():
        twice = [item_name for item_name, n in Counter(i.name for i in items).items() if n > 1]
        if twice:
            paths = [str(i.image) for i in items if i.name == twice[0]]
            raise UserError(
                f"{name}: {len(twice)} names occur twice in split {split}, as {paths[0]} and {paths[1]}; rename one of each"
            )
    return replace(
        found,
        splits={split: items for split, items in kept.items() if items},
        totals={} if dataset.exclude else found.totals,
        notes=[*found.notes, *unmatched(where, excluded - there)],
    )


def unmatched(where: str, names: set[str]) -> list[str]:
    """What to say of entries of `exclude` that name nothing."""
    if not names:
        return []
    return [f"{where}.exclude names no image: {', '.join(sorted(names))}; names are without folder and ending"]


def streets(where: str, dataset: Dataset) -> Found:
    """Scenes to render. Splits start far apart, so they never share a scene and their counts do not touch each other."""
    starts = {"train": 0, "val": 10**6, "test": 2 * 10**6}
    if dataset.look is None or not dataset.count or set(dataset.count) - set(starts):
        raise UserError(
            f"params.yaml: {where}: streets needs look (game or photo) and count (scenes in train, val, test), "
            f"as in look: game, count: {{train: 600}}"
        )
    splits = {
        split: [
            Item(split, f"{k:06d}", scene=Scene(starts[split] + k, dataset.seed or 0, dataset.look)) for k in range(n)
        ]
        for split, n in dataset.count.items()
    }
    return Found(splits, ENCODINGS["streets"], origin={"kind": "rendered"})


# --- licensed data sets ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delivery:
    """What a user fetches: the page, the files to place (with their layout), the names of the archives."""

    page: str
    layout: str
    archives: tuple[str, ...]


DELIVERIES = {
    "gta5": Delivery(
        "https://download.visinf.tu-darmstadt.de/data/from_games/",
        "01_images.zip to 10_images.zip and 01_labels.zip to 10_labels.zip, or images/00001.png and labels/00001.png to 24966",
        ("[0-9][0-9]_images", "[0-9][0-9]_labels"),
    ),
    "synthia": Delivery(
        "https://synthia-dataset.net/downloads/",
        "RAND_CITYSCAPES/RGB/0000000.png and RAND_CITYSCAPES/GT/LABELS/0000000.png to 0009399 (SYNTHIA-RAND-CITYSCAPES)",
        ("SYNTHIA_RAND_CITYSCAPES*", "RAND_CITYSCAPES*"),
    ),
    "cityscapes": Delivery(
        "https://www.cityscapes-dataset.com/downloads/",
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or the folders leftImg8bit/ and gtFine/",
        ("leftImg8bit_trainvaltest*", "gtFine_trainvaltest*"),
    ),
    "dark_zurich": Delivery(
        "https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/",
        "Dark_Zurich_train_anon.zip, Dark_Zurich_val_anon.zip and (optional) Dark_Zurich_test_anon_withoutGt.zip, or rgb_anon/, gt/ and corresp/",
        ("Dark_Zurich_*",),
    ),
    "acdc": Delivery(
        "https://acdc.vision.ee.ethz.ch/download",
        "rgb_anon_trainvaltest.zip and gt_trainval.zip, or the folders rgb_anon/ and gt/",
        ("rgb_anon_trainvaltest*", "gt_trainval*"),
    ),
    "nighttime_driving": Delivery(
        "https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/",
        "NighttimeDrivingTest.zip, or leftImg8bit/test/night/ and gtCoarse_daytime_trainvaltest/test/night/",
        ("NighttimeDrivingTest*",),
    ),
    "bdd100k_night": Delivery(
        "https://github.com/sakaridis/MGCDA (the list) and https://bdd-data.berkeley.edu (the images)",
        "images_trainval_night_correct_filenames.txt, and seg/images/, seg/labels/ (bdd100k_seg.zip) or images/10k/, labels/sem_seg/masks/",
        ("bdd100k_*",),
    ),
}  # fmt: skip
assert set(DELIVERIES) == set(LICENSED)


BDD_LIST = "_trainval_night_correct_filenames.txt"


def licensed(kind: str, root: Path, *, trusting: bool = False) -> dict[str, list[Item]]:
    """The samples of a data set that the user has placed at `root`, unpacking its archives where needed.

    Raises:
        UserError: what is missing, where to get it and how to place it; or a wrong count.
    """
    expected, delivery = EXPECTED[kind], DELIVERIES[kind]
    if not root.is_dir():
        raise UserError(absent(kind, root, "no folder"))
    splits = scan(kind, root)
    packed = [] if trusting else archives.find_archives(root, delivery.archives)
    incomplete = any(len(splits.get(split, ())) != n for split, n in expected.items())
    # what was unpacked here once is compared with its archive again; files that the user unpacked are taken as they are
    if sum(archives.unpack(a, root, again=incomplete) for a in packed if incomplete or archives.is_known(a)):
        splits = scan(kind, root)
    splits = {split: items for split, items in splits.items() if items}
    if not splits:
        rar = next(iter(sorted(root.glob("*.rar"))), None)
        raise UserError(f"{root}: unpack it first: 7z x {rar} -o{root}" if rar else absent(kind, root, "nothing of it"))
    for split, items in splits.items():
        if split in expected and len(items) != expected[split]:
            raise UserError(
                f"{kind}: found {len(items)} images for {split} in {root}, expected {expected[split]}; "
                f"{_what_is_missing(kind, split, items)}; complete the copy ({delivery.page})"
            )
        lost = [item.name for item in items if item.label and not item.label.is_file()]
        if lost:
            first = next(item.label for item in items if item.name == lost[0])
            raise UserError(
                f"{kind}: {len(lost)} of {len(items)} images of {split} have no label, first {lost[0]}: expected {first}; "
                f"place the labels too ({delivery.layout})"
            )
    return splits


def touched_archives(dataset: Dataset) -> list[list[int]]:
    """Listings of archives that were unpacked here, and changed since."""
    if dataset.format not in LICENSED:
        return []
    packed = archives.find_archives(dataset.folder, DELIVERIES[dataset.format].archives)
    return [stat_of(archive) for archive in packed if archives.is_known(archive) and archives.is_touched(archive)]


def scan(kind: str, root: Path) -> dict[str, list[Item]]:
    """The samples of a licensed data set that lie at `root` now; nothing is unpacked."""
    return SCAN[kind](walk.listing(root))


def absent(kind: str, root: Path, found: str, split: str | None = None) -> str:
    """One message that says everything about getting a data set."""
    expected = {split: EXPECTED[kind][split]} if split in EXPECTED[kind] else EXPECTED[kind]
    counts = ", ".join(f"{n} {s}" for s, n in expected.items() if s is split or "_" not in s)
    delivery = DELIVERIES[kind]
    return (
        f"{kind}: found {found} at {root}; expected {counts} images; get them from {delivery.page}, accept the terms, "
        f"and place at {root}: {delivery.layout} (docs/data.md)"
    )


def _what_is_missing(kind: str, split: str, items: Sequence[Item]) -> str:
    names = {item.name for item in items}
    if kind == "cityscapes":
        found = Counter(name.split("_")[0] for name in names)
        wrong = [f"{city} {found[city]} of {n}" for city, n in CITIES[split].items() if found[city] != n]
        return "incomplete: " + ", ".join(wrong or ["unknown cities"])
    if kind not in ("gta5", "synthia"):
        return "some files are missing or foreign"
    first, digits = (1, 5) if kind == "gta5" else (0, 7)
    complete = [f"{number:0{digits}d}" for number in range(first, first + EXPECTED[kind][split])]
    missing = [name for name in complete if name not in names]
    text = f"missing {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}" if missing else "some are foreign"
    if kind == "gta5" and len(items) == 24941:
        text += " (a known reduced copy of 24941 frames)"
    return text


def homes(lying: Listing, *markers: str) -> list[str]:
    """The folders `marker` in root, in its sub-folders, or one level deeper; the first level that has any wins."""
    for depth in range(3):
        found = {
            "/".join(parts[:depth]) + f"{'/' if depth else ''}{marker}"
            for name in lying.files
            if len(parts := name.split("/")) > depth + 1
            for marker in markers
            if "/".join(parts[depth:]).startswith(f"{marker}/")
        }
        if found:
            return sorted(found)
    return []


def files(lying: Listing, folders: Sequence[str], pattern: str) -> list[Path]:
    return lying.match(*(f"{folder}/{pattern}" for folder in folders)) if folders else []


def _label(lying: Listing, folders: Sequence[str], relative: str, tails: Sequence[str]) -> Path:
    """The first existing label among the folders and name endings; the first candidate where there is none."""
    candidates = [f"{folder}/{relative}{tail}" for folder in folders for tail in tails]
    found = next((lying.files[name] for name in candidates if name in lying.files), None)
    return found or lying.root / candidates[0]


def _beside(path: Path, other: str) -> Path:
    """The file of the same name in the folder `other` beside that of `path`."""
    return path.parent.parent / other / path.name


def _gta5(lying: Listing) -> dict[str, list[Item]]:
    images = [path for path in files(lying, homes(lying, "images"), "*.png") if path.stem.isdigit()]
    return {"train": [Item("train", p.stem, p, _beside(p, "labels")) for p in images]}


def _synthia(lying: Listing) -> dict[str, list[Item]]:
    images = [path for path in files(lying, homes(lying, "RGB"), "*.png") if path.stem.isdigit()]
    return {"train": [Item("train", p.stem, p, _beside(p, "GT/LABELS")) for p in images]}


def _cityscapes(lying: Listing) -> dict[str, list[Item]]:
    images, labels = homes(lying, "leftImg8bit"), (homes(lying, "gtFine") or ["gtFine"])
    out: dict[str, list[Item]] = {}
    for split in EXPECTED["cityscapes"]:
        for path in files(lying, images, f"{split}/*/*_leftImg8bit.png"):
            stem = path.name.removesuffix("_leftImg8bit.png")
            label = _label(lying, labels, f"{split}/{path.parent.name}/{stem}", ["_gtFine_labelIds.png"])
            out.setdefault(split, []).append(Item(split, stem, path, None if split == "test" else label))
    return out


def _dark_zurich(lying: Listing) -> dict[str, list[Item]]:
    """Night images; `reference` is the day image of the same place, from corresp/ (train) or *_ref (val, test)."""
    images, labels, day = homes(lying, "rgb_anon"), (homes(lying, "gt") or ["gt"]), {}
    for table in files(lying, homes(lying, "corresp"), "train/night/**/*_ref_day.csv"):
        for line in table.read_text(encoding="utf-8", errors="replace").split():
            night, _, light = line.partition(",")
            day[Path(night).name.removesuffix("_rgb_anon.png")] = light.split(",")[0].removesuffix("_rgb_anon.png")
    out: dict[str, list[Item]] = {}
    for split in EXPECTED["dark_zurich"]:
        for path in files(lying, images, f"{split}/night/*/*_rgb_anon.png"):
            stem, sequence = path.name.removesuffix("_rgb_anon.png"), path.parent.name
            relative = day.get(stem) if split == "train" else f"{split}_ref/day/{sequence}_ref/{stem}_ref"
            candidates = [f"{folder}/{relative}_rgb_anon.png" for folder in images] if relative else []
            reference = next((lying.files[name] for name in candidates if name in lying.files), None)
            label = (
                _label(lying, labels, f"val/night/{sequence}/{stem}", ["_gt_labelTrainIds.png"])
                if split == "val"
                else None
            )
            out.setdefault(split, []).append(Item(split, stem, path, label, reference))
    return out


def _acdc(lying: Listing) -> dict[str, list[Item]]:
    images, labels = homes(lying, "rgb_anon"), (homes(lying, "gt") or ["gt"])
    out: dict[str, list[Item]] = {}
    for condition in ("fog", "night", "rain", "snow"):
        for split in ("train", "val", "test"):
            for path in files(lying, images, f"{condition}/{split}/*/*_rgb_anon.png"):
                stem = path.name.removesuffix("_rgb_anon.png")
                relative = f"{condition}/{split}/{path.parent.name}/{stem}"
                label = None if split == "test" else _label(lying, labels, relative, ["_gt_labelTrainIds.png"])
                for name in (split, f"{condition}_{split}"):
                    out.setdefault(name, []).append(Item(name, stem, path, label))
    return out


def _nighttime_driving(lying: Listing) -> dict[str, list[Item]]:
    labels = homes(lying, "gtCoarse_daytime_trainvaltest") or ["gtCoarse_daytime_trainvaltest"]
    out = []
    for path in files(lying, homes(lying, "leftImg8bit"), "test/night/*_leftImg8bit.png"):
        stem = path.name.removesuffix("_leftImg8bit.png")
        out.append(
            Item("test", stem, path, _label(lying, labels, f"test/night/{stem}", ["_gtCoarse_labelTrainIds.png"]))
        )
    return {"test": out}


def _bdd100k_night(lying: Listing) -> dict[str, list[Item]]:
    """The images that the MGCDA authors chose; their list says `seg/images/<train|val>/<name>.jpg`."""
    lists = [path for name, path in lying.files.items() if "/" not in name and name.endswith(BDD_LIST)]
    images = homes(lying, "seg/images", "images/10k")
    labels = homes(lying, "seg/labels", "labels/sem_seg/masks") or ["seg/labels"]
    if not images:
        return {"test": []}
    if not lists:
        raise UserError(
            f"{lying.root}: found images but not the list of the 87 night images; place images{BDD_LIST} "
            f"from https://github.com/sakaridis/MGCDA (data/bdd100k_lists_file_names) there"
        )
    out = []
    for line in lists[0].read_text(encoding="utf-8", errors="replace").split():
        split, name = Path(line).parent.name, Path(line).stem.removesuffix("_train_id")
        candidates = [f"{folder}/{split}/{name}.jpg" for folder in images]
        found = next((lying.files[candidate] for candidate in candidates if candidate in lying.files), None)
        if found:
            label = _label(lying, labels, f"{split}/{name}", ["_train_id.png", ".png"])
            out.append(Item("test", name, found, label))
    return {"test": out}


SCAN: dict[str, Callable[[Listing], dict[str, list[Item]]]] = {
    "gta5": _gta5,
    "synthia": _synthia,
    "cityscapes": _cityscapes,
    "dark_zurich": _dark_zurich,
    "acdc": _acdc,
    "nighttime_driving": _nighttime_driving,
    "bdd100k_night": _bdd100k_night,
}
