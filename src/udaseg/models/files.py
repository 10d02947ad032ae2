"""Model files: safetensors with a text header, written whole or not at all, equal bytes for equal weights.

The header's metadata hold a hash of all else in the file, so that a damaged file is noticed wherever it was copied to.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from udaseg.artifacts import parse_json, writing
from udaseg.errors import UserError

CONTENT = "sha256"  # key of the metadata: of the same file without this key
LONGEST = 2**23  # bytes of a header; those of the largest networks, with a teacher, have 5e5
UNREADABLE = (SafetensorError, OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError)


def save_model(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes named tensors: the state of one network, or of several under prefixes.

    Equal weights and metadata give equal bytes: no time stamp, and metadata in sorted order.

    Args:
        path: the file; its folder is created.
        state: tensors by name.
        metadata: strings for the header.
    """
    path = Path(path)
    # Copies, because the format refuses tensors that share storage.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    blob = memoryview(safetensors.torch.save(copies, metadata=dict(metadata)))
    # The library writes the metadata in a random order, so that the header is written here.
    length = int.from_bytes(blob[:8], "little")
    tensors = without(json.loads(bytes(blob[8 : 8 + length])), "__metadata__")
    data, about = blob[8 + length :], without(metadata, CONTENT)
    digest = hashlib.sha256(header_text(about, tensors))
    digest.update(data)
    text = header_text(about | {CONTENT: digest.hexdigest()}, tensors)

    with writing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(data)


def header_text(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> bytes:
    """The header as it stands in a file: metadata and tensors sorted by name."""
    content = {"__metadata__": dict(sorted(metadata.items())), **dict(sorted(tensors.items()))}
    text = json.dumps(content, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # the format wants tensor data aligned to 8 bytes


def without(block: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != key}


def load_model_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file. One that `save_model` wrote is compared with the hash in its header.

    Returns:
        The tensors by name (on the CPU) and the header's metadata.

    Raises:
        UserError: no such file, not a complete safetensors file, or not what was written.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"found nothing at {path}, expected a model file (safetensors): give its path or make it first")
    try:
        metadata, found = read_whole(path)
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UNREADABLE as error:
        raise UserError(
            f"{path}: found {path.stat().st_size} bytes that are no complete safetensors file "
            f"({' '.join(str(error).split())[:200]}); expected one: remove the file and make or fetch it again"
        ) from None
    if metadata.get(CONTENT, found) != found:
        raise UserError(
            f"{path}: damaged: its content has sha256 {found[:12]}, expected {metadata[CONTENT][:12]} as in its header; "
            "remove the file and make or fetch it again"
        )
    return state, metadata


def read_whole(path: Path) -> tuple[dict[str, str], str]:
    """The header's metadata, and the hash of everything else in the file.

    Raises:
        ValueError: not a header of this format.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LONGEST, path.stat().st_size - 8):
            raise ValueError(f"a header of {length} bytes")
        tensors = parse_json(file.read(length).decode())
        metadata = tensors.pop("__metadata__", {}) if isinstance(tensors, dict) else None
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("a header without names of tensors and texts")
        digest = hashlib.sha256(header_text(without(metadata, CONTENT), tensors))
        while piece := file.read(2**20):
            digest.update(piece)
    return metadata, digest.hexdigest()


# What a number of NumPy is made of in a pickle: training programs note scores as such.
SCALAR = np.float64(0).__reduce__()[0]
NUMBERS: tuple[Any, ...] = (
    (SCALAR, "numpy.core.multiarray.scalar"),  # the name until NumPy 2
    (SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
)


def load_pickled(path: Path, said: Path | None = None) -> Any:
    """The content of a PyTorch file, if that is tensors, texts, numbers, lists and dictionaries. No code of it is run.

    Args:
        path: what to read.
        said: what messages call it.

    Raises:
        UserError: a damaged file, or one that holds anything else.
    """
    said = said or path
    try:
        with torch.serialization.safe_globals(list(NUMBERS)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # of any type, as damaged bytes have it
        # the library's own text goes over many lines and tells how to let the file run its code
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{said}: holds {found[1]}, expected tensors, texts and numbers alone; such a file could run code and is not opened"
            ) from None
        raise UserError(
            f"{said}: found no readable PyTorch file ({path.stat().st_size} bytes), expected one: fetch it again"
        ) from None


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header's metadata, without reading tensors.

    Raises:
        UserError: not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged ({error}); fetch it again from where it was made") from None


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads a state into a model; every name and shape must agree.

    Args:
        model: receives the values.
        state: tensors by name.
        path: where they come from, for the message.

    Raises:
        UserError: names the first tensor that differs; the model is then unchanged.
    """
    check_state(model.state_dict(), state, path)
    model.load_state_dict(state)


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises a UserError that names the first tensor of `expected` that `found` lacks or has in another shape.

    Tensors that only `found` has come last.
    """
    advice = "use the file of this architecture, or correct the model block (backbone, backbone_args, head, classes)"
    for name in [*expected, *(name for name in found if name not in expected)]:
        wanted, given = (_describe(tensors.get(name)) for tensors in (expected, found))
        if wanted != given:
            agree = sum(_describe(found.get(key)) == _describe(value) for key, value in expected.items())
            raise UserError(
                f"{path}: tensor {name}: found {given}, expected {wanted} "
                f"({agree} of {len(expected)} tensors agree); {advice}"
            )


def _describe(tensor: Tensor | None) -> str:
    return "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
