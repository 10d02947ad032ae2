"""A trained model from its file alone: the header holds all that is needed to build the network and read its answers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from udaseg.checking import build
from udaseg.data.labels import ClassSpace
from udaseg.errors import UserError
from udaseg.evaluation.loading import by_network
from udaseg.models import Segmenter, build_model, load_model_file, load_state
from udaseg.params import Model, Size

OURS = ("benchmark", "method", "seed", "params_hash", "classes")
SELF_CONTAINED = ("model", "colours", "size")


@dataclass(frozen=True)
class Trained:
    """A network ready to predict, and what its answers mean.

    Attributes:
        network: in evaluation mode, on `device`.
        classes: names and colours; no subsets and no things, which only training and scoring need.
        size: of the target's images during training.
        header: of the file, as text.
    """

    network: Segmenter
    classes: ClassSpace
    size: Size
    header: dict[str, str]
    device: torch.device


def load(path: Path, device: str = "cpu") -> Trained:
    """Read a model.safetensors that `udaseg train` wrote. A teacher in the file is left out.

    Args:
        path: the file.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: no such file or device, a file of another program or of an older version of this one, a damaged one.
    """
    where = choose(device)
    state, header = load_model_file(path)
    check(header, path)
    try:
        classes = read_classes(header)
        spec: Model = build(Model, json.loads(header["model"]), "model")
        size = Size.parse(header["size"], "size")
    except (ValueError, TypeError, UserError) as error:
        said = str(error).removeprefix("params.yaml: ")
        raise UserError(f"{path}: its header cannot be read ({said}); train again, or fetch the file again") from None
    network = build_model(spec, len(classes))
    load_state(network, by_network(state)[""], path)
    return Trained(network.to(where).eval(), classes, size, header, where)


def choose(device: str) -> torch.device:
    """`auto` is CUDA where there is a device. Raises UserError for `cuda` without one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: found cuda, but no CUDA device is visible; say --device cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def check_folder(out: Path) -> None:
    """Raises UserError where results cannot go: `out`, or the folder it would be made in, is a file."""
    first = next(filter(os.path.lexists, (out, *out.parents)), None)
    if first and not os.path.isdir(first):
        raise UserError(f"--out: found the file {first}, expected a folder, which may be a new one")


def check(header: Mapping[str, str], path: Path) -> None:
    """Raises UserError for a header without the keys that `udaseg train` writes."""
    if missing := [key for key in OURS if key not in header]:
        raise UserError(
            f"{path}: found no {missing[0]} in its header, expected a model.safetensors written by `udaseg train`; "
            f"weights alone do not tell classes and architecture"
        )
    if missing := [key for key in SELF_CONTAINED if key not in header]:
        raise UserError(
            f"{path}: written by an older version, its header lacks {', '.join(missing)}; train again: `udaseg train "
            f"--benchmark {header['benchmark']} --method {header['method']} --seed {header['seed']}`"
        )


def read_classes(header: Mapping[str, str]) -> ClassSpace:
    """Raises ValueError or TypeError for names and colours that do not belong together."""
    names = tuple(header["classes"].split(","))
    colours = tuple((int(r), int(g), int(b)) for r, g, b in json.loads(header["colours"]))
    if len(names) != len(colours):
        raise ValueError(f"{len(names)} classes, {len(colours)} colours")
    return ClassSpace(header["benchmark"], names, colours, tuple((name,) for name in names), (), {})
