"""Pretrained encoder weights: from the mirror, the disk or timm; loaded strictly; never a silent random start.

Names are timm's; official MiT files (SegFormer, NeurIPS 2021) are translated. docs/models.md.
"""

import functools
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from timm.models import get_pretrained_cfg
from torch import Tensor

from udaseg.artifacts import file_hash
from udaseg.errors import UserError
from udaseg.models.files import check_state, load_model_file, load_pickled
from udaseg.models.segmenter import Segmenter
from udaseg.models.spec import ModelSpec
from udaseg.params import names_a_file

log = logging.getLogger("udaseg")

# Top-level modules that follow the last feature map in timm's classifiers (and decoders of official SegFormer files).
# A features_only encoder ends before them.
POOLED_HEADS = frozenset(
    {"classifier", "conv_head", "bn2", "norm_head", "fc", "fc_norm", "head", "norm", "decode_head", "auxiliary_head"}
)

# Batch counters are no weights (several published files lack them); older Swin files carry tables and masks that the
# network now computes when it is built.
COUNTERS = "num_batches_tracked"
COMPUTED = (COUNTERS, "relative_position_index", "attn_mask")

# Official MiT name -> timm's features_only name of pvt_v2; {0} is the stage counted from 1, {1} the stage from 0.
MIT_RULES = (
    (re.compile(r"patch_embed1\.(?P<tail>(?:proj|norm)\..*)"), "patch_embed.{tail}"),
    (re.compile(r"patch_embed(?P<stage>[2-4])\.(?P<tail>(?:proj|norm)\..*)"), "stages_{index}.downsample.{tail}"),
    (
        re.compile(r"block(?P<stage>[1-4])\.(?P<block>\d+)\.mlp\.dwconv\.dwconv\.(?P<tail>.*)"),
        "stages_{index}.blocks.{block}.mlp.dwconv.{tail}",
    ),
    (re.compile(r"block(?P<stage>[1-4])\.(?P<block>\d+)\.(?P<tail>.*)"), "stages_{index}.blocks.{block}.{tail}"),
    (re.compile(r"norm(?P<stage>[1-4])\.(?P<tail>.*)"), "stages_{index}.norm.{tail}"),
)


def load_encoder_weights(model: Segmenter, spec: ModelSpec, init: str) -> dict[str, Any]:
    """Gives the encoder the ImageNet weights that the model block names; without them only if `init` asks for it.

    Args:
        model: receives the weights in its encoder; the head is untouched.
        spec: the model block; `weights` says where from.
        init: `imagenet`: load `spec.weights`; `none`: a random start is wanted. A run that starts from a source-only
            model loads the whole model with `load_model_file` and `load_state` instead.

    Returns:
        Provenance: `file` (None: random start), `sha256`, `matched` (number of tensors), `missing` and `unexpected`
        (names that only the encoder or only the file has). A short line goes to the log, once in a process.

    Raises:
        UserError: no such file, a broken one, one that differs from the encoder in anything but a classifier, or
            `imagenet` with `weights: none`.
        ValueError: another `init`.
    """
    if init not in ("imagenet", "none"):
        raise ValueError(f"init: found {init!r}, expected imagenet or none")
    if init == "none":
        log.info("encoder weights: none (init: none); %s starts at random", spec.backbone)
        return {"file": None, "sha256": None, "matched": 0, "missing": [], "unexpected": []}

    path = find_weights(spec)
    encoder_state = model.encoder.body.state_dict()
    state = _to_encoder_names(_read(path), encoder_state)
    unexpected = [name for name in state if name not in encoder_state]
    missing = [name for name in encoder_state if name not in state]
    counters = {name: encoder_state[name] for name in missing if name.endswith(COUNTERS)}
    used = {name: value for name, value in state.items() if name in encoder_state or not _may_be_left_over(name)}
    check_state(encoder_state, {**used, **counters}, path)
    model.encoder.body.load_state_dict({**used, **counters})

    checksum = file_hash(path)
    say(f"encoder weights: {spec.backbone}, {len(used)} tensors of {path.name}, sha256 {checksum[:12]}")
    # what is left over on either side cannot be wrong here: check_state has refused all but classifiers and counters
    log.debug("%s: only in the encoder: %s; only in the file: %s", path, _summary(missing), _summary(unexpected))
    return {
        "file": str(path),
        "sha256": checksum,
        "matched": len(used),
        "missing": missing,
        "unexpected": unexpected,
    }


