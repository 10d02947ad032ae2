"""Any folder of images as a data set: labels optional, a class table of a few lines in params.yaml."""

from __future__ import annotations

import re
from pathlib import Path

from udaseg.checking import nearest
from udaseg.classes import IGNORE, class_space
from udaseg.data import walk
from udaseg.data.found import Encoding, Found, Item
from udaseg.data.walk import IMAGES, nfc
from udaseg.errors import UserError
from udaseg.params import Dataset

VOID = "void"  # a name in `ids` for values that no class owns


def find_in_folder(where: str, dataset: Dataset, root: Path) -> Found:
    """Images below `root`, and their labels by name.

    `images` and `labels` are paths below root. `{split}` stands for the split, `*` for anything within one folder name; what
    the last `*` of the file name matches is the sample's name (without `*`: the file name without its ending). A pattern
    without ending means all images below that folder. A split without a single label is unlabelled.

    Raises:
        UserError: nothing found, an image without label among labelled ones, two images of one name, a class that is not
            in `classes`.
    """
    if not root.is_dir():
        raise UserError(f"{where}: no folder {root}; name the folder with the images in params.yaml ({where}.root)")
    if dataset.labels and not dataset.images:
        raise UserError(f"params.yaml: {where}: `labels` needs `images` too, as in images: images/{{split}}")
    lying = walk.listing(root)
    pictures = lying.images()
    names = list(pictures)
    images = _match(nfc(dataset.images or ""), names, where)
    if not images:
        raise UserError(
            f"{where}: found no image {f'that fits {dataset.images!r} ' if dataset.images else ''}below {root}"
            f"{f' ({lying.left_out(())})' if lying.left_out(()) else ''}; expected files ending in {', '.join(IMAGES)}"
        )
    labels = _match(nfc(dataset.labels), names, where) if dataset.labels else {}
    per_split = "{split}" in (dataset.labels or "")
    if per_split and "{split}" not in (dataset.images or ""):
        raise UserError(f"params.yaml: {where}: `labels` names {{split}}, so `images` must name it too")
    splits: dict[str, list[Item]] = {}
    excluded = set(map(nfc, dataset.exclude))
    for (split, name), image in images.items():
        if name not in excluded:
            label = labels.get((split if per_split else "train", name))
            splits.setdefault(split, []).append(Item(split, name, pictures[image], pictures[label] if label else None))
    if dataset.labels and not any(item.label for items in splits.values() for item in items):
        raise UserError(
            f"{where}: found no label that fits {dataset.labels!r} below {root}; expected one named like its image, "
            f"as {next(iter(images))[1]}; leave `labels` out for images without labels"
        )
    for split, items in splits.items():
        bare = [item.image for item in items if not item.label]
        if 0 < len(bare) < len(items):
            raise UserError(
                f"{where}: {len(bare)} of {len(items)} images of {split} have no label, first {bare[0]}; add it where "
                f"{dataset.labels!r} points, or exclude the image"
            )
    classes = class_space(dataset.classes, where).names
    used = {path for items in splits.values() for item in items for path in item.files}
    left = {key: pictures[image] for key, image in images.items() if key[1] in excluded}
    alone = [path for key, label in labels.items() if (path := pictures[label]) not in used and key not in left]
    notes = [f"{len(alone)} labels belong to no image, first {alone[0]}"] if alone else []
    theirs = [pictures[label] for key, label in labels.items() if key in left]
    if others := lying.left_out({*used, *left.values(), *alone, *theirs}):
        notes.append(f"left out below {root}: {others}")
    return Found(
        splits, encoding(where, dataset.ids, classes), classes, excluded={name for _, name in left}, notes=notes
    )


def encoding(where: str, ids: dict[int, str], classes: tuple[str, ...]) -> Encoding:
    """Label value -> index in `classes`: through `ids`, or directly where it is empty. 255 is always void."""
    table = {IGNORE: IGNORE} | ({} if ids else {k: k for k in range(len(classes))})
    for value, name in ids.items():
        if name != VOID and name not in classes:
            raise UserError(
                f"params.yaml: {where}.ids: {value} names the unknown class {name!r}{nearest(name, classes)}"
            )
        if not 0 <= value <= IGNORE:
            raise UserError(f"params.yaml: {where}.ids: found the value {value}, expected 0 to 255")
        table[value] = IGNORE if name == VOID else classes.index(name)
    return Encoding(table)


def _match(pattern: str, names: list[str], where: str) -> dict[tuple[str, str], str]:
    """(split, sample name) -> path, of the paths that fit the pattern."""
    last_part = pattern.rpartition("/")[2]
    if "*" not in last_part and not last_part.lower().endswith(IMAGES):
        pattern = f"{pattern.rstrip('/')}/**" if pattern else "**"
    if ".." in Path(pattern).parts or Path(pattern).is_absolute():
        raise UserError(f"params.yaml: {where}: found the pattern {pattern!r}, expected a path below root")
    regex = ""
    last = pattern.rfind("*") if not pattern.endswith("**") else -1
    position = 0
    for token in re.finditer(r"\{split\}|\*\*/?|\*|[^{*]+|\{", pattern):
        text, position = token.group(), token.start()
        if text == "{split}":
            regex += "(?P<split>[^/]+)" if "(?P<split>" not in regex else "(?P=split)"
        elif text.startswith("**"):
            regex += "(?:.*/)?" if text == "**/" else ".*"
        elif text == "*":
            regex += "(?P<name>[^/]*)" if position == last and "/" not in pattern[last:] else "[^/]*"
        else:
            regex += re.escape(text)
    out: dict[tuple[str, str], str] = {}
    for path in names:
        match = re.fullmatch(regex, path)
        if not match:
            continue
        groups = match.groupdict()
        key = (groups.get("split") or "train", groups.get("name") or Path(path).stem)
        if key in out:
            raise UserError(
                f"{where}: {out[key]} and {path} would both be sample {key[1]!r} of split {key[0]}; rename one of them"
            )
        out[key] = path
    return out
