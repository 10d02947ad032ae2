"""What all figures share: size, colours, notes, and files with equal bytes for equal figures.

Classes have the colours of their benchmark (Cityscapes palette). Methods have those of Okabe and Ito, which colour-blind people
tell apart, the methods of reference are grey. A variant (`sepico-off`) has its method's hue, lighter or darker.
"""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from udaseg.artifacts import writing
from udaseg.data.labels import ClassSpace

SINGLE, DOUBLE = 3.4, 7.0  # inches: one and two columns of a page
GREY = "0.35"
METHODS = {
    "source_only": "#d0d0d0",
    "self_training": "#707070",
    "oracle": "#303030",
    "bcl": "#e69f00",
    "plca": "#009e73",
    "sepico": "#0072b2",
    "pipa": "#d55e00",
    "cluda": "#cc79a7",
}
# how far the variants of a method go towards white (1) or black (0)
SHADES = ((0.5, 1), (0.45, 0), (0.75, 1), (0.7, 0), (0.25, 1), (0.2, 0), (0.87, 1), (0.85, 0))

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


def colours(methods: Sequence[str]) -> dict[str, Colour]:
    """A colour for each method, the same in all figures of a benchmark."""
    out, variants = {}, dict.fromkeys(METHODS, 0)
    for name in methods:
        family = name.partition("-")[0]
        base = to_rgb(METHODS[family])
        if name != family:
            share, end = SHADES[variants[family] % len(SHADES)]
            variants[family] += 1
            base = tuple((1 - share) * part + share * end for part in base)  # type: ignore[assignment]
        out[name] = base
    return out


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


def not_counted(x: float = 0, y: float = 0, width: float = 1, height: float = 1) -> Rectangle:
    """What stands where a class has no score."""
    return Rectangle(
        (x, y), width, height, facecolor="0.93", edgecolor="0.7", hatch="////", linewidth=0, label="not counted"
    )


def class_patches(classes: ClassSpace) -> list[Patch]:
    """Handles for a legend of classes."""
    return [
        Patch(facecolor=unit(colour), edgecolor="0.5", linewidth=0.3, label=name)
        for name, colour in zip(classes.names, classes.colours, strict=True)
    ]


def method_patches(methods: Sequence[str]) -> list[Patch]:
    return [Patch(facecolor=colour, label=name) for name, colour in colours(methods).items()]


def legend_above(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend outside the panels, in one line where it fits."""
    wide = figure.get_figwidth() * 17.5
    letters = [len(str(handle.get_label())) + 6 for handle in handles]  # 6: patch and gaps
    columns = len(handles) if sum(letters) <= wide else int(wide / max(letters))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)
