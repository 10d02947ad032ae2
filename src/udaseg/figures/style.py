"""What all figures share: size, colours, notes, and files with equal bytes for equal figures.

Classes have the colours of their benchmark (Cityscapes palette, its dark blues told apart: udaseg.colours). Methods have those of Okabe and Ito, which colour-blind people
tell apart, the methods of reference are grey: the table of papers has them (udaseg.recipes). A variant (`sepico-off`) has its method's hue, lighter or darker. Pale areas have a
dark edge; lines are darkened until white paper shows them and have a dash pattern as second mark.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from udaseg.artifacts import writing
from udaseg.classes import ClassSpace
from udaseg.colours import shown
from udaseg.recipes import papers

SINGLE, DOUBLE = 3.4, 7.0  # inches: one and two columns of a page
GREY = "0.35"
# of papers that name no colour of their own, in the order of their names
FREE = ("#56b4e9", "#f0e442", "#8c564b", "#17becf", "#7f5fc7", "#bcbd22")
# how far the variants of a method go towards white (1) or black (0)
SHADES = (
    (0.5, 1),
    (0.45, 0),
    (0.75, 1),
    (0.7, 0),
    (0.25, 1),
    (0.2, 0),
    (0.87, 1),
    (0.85, 0),
    (0.62, 1),
    (0.57, 0),
    (0.12, 1),
    (0.1, 0),
)
# lines of the methods above, on and off in line widths; a variant takes the pattern of a method further down
DASHES = ((1, 1), (3, 1), (6, 1, 1, 1), (9, 1.5), (6, 1, 1, 1, 1, 1), (), (2, 0.7), (6, 1, 3, 1), (12, 2))
CONTRAST = 3.0  # of a line with white, at least (WCAG 2.2, 1.4.11)
EDGE = "0.25"  # around bars and dots, which may be pale

Colour = tuple[float, float, float]


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of this package, whatever the user's matplotlibrc says."""
    sheet = resources.files("udaseg.figures") / "udaseg.mplstyle"
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # tells of every letter in a PDF otherwise
    with resources.as_file(sheet) as path, matplotlib.style.context(path, after_reset=True):
        yield


def save(figure: Figure, path: Path) -> None:
    """Writes `path` with .pdf and .png, both without date and program."""
    for end, metadata in (
        ("pdf", {"CreationDate": None, "Creator": None, "Producer": None}),
        ("png", {"Software": None}),
    ):
        with writing(path.with_suffix(f".{end}")) as temporary:
            figure.savefig(temporary, format=end, metadata=metadata)


def families(methods: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Name -> paper that it is a variant of, and its number among the variants given; 0 for the paper's own."""
    out: dict[str, tuple[str, int]] = {}
    variants: Counter[str] = Counter()
    for name in methods:
        family = name.partition("-")[0]
        variants[family] += name != family
        out[name] = family, variants[family] if name != family else 0
    return out


@functools.cache
def palette() -> dict[str, str]:
    """A colour for each paper, the same whatever is drawn."""
    free = itertools.cycle(FREE)
    return {name: paper.colour or next(free) for name, paper in papers().items()}


def colours(methods: Sequence[str]) -> dict[str, Colour]:
    """A colour for each method, the same in all figures of a benchmark."""
    out = {}
    for name, (family, variant) in families(methods).items():
        share, end = SHADES[(variant - 1) % len(SHADES)] if variant else (0, 0)
        red, green, blue = ((1 - share) * part + share * end for part in to_rgb(palette()[family]))
        out[name] = red, green, blue
    return out


def lines(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `plot` takes for the line of each method: its colour, dark enough, and a dash pattern."""
    out = {}
    for name, (family, variant) in families(methods).items():
        dashes = DASHES[(list(palette()).index(family) + variant) % len(DASHES)]
        out[name] = {"color": dark(colours(methods)[name]), "linestyle": (0, dashes)}
    return out


def dark(colour: Colour) -> Colour:
    """The colour, darkened as far as a thin line on white needs it."""
    red, green, blue = colour
    while contrast((red, green, blue)) < CONTRAST:
        red, green, blue = 0.98 * red, 0.98 * green, 0.98 * blue
    return red, green, blue


def contrast(colour: Colour) -> float:
    """Of a colour with white, 1 to 21 (WCAG 2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def note(figure: Figure, text: str) -> None:
    """Small print below the figure, in lines as long as it is wide."""
    letters = int(figure.get_figwidth() * 17.5)
    figure.supxlabel("\n".join(textwrap.wrap(text, letters)), x=0.008, ha="left", color=GREY, linespacing=1.25)


def signed(value: float, digits: int = 1) -> str:
    """With + or a true minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def statement(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = Figure(figsize=(SINGLE, 0.7))
    figure.text(0.02, 0.5, "\n".join(textwrap.wrap(text, int(SINGLE * 17))), va="center")
    return figure


def method_rows(ax: Axes, methods: Sequence[str]) -> None:
    """Methods down the y axis, the first on top."""
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(len(methods) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def grid(count: int, most: int, ratio: float) -> tuple[Figure, list[Axes], int]:
    """A figure two columns of a page wide with `count` panels in even rows.

    Args:
        count: panels.
        most: of them in a row.
        ratio: height to width of a panel with all that stands around it.

    Returns:
        The figure, its panels row by row, and how many are in a row.
    """
    columns = -(-count // -(-count // most))
    rows = -(-count // columns)
    figure = Figure(figsize=(DOUBLE, rows * ratio * DOUBLE / columns + 0.6))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return figure, list(axes[:count]), columns


def unit(colour: tuple[int, int, int]) -> Colour:
    """0..255 as 0..1."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def hatched(x: float = 0, y: float = 0, width: float = 1, height: float = 1) -> Rectangle:
    """What stands where there is no value."""
    return Rectangle((x, y), width, height, facecolor="0.93", edgecolor="0.7", hatch="////", linewidth=0)


def class_patches(classes: ClassSpace) -> list[Patch]:
    """Handles for a legend of classes."""
    return [
        Patch(facecolor=unit(colour), edgecolor="0.5", linewidth=0.3, label=name)
        for name, colour in zip(classes.names, shown(classes), strict=True)
    ]


def method_patches(methods: Sequence[str]) -> list[Patch]:
    return [
        Patch(facecolor=colour, edgecolor=EDGE, linewidth=0.3, label=name) for name, colour in colours(methods).items()
    ]


def legend_above(figure: Figure, handles: Sequence[Artist], length: float = 1.4) -> None:
    """A legend outside the panels, in one line where it fits; handles are `length` letters long."""
    wide = figure.get_figwidth() * 17.5
    letters = [len(str(handle.get_label())) + 4.6 + length for handle in handles]  # 4.6: gaps
    columns = len(handles) if sum(letters) <= wide else int(wide / max(letters))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=length)
