"""Opening what people deliver: photographs as upright 8-bit RGB, labels with their exact values; everything else is refused by name.

Nothing else in this package opens a delivered image.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from udaseg.classes import IGNORE
from udaseg.data.found import Encoding

# What is opened at all: other formats of Pillow start programs (EPS) or are no pictures of anything.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000", "AVIF")
EXACT = ("PNG", "BMP", "TIFF", "PPM", "GIF")  # keep every value; a label is one of these
LARGEST = 90_000_000  # pixels: beyond, one picture takes gigabytes, and Pillow warns too
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, AttributeError, KeyError, IndexError, OverflowError, MemoryError,
    zlib.error, struct.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap width and height
COMPRESSION, PHOTOMETRIC, SAMPLE_FORMAT = 259, 262, 339  # TIFF tags
SIGNED = 2  # a value of SAMPLE_FORMAT
LOSSY_TIFF = (6, 7, 34892, 33003, 33005, 34712, 50001)  # JPEG (old, new, of DNG), JPEG 2000 (three numbers), WebP


class Unusable(Exception):
    """What is wrong with one file, in a few words; collected, so that one run names all of them."""


def open_image(path: Path) -> Image.Image:
    """A photograph of any common kind as 8-bit RGB, turned upright as its EXIF orientation says.

    Grey images of 16 bits keep the upper 8; transparency is dropped.

    Raises:
        Unusable: no picture, a damaged, animated or huge one, or numbers that are no intensities.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_one(image, path)
            image.load()
            return _eight_bits(_upright(image, path), image.format, path)
    except UnidentifiedImageError:
        raise Unusable(f"{path.name} is no image of a known kind; replace it") from None
    except UNREADABLE as error:
        raise Unusable(f"{path.name} cannot be read ({_line(error)}); replace it") from None


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of a photograph as `open_image` gives it; reads the file's first bytes only.

    Raises:
        Unusable: as far as these bytes tell.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_one(image, path)
            turn = _orientation(image, path, writable=True)
            return image.size[::-1] if turn in TURNED else image.size
    except UnidentifiedImageError:
        raise Unusable(f"{path.name} is no image of a known kind; replace it") from None
    except UNREADABLE as error:
        raise Unusable(f"{path.name} cannot be read ({_line(error)}); replace it") from None


def check_unturned(path: Path) -> None:
    """Raises Unusable where EXIF turns a photograph: its label would have to be turned too, and nothing says whether it is."""
    with Image.open(path, formats=FORMATS) as image:
        turn = _orientation(image, path)
    if turn != 1:
        raise Unusable(
            f"{path.name} is turned by its EXIF orientation {turn}, its label is not; save the photograph upright without EXIF, or "
            f"turn its label and save both without"
        )


def open_label(path: Path, encoding: Encoding) -> Image.Image:
    """A delivered label as 8-bit grey image of prepared values.

    Raises:
        Unusable: damaged, several channels, values that its file cannot keep exactly, or a value that the encoding does not know.
    """
    try:
        values = _sixteen_bit(path) if encoding.sixteen_bit else _indices(path)
    except UNREADABLE as error:
        raise Unusable(f"label {path.name} cannot be read ({_line(error)}); replace it") from None
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > IGNORE:
        raise Unusable(
            f"label {path.name} holds the value {low if low < 0 else high}, expected {_known(encoding)}; save class numbers"
        )
    label = Image.fromarray(values.astype(np.uint8))
    unknown = [value for value, n in enumerate(label.histogram()) if n and value not in encoding.table]
    if unknown:
        found = ", ".join(map(str, unknown[:5]))
        raise Unusable(f"label {path.name} holds the value {found}, expected {_known(encoding)}")
    return label.point(encoding.lut)


def colours(path: Path) -> dict[int, str]:
    """Index -> colour of a palette label, of the indices in use; empty for a grey one.

    Programs that shrink files number a palette anew: then one index has another colour than in the other labels.
    """
    with Image.open(path, formats=EXACT) as image:
        if image.mode != "P":
            return {}
        image.load()
        table = bytes(image.getpalette("RGB") or ())
        return {value: table[3 * value : 3 * value + 3].hex() for value in _used(image)}


# --- photographs ----------------------------------------------------------------------------------------------------


