"""Model files: safetensors with a text header, written whole or not at all, equal bytes for equal weights."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from udaseg.artifacts import writing
from udaseg.errors import UserError


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
    header = json.loads(bytes(blob[8 : 8 + length]))
    tensors = {name: header[name] for name in sorted(header) if name != "__metadata__"}
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensor data aligned to 8 bytes

    with writing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(blob[8 + length :])


def load_model_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file.

    Returns:
        The tensors by name (on the CPU) and the header's metadata.

    Raises:
        UserError: no such file, or not a complete safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"found nothing at {path}, expected a model file (safetensors): give its path or make it first")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: found {path.stat().st_size} bytes that are no complete safetensors file ({error}); "
            "expected one: remove the file and make or fetch it again"
        ) from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header's metadata, without reading tensors.

    Raises:
        UserError: not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
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
