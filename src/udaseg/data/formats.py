"""How each data set lies on disk: finds its samples, counts them and says what their label values mean.

`find` is the way in. Layouts, counts and encodings are those of docs/data.md. Nothing here opens an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udaseg.classes import CITYSCAPES, IGNORE, NAMES
from udaseg.data import archives, camvid, folder
from udaseg.data.found import Encoding, Found, Item, Scene
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


def find_delivered(name: str, dataset: Dataset) -> Found:
    """The samples of a data set, without those that it excludes.

    Raises:
        UserError: a folder, file or label is missing, or a count is wrong.
    """
    where = f"datasets.{name}"
    if dataset.format == "streets":
        return streets(where, dataset)
    if not dataset.root:
        raise UserError(f"params.yaml: {where}.root is missing; name the folder that holds the data set")
    root = Path(dataset.root)
    if dataset.format == "camvid":
        found = camvid.find_camvid(root)
    elif dataset.format == "folder":
        found = folder.find_in_folder(where, dataset, root)
    else:
        found = Found(licensed(dataset.format, root), ENCODINGS[dataset.format])
    kept = {
        split: sorted((i for i in items if i.name not in dataset.exclude), key=lambda i: i.name)
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
    )


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


def licensed(kind: str, root: Path) -> dict[str, list[Item]]:
    """The samples of a data set that the user has placed at `root`, unpacking its archives where needed.

    Raises:
        UserError: what is missing, where to get it and how to place it; or a wrong count.
    """
    expected, delivery = EXPECTED[kind], DELIVERIES[kind]
    if not root.is_dir():
        raise UserError(absent(kind, root, "no folder"))
    splits = SCAN[kind](root)
    if any(len(splits.get(split, ())) != n for split, n in expected.items()):
        packed = archives.find_archives(root, delivery.archives)
        if sum(archives.unpack(archive, root) for archive in packed):
            splits = SCAN[kind](root)
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


def below(root: Path, *markers: str) -> list[Path]:
    """The folders `marker` in root, in its sub-folders, or one level deeper; the first level that has any wins."""
    level = [root]
    for _ in range(3):
        found = [base / marker for base in level for marker in markers if (base / marker).is_dir()]
        if found:
            return found
        level = sorted(child for base in level for child in base.iterdir() if child.is_dir())
    return []


def files(folders: Sequence[Path], pattern: str) -> list[Path]:
    return sorted(path for base in folders for path in base.glob(pattern))


def _label(folders: Sequence[Path], relative: str, tails: Sequence[str]) -> Path:
    """The first existing label among the folders and name endings; the first candidate where there is none."""
    candidates = [base / (relative + tail) for base in folders for tail in tails]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _gta5(root: Path) -> dict[str, list[Item]]:
    images = [path for path in files(below(root, "images"), "*.png") if path.stem.isdigit()]
    return {"train": [Item("train", p.stem, p, p.parent.parent / "labels" / p.name) for p in images]}


def _synthia(root: Path) -> dict[str, list[Item]]:
    images = [path for path in files(below(root, "RGB"), "*.png") if path.stem.isdigit()]
    return {"train": [Item("train", p.stem, p, p.parent.parent / "GT" / "LABELS" / p.name) for p in images]}


def _cityscapes(root: Path) -> dict[str, list[Item]]:
    images, labels = below(root, "leftImg8bit"), (below(root, "gtFine") or [root / "gtFine"])
    out: dict[str, list[Item]] = {}
    for split in EXPECTED["cityscapes"]:
        for path in files(images, f"{split}/*/*_leftImg8bit.png"):
            stem = path.name.removesuffix("_leftImg8bit.png")
            label = _label(labels, f"{split}/{path.parent.name}/{stem}", ["_gtFine_labelIds.png"])
            out.setdefault(split, []).append(Item(split, stem, path, None if split == "test" else label))
    return out


def _dark_zurich(root: Path) -> dict[str, list[Item]]:
    """Night images; `reference` is the day image of the same place, from corresp/ (train) or *_ref (val, test)."""
    images, labels, day = below(root, "rgb_anon"), (below(root, "gt") or [root / "gt"]), {}
    for table in files(below(root, "corresp"), "train/night/**/*_ref_day.csv"):
        for line in table.read_text().split():
            night, _, light = line.partition(",")
            day[Path(night).name.removesuffix("_rgb_anon.png")] = light.split(",")[0].removesuffix("_rgb_anon.png")
    out: dict[str, list[Item]] = {}
    for split in EXPECTED["dark_zurich"]:
        for path in files(images, f"{split}/night/*/*_rgb_anon.png"):
            stem, sequence = path.name.removesuffix("_rgb_anon.png"), path.parent.name
            relative = day.get(stem) if split == "train" else f"{split}_ref/day/{sequence}_ref/{stem}_ref"
            candidates = [base / f"{relative}_rgb_anon.png" for base in images] if relative else []
            reference = next((candidate for candidate in candidates if candidate.is_file()), None)
            label = (
                _label(labels, f"val/night/{sequence}/{stem}", ["_gt_labelTrainIds.png"]) if split == "val" else None
            )
            out.setdefault(split, []).append(Item(split, stem, path, label, reference))
    return out


def _acdc(root: Path) -> dict[str, list[Item]]:
    images, labels = below(root, "rgb_anon"), (below(root, "gt") or [root / "gt"])
    out: dict[str, list[Item]] = {}
    for condition in ("fog", "night", "rain", "snow"):
        for split in ("train", "val", "test"):
            for path in files(images, f"{condition}/{split}/*/*_rgb_anon.png"):
                stem = path.name.removesuffix("_rgb_anon.png")
                relative = f"{condition}/{split}/{path.parent.name}/{stem}"
                label = None if split == "test" else _label(labels, relative, ["_gt_labelTrainIds.png"])
                for name in (split, f"{condition}_{split}"):
                    out.setdefault(name, []).append(Item(name, stem, path, label))
    return out


def _nighttime_driving(root: Path) -> dict[str, list[Item]]:
    labels = below(root, "gtCoarse_daytime_trainvaltest") or [root / "gtCoarse_daytime_trainvaltest"]
    out = []
    for path in files(below(root, "leftImg8bit"), "test/night/*_leftImg8bit.png"):
        stem = path.name.removesuffix("_leftImg8bit.png")
        out.append(Item("test", stem, path, _label(labels, f"test/night/{stem}", ["_gtCoarse_labelTrainIds.png"])))
    return {"test": out}


def _bdd100k_night(root: Path) -> dict[str, list[Item]]:
    """The images that the MGCDA authors chose; their list says `seg/images/<train|val>/<name>.jpg`."""
    lists = files([root], "*_trainval_night_correct_filenames.txt")
    images, labels = (
        below(root, "seg/images", "images/10k"),
        (below(root, "seg/labels", "labels/sem_seg/masks") or [root / "seg/labels"]),
    )
    if not images:
        return {"test": []}
    if not lists:
        raise UserError(
            f"{root}: found images but not the list of the 87 night images; place images_trainval_night_correct_filenames.txt "
            f"from https://github.com/sakaridis/MGCDA (data/bdd100k_lists_file_names) there"
        )
    out = []
    for line in lists[0].read_text().split():
        split, name = Path(line).parent.name, Path(line).stem.removesuffix("_train_id")
        found = [base / split / f"{name}.jpg" for base in images if (base / split / f"{name}.jpg").is_file()]
        if found:
            out.append(Item("test", name, found[0], _label(labels, f"{split}/{name}", ["_train_id.png", ".png"])))
    return {"test": out}


SCAN: dict[str, Callable[[Path], dict[str, list[Item]]]] = {
    "gta5": _gta5,
    "synthia": _synthia,
    "cityscapes": _cityscapes,
    "dark_zurich": _dark_zurich,
    "acdc": _acdc,
    "nighttime_driving": _nighttime_driving,
    "bdd100k_night": _bdd100k_night,
}