def _check_one(image: Image.Image, path: Path) -> None:
    if image.width * image.height > LARGEST:
        raise Unusable(
            f"{path.name} has {image.width}x{image.height} pixels, expected at most {LARGEST // 10**6} million; reduce it"
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a photograph with its preview
        raise Unusable(f"{path.name} holds several pictures, expected one; save the one that is meant")


def _upright(image: Image.Image, path: Path) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of many types, as Pillow reads and writes the block
        raise Unusable(f"{path.name} has a damaged EXIF block; save the image without it") from None


def _orientation(image: Image.Image, path: Path, *, writable: bool = False) -> int:
    """1: as it is. `writable`: Pillow can write the block anew without it, as it does when it turns the image."""
    try:
        turn = image.getexif().get(ORIENTATION, 1)
        if writable and turn in range(2, 9):
            image.getexif().tobytes()
    except OSError:  # Pillow loads a PNG for it
        raise
    except Exception:
        raise Unusable(f"{path.name} has a damaged EXIF block; save the image without it") from None
    return turn if turn in range(2, 9) else 1


def _eight_bits(image: Image.Image, kind: str | None, path: Path) -> Image.Image:
    if image.mode == "F":
        raise Unusable(
            f"{path.name} holds floating point numbers, expected 8 or 16 bits a channel; save it as an 8-bit image"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unusable(f"{path.name} holds {values.min()} to {values.max()}, expected 8 or 16 bits a channel")
        if image.mode == "I" and kind not in ("PNG", "PPM") and 0 < values.max() < 256:
            raise Unusable(
                f"{path.name} holds 0 to {values.max()} in 32 bits, so its white is not known; save it with 8 bits"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


# --- labels ---------------------------------------------------------------------------------------------------------


def _indices(path: Path) -> np.ndarray:
    """(H, W) values of a grey or palette file; a palette file holds the index, not the colour."""
    with Image.open(path, formats=FORMATS) as image:
        _check_one(image, path)
        layout = image.tile[0].args if image.tile else None  # gone once it is loaded
        image.load()
        _check_exact(image, layout, path)
        if image.mode == "P":
            _check_palette(image, path)
        return np.asarray(image)


def _check_exact(image: Image.Image, layout: Any, path: Path) -> None:
    """Raises Unusable where a file does not hold one exact number a pixel: those that a person put there."""
    wrong = ""
    tags = getattr(image, "tag_v2", {})
    if image.format not in EXACT:
        wrong = f"is a {image.format} file, whose compression alters values"
    elif tags.get(COMPRESSION) in LOSSY_TIFF:
        wrong = "is a TIFF with lossy compression, which alters values"
    elif image.mode == "F":
        wrong = f"holds floating point numbers, as {float(np.asarray(image).flat[0]):g}"
    elif image.mode not in ("L", "P", "I", "I;16", "I;16B"):
        what = "one bit a pixel, so that 1 may mean 1 or 255" if image.mode == "1" else f"mode {image.mode}"
        wrong = f"has {what}, expected one value a pixel (grey or palette)"
    elif image.format == "PNG" and image.mode == "L" and layout not in (None, "L", "L;8"):
        wrong = f"is grey of fewer than 8 bits ({layout}), whose values readers spread over 0 to 255"
    elif image.mode == "L" and SIGNED in _numbers(tags.get(SAMPLE_FORMAT, 1)):
        wrong = "is a TIFF of signed bytes, whose -1 reads as 255"
    elif tags.get(PHOTOMETRIC) == 0:
        wrong = "is a TIFF that counts from white, so that readers invert its values"
    elif _orientation(image, path) != 1:
        wrong = f"is turned by its EXIF orientation {_orientation(image, path)}"
    if wrong:
        raise Unusable(f"label {path.name} {wrong}; save it as an 8-bit grey PNG of class numbers")


def _numbers(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _check_palette(image: Image.Image, path: Path) -> None:
    """A program that shrinks files stores grey values as a palette: the index is then another number than the value."""
    table = bytes(image.getpalette("RGB") or ())
    used = _used(image)
    greys = {value: table[3 * value] for value in used if len(set(table[3 * value : 3 * value + 3])) == 1}
    other = [value for value in used if greys.get(value, value) != value]
    if len(greys) == len(used) and other:
        raise Unusable(
            f"label {path.name} has a palette of greys in which index {other[0]} is grey {greys[other[0]]}: its values were packed anew, "
            f"or it is a picture of them; save it as an 8-bit grey PNG of class numbers"
        )


def _used(image: Image.Image) -> list[int]:
    return [value for value, n in enumerate(image.histogram()[:256]) if n]


def _sixteen_bit(path: Path) -> np.ndarray:
    """(H, W) uint16 first channel of a 16-bit RGB PNG.

    Pillow reads such a file as 8-bit RGB, keeping each value's high byte ("RGB;16B"); told that the bytes lie the other way
    round, it keeps the low one. torchvision's decoder reads all 16 bits, but is deprecated since 0.29.
    """
    halves = []
    for order in ("RGB;16B", "RGB;16L"):
        with Image.open(path, formats=FORMATS) as image:
            _check_one(image, path)
            if image.format != "PNG" or image.tile[0].args != "RGB;16B":
                raise Unusable(f"label {path.name} has other than 3 channels of 16 bits; take the file as delivered")
            image.tile = [tile._replace(args=order) for tile in image.tile]
            image.load()
            halves.append(np.asarray(image.getchannel(0), np.uint16))
    return halves[0] << 8 | halves[1]


def _line(error: BaseException) -> str:
    return (str(error).split("\n")[0] or type(error).__name__)[:120]


def _known(encoding: Encoding) -> str:
    """The known values in words: `0 to 33`, or the list."""
    known = sorted(encoding.table)
    low = [value for value in known if value != IGNORE]
    text = f"0 to {low[-1]}" if low == list(range(len(low))) and low else ", ".join(map(str, low))
    return text + (" or 255" if IGNORE in known else "")
