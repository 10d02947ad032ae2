"""Weights that lie on no hub, made from their public origin. Each is known by its hash, so that what comes out is the file or none."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

from udaseg.artifacts import check_folder, writing
from udaseg.checking import lookup
from udaseg.errors import UserError
from udaseg.params import names_a_file

AT_ONCE = 2**20


class Origin(NamedTuple):
    """Where a weights file comes from.

    Attributes:
        url: of the original file, at a fixed revision.
        sha256: of the original file.
        made: of the weights file that is made from it.
        what: in a few words, with its licence.
    """

    url: str
    sha256: str
    made: str
    what: str


ORIGINS = {
    "mobilenetv2_100.tf2_imagenet": Origin(
        "https://raw.githubusercontent.com/google-coral/test_data/104342d2d3480b3e66203073dac24f4e2dbb4c41/tf2_mobilenet_v2_1.0_224_ptq.tflite",
        "5d3137241276e79c86d14a74fe43581398ae0e815191d3dba45495b810840e8c",
        "9930718f66a8a43d58750c6f3a2f0fa5f53665786226ce4a90ab694ceb3d4a20",
        "Google's MobileNetV2 for 8-bit devices, 4 MB, Apache-2.0",
    )
}


def hint(weights: str) -> str:
    """What to add to a message that a weights file is missing; empty where nothing is known of it."""
    origin = ORIGINS.get(weights)
    return f"; `udaseg fetch-weights {weights}` makes it from its origin ({origin.what})" if origin else ""


def lacking(weights: str) -> str | None:
    """One line where the weights of a model block are a file that is not there; None where they are, or timm fetches them. No torch."""
    if weights == "none" or weights.startswith("timm:"):
        return None
    if names_a_file(weights):
        return None if Path(weights).expanduser().is_file() else f"weights {weights}: found nothing there"
    mirror = os.environ.get("UDASEG_MIRROR")
    path = Path(mirror or "<UDASEG_MIRROR>") / "weights" / f"{weights}.safetensors"
    if mirror and path.is_file():
        return None
    return f"weights {path}: {'found nothing there' if mirror else 'found UDASEG_MIRROR unset'}{hint(weights)}"


def fetch_weights(name: str, file: Path | None = None, out: Path | None = None) -> str:
    """Make a weights file from its origin.

    Args:
        name: a key of ORIGINS.
        file: the original, where it is here already; None: it is downloaded.
        out: what to write; None: weights/<name>.safetensors in the mirror (UDASEG_MIRROR, else ./mirror).

    Returns:
        What was written, and how to use it.

    Raises:
        UserError: an unknown name, no connection, another file than the origin's.
    """
    from udaseg.origins import mobilenetv2

    origin = lookup(ORIGINS, name, "weights file")
    mirror = os.environ.get("UDASEG_MIRROR")
    path = out or Path(mirror or "mirror") / "weights" / f"{name}.safetensors"
    if path.is_file() and sha256(path.read_bytes()) == origin.made:
        return f"{path}: is there already (sha256 {origin.made})"
    check_folder(path.parent)
    original = downloaded(origin.url) if file is None else read(file)
    if (found := sha256(original)) != origin.sha256:
        raise UserError(
            f"{file or origin.url}: found sha256 {found}, expected {origin.sha256}: not the file that these weights are made from"
        )
    made = mobilenetv2.converted(original)
    if (found := sha256(made)) != origin.made:
        raise UserError(
            f"{name}: found sha256 {found} after conversion, expected {origin.made}; nothing was written; use the pinned NumPy"
        )
    with writing(path) as temporary:
        temporary.write_bytes(made)
    use = "" if mirror or out else f"\nexport UDASEG_MIRROR={Path('mirror').resolve()}"
    return f"{path}: {len(made):,} bytes, sha256 {origin.made}, from {origin.what}{use}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(file: Path) -> bytes:
    if not file.is_file():
        raise UserError(f"{file}: no such file; without --file the original is downloaded")
    return file.read_bytes()


def downloaded(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return b"".join(iter(lambda: answer.read(AT_ONCE), b""))
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"could not download {url} ({reason}); expected a network connection, or the file fetched elsewhere: --file FILE"
        ) from None
