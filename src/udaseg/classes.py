"""The only place with class names, ids, colours and class groups.

A label file holds Cityscapes trainIds (0..18, 255 = void), or indices into a data set's own class list. A benchmark trains
and scores in a `ClassSpace`; `lut` maps what a file holds into it. Sources: docs/data.md (Cityscapes label table, SYNTHIA and
CamVid tables).
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from udaseg.errors import UserError

IGNORE = 255
OTHER = "other classes"  # in evaluation: those of the labels that the benchmark lacks

# name, Cityscapes id, colour; in trainId order
CITYSCAPES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
NAMES = tuple(name for name, _, _ in CITYSCAPES)
# classes that SYNTHIA lacks (16-class score), and lacks or labels poorly (13-class score)
NOT_IN_16 = ("terrain", "truck", "train")
NOT_IN_13 = (*NOT_IN_16, "wall", "fence", "pole")
# "things" of the feature distance (DAFormer sec. 3.4)
THINGS = ("traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")

# CamVid's 11 classes in the SegNet order, each with the Cityscapes classes that it holds (grouping of this project, docs/data.md)
CAMVID = (
    ("sky", (128, 128, 128), ("sky",)),
    ("building", (128, 0, 0), ("building", "wall")),
    ("pole", (192, 192, 128), ("pole",)),
    ("road", (128, 64, 128), ("road",)),
    ("pavement", (60, 40, 222), ("sidewalk",)),
    ("tree", (128, 128, 0), ("vegetation", "terrain")),
    ("sign", (192, 128, 128), ("traffic light", "traffic sign")),
    ("fence", (64, 64, 128), ("fence",)),
    ("car", (64, 0, 128), ("car", "truck", "bus", "train")),
    ("pedestrian", (64, 64, 0), ("person",)),
    ("bicyclist", (0, 128, 192), ("rider", "motorcycle", "bicycle")),
)


@dataclass(frozen=True)
class ClassSpace:
    """An ordered list of classes that a benchmark trains and scores in."""

    name: str
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    members: tuple[tuple[str, ...], ...]  # names in label files that belong to each class
    things: tuple[int, ...]  # indices of classes with instances
    subsets: dict[str, tuple[int, ...]]  # metric key -> indices, e.g. miou13

    def __len__(self) -> int:
        return len(self.names)

    def lut(self, file_classes: tuple[str, ...] = NAMES, other: int = IGNORE) -> np.ndarray:
        """(256,) uint8 table from a label file's value to this space; void is 255, and classes that the space lacks are `other`.

        Raises:
            UserError: no class of the file exists here (two unrelated class lists).
        """
        table = np.full(256, IGNORE, np.uint8)
        # own names too: a folder of images may use the classes of this space
        where = {name: k for k, name in enumerate(self.names)}
        where |= {member: k for k, group in enumerate(self.members) for member in group}
        for value, name in enumerate(file_classes):
            table[value] = where.get(name, other)
        if not any(name in where for name in file_classes):
            raise UserError(
                f"label files hold the classes {', '.join(file_classes)}; the benchmark trains {', '.join(self.names)}: "
                f"not one in common; name the same classes in `datasets` and `benchmarks`"
            )
        return table

    def palette(self) -> np.ndarray:
        """(256, 3) uint8 colours; 255 (void) is black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.colours
        return table


def _cityscapes(count: int) -> ClassSpace:
    absent = {19: (), 16: NOT_IN_16, 13: NOT_IN_13}[count]
    rows = [row for row in CITYSCAPES if row[0] not in absent]
    names = tuple(row[0] for row in rows)
    subsets = {
        f"miou{n}": tuple(i for i, name in enumerate(names) if name not in out)
        for n, out in ((19, ()), (16, NOT_IN_16), (13, NOT_IN_13))
        if n <= count
    }
    return ClassSpace(
        f"cityscapes{count}",
        names,
        tuple(row[2] for row in rows),
        tuple((name,) for name in names),
        tuple(i for i, name in enumerate(names) if name in THINGS),
        subsets,
    )


def class_space(classes: str | tuple[str, ...], where: str = "benchmark") -> ClassSpace:
    """The class space that a benchmark's `classes` means: a name of ours, or a list of names of one's own."""
    if isinstance(classes, tuple):
        if not 1 < len(classes) < IGNORE or len(set(classes)) != len(classes):
            raise UserError(f"params.yaml: {where}.classes: found {list(classes)}, expected 2 to 254 different names")
        hues = [colorsys.hsv_to_rgb((k * 0.618) % 1, 0.65, 0.9 - 0.3 * (k % 2)) for k in range(len(classes))]
        colours = tuple((int(r * 255), int(g * 255), int(b * 255)) for r, g, b in hues)
        things = tuple(i for i, name in enumerate(classes) if name in THINGS)
        return ClassSpace("own", classes, colours, tuple((n,) for n in classes), things, {})
    if classes == "camvid11":
        return ClassSpace(
            "camvid11",
            tuple(row[0] for row in CAMVID),
            tuple(row[1] for row in CAMVID),
            tuple(row[2] for row in CAMVID),
            (6, 8, 9, 10),
            {"miou11": tuple(range(11))},
        )
    if classes in ("cityscapes19", "cityscapes16", "cityscapes13"):
        return _cityscapes(int(classes[-2:]))
    raise UserError(
        f"params.yaml: {where}.classes: found {classes!r}, expected cityscapes19, cityscapes16, cityscapes13, camvid11 or a list of names"
    )