@functools.cache
def say(line: str) -> None:
    """To the log, once: the network that is trained and the frozen reference beside it take the same file."""
    log.info(line)


def find_weights(spec: ModelSpec) -> Path:
    """The file that `spec.weights` means; the mirror comes before any download.

    Raises:
        UserError: nothing there; says what was looked for and where.
    """
    if spec.weights == "none":
        raise UserError(
            f"model.weights: found none, expected ImageNet weights for {spec.backbone}: name them, or say init: none"
        )
    weights, mirror = spec.weights, os.environ.get("UDASEG_MIRROR")
    if names_a_file(weights):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"model.weights: found nothing at {path}, expected a .safetensors or .pth file: correct the path"
            )
        return path
    source, _, tag = weights.rpartition(":")
    if source not in ("", "timm") or (source == "" and "." not in weights):
        raise UserError(
            f"model.weights: found {weights!r}, "
            "expected timm:<tag>, <name>.<tag> (a file of the mirror), a path or none"
        )
    stem = f"{spec.backbone}.{tag}" if source == "timm" else weights
    if mirror:
        path = Path(mirror) / "weights" / f"{stem}.safetensors"
        if path.is_file():
            return path
    if source == "timm":
        return _download(spec.backbone, tag)
    where = Path(mirror or "<UDASEG_MIRROR>") / "weights" / f"{stem}.safetensors"
    state = "found nothing there" if mirror else "found UDASEG_MIRROR unset"
    raise UserError(
        f"model.weights: expected {where}, {state}: put the file there and set UDASEG_MIRROR to the mirror's folder, "
        "or use timm:<tag> to download"
    )


def mit_to_timm(name: str) -> str | None:
    """timm's features_only name of an official MiT tensor; None if the name is not one of MiT's."""
    for pattern, target in MIT_RULES:
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            return target.format(index=int(parts.get("stage") or 1) - 1, **parts)
    return None


def _to_encoder_names(state: Mapping[str, Tensor], encoder_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a file -> names of timm's features_only network; names that fit nothing are kept as they are."""
    named = {name.removeprefix("backbone."): value for name, value in state.items()}
    if any(name.startswith("block1.0.") for name in named):
        return {mit_to_timm(name) or name: value for name, value in named.items()}
    return {_timm_name(name, encoder_state): value for name, value in named.items()}


def _timm_name(name: str, encoder_state: Mapping[str, Tensor]) -> str:
    # features_only keeps names, or wraps the whole network as `model`, or flattens its first level of lists.
    candidates = (name, f"model.{name}", name.replace(".", "_", 1))
    return next((candidate for candidate in candidates if candidate in encoder_state), name)


def _may_be_left_over(name: str) -> bool:
    return name.split(".")[0] in POOLED_HEADS or name.endswith(COMPUTED)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_model_file(path)[0]
    content = load_pickled(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: found no tensors, expected a state dictionary (possibly under 'state_dict')")
    return tensors


def _download(backbone: str, tag: str) -> Path:
    """The published file of `<backbone>.<tag>` from timm's hub, through the hub's own cache."""
    tags = [name.split(".", 1)[1] for name in timm.list_pretrained(f"{backbone}.*")]
    if tag not in tags:
        raise UserError(
            f"model.weights: found tag {tag!r}, "
            f"expected one of timm's for {backbone}: {', '.join(tags) or 'there are none'}"
        )
    config = get_pretrained_cfg(f"{backbone}.{tag}")
    repository = config.hf_hub_id if config is not None else None
    if not repository:
        raise UserError(f"model.weights: timm has no hub file for {backbone}.{tag}: fetch it and give its path")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # every failure of network, hub and cache ends in the same advice
        raise UserError(
            f"model.weights: could not download {repository} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"expected a network connection or weights/{backbone}.{tag}.safetensors in the folder UDASEG_MIRROR"
        ) from error


def _summary(names: list[str]) -> str:
    """All names but batch counters, of which a ResNet has a hundred."""
    weights = [name for name in names if not name.endswith(COUNTERS)]
    counters = [f"{len(names) - len(weights)} batch counters"] if len(weights) < len(names) else []
    return ", ".join([*weights, *counters]) or "nothing"
