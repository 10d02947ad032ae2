"""The model file: who writes it, who reads it, what its header means. Nobody else opens one.

model.safetensors holds the tensors of the student and, under "teacher.", of the averaged teacher (EMA), and a header of text
that is enough to use them without a params.yaml: class names and colours, the model block, the size of the target's images in
training, and how test images are looked at (whole, or in windows). Files come from anywhere: a header can name no other file,
and nothing is built before it is known to fit the tensors.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.artifacts import MODEL, checked_hash, parse_json
from udaseg.checking import build, essential
from udaseg.classes import IGNORE, ClassSpace
from udaseg.errors import UserError
from udaseg.models.build import build_model
from udaseg.models.files import CONTENT, check_state, load_model_file, load_state, read_metadata, save_model, without
from udaseg.models.segmenter import Segmenter
from udaseg.params import Model, Run, Size, Test

log = logging.getLogger("udaseg")

FORMAT = 3  # of the header
# What a reader should know of the earlier ones, which are read all the same.
LACKS = {
    1: "it does not say how its images were scored, so they are looked at whole",
    2: "it has no hash of its content, so damage may go unnoticed",
}
TEACHER = "teacher."  # before the names of the teacher's tensors
OURS = ("benchmark", "method", "seed", "params_hash", "classes")
SELF_CONTAINED = ("model", "colours", "size")
# What a header may say of timm's constructor: shapes and layers, nothing that is opened, fetched or called.
BACKBONE_ARGS = frozenset(
    [
        "act_layer",
        "aa_layer",
        "attn_drop_rate",
        "avg_down",
        "base_width",
        "block_reduce_first",
        "bn_eps",
        "bn_momentum",
        "bottle_ratio",
        "cardinality",
        "channels",
        "class_token",
        "conv_bias",
        "conv_mlp",
        "depth",
        "depths",
        "dims",
        "down_kernel_size",
        "drop_block_rate",
        "drop_path_rate",
        "drop_rate",
        "dynamic_img_pad",
        "dynamic_img_size",
        "embed_dim",
        "embed_dims",
        "expand_ratio",
        "global_pool",
        "head_dim",
        "img_size",
        "in_chans",
        "init_values",
        "kernel_sizes",
        "layer_scale_init_value",
        "layers",
        "linear",
        "mlp_ratio",
        "mlp_ratios",
        "norm_eps",
        "norm_layer",
        "num_heads",
        "out_indices",
        "output_stride",
        "pad_type",
        "patch_norm",
        "patch_size",
        "pos_drop_rate",
        "pos_embed",
        "pre_norm",
        "proj_bias",
        "proj_drop_rate",
        "qk_norm",
        "qkv_bias",
        "reg_tokens",
        "se_layer",
        "se_ratio",
        "sr_ratios",
        "stem_type",
        "stem_width",
        "strict_img_size",
        "widths",
        "window_size",
    ]
)
MOST_BLOCKS, MOST_WIDTH, MOST_BRANCHES = 128, 4096, 16  # of a network that a header describes
MOST_PIXELS = 2**25  # that it looks at in one pass
MOST_BUFFERS = 2**28  # bytes that it computes for itself, as tables of positions
WHOLE = Test("whole", None, None, flip=False, scales=(1.0,), teacher=False)


@dataclass(frozen=True)
class Trained:
    """Networks ready to predict, and what their answers mean.

    Attributes:
        student: what is scored as the headline; in evaluation mode, on `device`.
        teacher: the averaged one, where the method has one and it was asked for.
        classes: names and colours; subsets and things, which only training and scoring need, if it was read for a run.
        size: of the target's images during training.
        test: how test images are looked at.
        header: of the file, as text.
    """

    student: Segmenter
    teacher: Segmenter | None
    classes: ClassSpace
    size: Size
    test: Test
    header: dict[str, str]
    device: torch.device


def save(path: Path, run: Run, networks: Mapping[str, nn.Module]) -> None:
    """Write the networks of a finished training by prefix ("" the student, TEACHER); equal runs give equal bytes."""
    state = {
        prefix + name: value for prefix, network in networks.items() for name, value in network.state_dict().items()
    }
    save_model(path, state, header_of(run))


def header_of(run: Run) -> dict[str, str]:
    """What a model file says about itself. Where training began may be a private path and is left out."""
    return {
        "format": str(FORMAT),
        "benchmark": run.benchmark_name,
        "method": run.method_name,
        "seed": str(run.seed),
        "params_hash": run.hash,
        "classes": ",".join(run.classes.names),
        "colours": json.dumps(run.classes.colours),
        "model": json.dumps(essential(run.benchmark.model) | {"weights": "none"}, sort_keys=True),
        "size": str(run.benchmark.size.target),
        "test": json.dumps(essential(run.benchmark.test), sort_keys=True),
    }


def sign_again(path: Path, run: Run) -> None:
    """Bring an older header up to date; the tensors, and whose training it was, stay."""
    state, found = load_model_file(path)
    check_format(found, path)
    whose = {key: found[key] for key in ("benchmark", "method", "seed") if key in found}
    if (wanted := header_of(run) | whose) != without(found, CONTENT):
        save_model(path, state, wanted)


def load(path: Path, device: torch.device | str = "cpu") -> Trained:
    """Read a model.safetensors that `udaseg train` wrote, for use without its params.yaml. A teacher in it is left out.

    Raises:
        UserError: no such file, a file of another program or of a version that this one cannot read, a damaged one.
    """
    if path.is_file():
        checked_hash(path)
    state, header = load_model_file(path)
    check_header(header, path)
    try:
        classes = read_classes(header)
        model: Model = build(Model, parse_json(header["model"]), "model")
        size = Size.parse(header["size"], "size")
        test: Test = build(Test, parse_json(header["test"]), "test") if "test" in header else WHOLE
        check_described(model, size, test)
    except (ValueError, TypeError, UserError) as error:
        said = " ".join(str(error).removeprefix("params.yaml: ").split())[:300]
        raise UserError(f"{path}: its header cannot be read ({said}); train again, or fetch the file again") from None
    if lacks := LACKS.get(int(header.get("format", "1"))):
        log.warning(
            "%s: of an earlier version (header format %s of %d): %s", path, header.get("format", "1"), FORMAT, lacks
        )
    where = torch.device(device)
    part = by_network(state)[""]
    check_fits(model, len(classes), part, path)
    student = network_of(model, len(classes), part, path, where)
    return Trained(student, None, classes, size, test, header, where)


def load_run(run: Run, device: torch.device, path: Path | None = None) -> Trained:
    """Read the model of a run, with its teacher.

    Args:
        run: it must be the model of these parameters and classes.
        device: where to.
        path: the file, where that is not in the run's folder.

    Raises:
        UserError: no such file, or the model of another run; the message names the command that makes it.
    """
    path = path or run.folder / MODEL
    again = run.command("pretrain" if path == run.pretrained else "train")
    if not path.exists():
        raise UserError(f"{path}: not found; run `{again}` first")
    checked_hash(path, again)
    state, header = load_model_file(path)
    check_format(header, path)
    for key, expected in (("params_hash", run.hash), ("classes", ",".join(run.classes.names))):
        if header.get(key) != expected:
            raise UserError(f"{path}: {key}: found {header.get(key)}, expected {expected}; run `{again}` again")
    networks = {
        prefix: network_of(run.benchmark.model, len(run.classes), part, path, device)
        for prefix, part in by_network(state).items()
    }
    size, test = run.benchmark.size.target, run.benchmark.test
    return Trained(networks[""], networks.get(TEACHER), run.classes, size, test, header, device)


def begin_from(student: Segmenter, run: Run) -> None:
    """Load the source-only model that a run starts from into its student.

    Raises:
        UserError: it was trained with other parameters.
    """
    checked_hash(run.pretrained, run.command("pretrain"))
    state, header = load_model_file(run.pretrained)
    check_format(header, run.pretrained)
    expected = run.pretraining.hash
    if header.get("params_hash") != expected:
        raise UserError(
            f"{run.pretrained}: made with parameters {header.get('params_hash')}, expected {expected}; run `{run.command('pretrain')}` again"
        )
    load_state(student, state, run.pretrained)


def read_header(path: Path) -> dict[str, str]:
    """What a model file says about itself, without reading its weights.

    Raises:
        UserError: not a whole safetensors file.
    """
    return read_metadata(path)


def network_of(model: Model, classes: int, state: Mapping[str, Tensor], path: Path, device: torch.device) -> Segmenter:
    network = build_model(model, classes)
    load_state(network, state, path)
    return network.to(device).eval()


def by_network(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a model file: the student's under "", the teacher's, if it has one, under TEACHER."""
    parts: dict[str, dict[str, Tensor]] = {"": {}}
    for name, value in state.items():
        prefix = TEACHER if name.startswith(TEACHER) else ""
        parts.setdefault(prefix, {})[name.removeprefix(prefix)] = value
    return parts


def check_header(header: Mapping[str, str], path: Path) -> None:
    """Raises UserError for a header that lacks what this version needs, or is of a newer one. Unknown keys are no matter."""
    if missing := [key for key in OURS if key not in header]:
        raise UserError(
            f"{path}: found no {missing[0]} in its header, expected a model.safetensors written by `udaseg train`; "
            f"weights alone do not tell classes and architecture"
        )
    check_format(header, path)
    if missing := [key for key in SELF_CONTAINED if key not in header]:
        raise UserError(
            f"{path}: written by an older version, its header lacks {', '.join(missing)}; train again: `udaseg train "
            f"--benchmark {header['benchmark']} --method {header['method']} --seed {header['seed']}`"
        )


def check_format(header: Mapping[str, str], path: Path) -> None:
    """Raises UserError for a header of a newer format, or without what its format has."""
    found = header.get("format", "1")
    if not found.isdecimal() or int(found[:9]) > FORMAT:
        raise UserError(
            f"{path}: its header has format {found[:20]}, this version reads up to {FORMAT}; use the version of udaseg that wrote it"
        )
    if int(found) >= 3 and CONTENT not in header:
        raise UserError(f"{path}: damaged: its header has no {CONTENT}; remove the file and make or fetch it again")


def check_described(model: Model, size: Size, test: Test) -> None:
    """Raises ValueError where a header describes more than a network of this program, or a larger one than can be."""
    if bad := sorted(set(model.backbone_args) - BACKBONE_ARGS):
        raise ValueError(f"backbone_args.{bad[0]}: not among what a file may say: {', '.join(sorted(BACKBONE_ARGS))}")
    for key, value in model.backbone_args.items():
        values = value if isinstance(value, list) else [value]
        if len(values) > MOST_BRANCHES or not all(is_plain(each) for each in values):
            raise ValueError(f"backbone_args.{key}: expected numbers up to {MOST_WIDTH}, words or a short list of them")
        if key in ("depth", "depths", "layers") and sum(each for each in values if isinstance(each, int)) > MOST_BLOCKS:
            raise ValueError(f"backbone_args.{key}: expected up to {MOST_BLOCKS} blocks")
    if not (
        0 <= model.width <= MOST_WIDTH
        and 0 < (model.embedding or 1) <= MOST_WIDTH
        and len(model.dilations) <= MOST_BRANCHES
    ):
        raise ValueError(f"width {model.width}, embedding {model.embedding}, {len(model.dilations)} dilations")
    if not all(0 < dilation <= MOST_WIDTH for dilation in model.dilations):
        raise ValueError(f"dilations {list(model.dilations)}")
    if not (0 <= model.dropout < 1 and min(model.std) > 0):
        raise ValueError(f"dropout {model.dropout}, std {list(model.std)}")
    for each in (size, test.window or size, test.stride or size, model.hrda.detail if model.hrda else size):
        if not (each.width > 0 and each.height > 0 and each.width * each.height <= MOST_PIXELS):
            raise ValueError(f"size {each}, expected up to {MOST_PIXELS} pixels")
    if test.mode == "slide" and not (test.window and test.stride):
        raise ValueError("test: mode slide without window and stride")


def is_plain(value: Any) -> bool:
    """A word, or a number of the size that shapes have."""
    if isinstance(value, str):
        return len(value) <= 32
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= MOST_WIDTH)


def check_fits(model: Model, classes: int, state: Mapping[str, Tensor], path: Path) -> None:
    """Build the network without memory, and compare it with the tensors of the file.

    Raises:
        UserError: it cannot be built, its tensors are others, or it computes large ones beside them.
    """
    try:
        with torch.device("meta"):
            network = build_model(model, classes)
    except UserError:
        raise
    except Exception as error:  # of timm and torch, which share no type
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: its header describes no network ({said}); fetch the file again") from None
    check_state(network.state_dict(), state, path)
    if sum(each.numel() * each.element_size() for each in network.buffers()) > MOST_BUFFERS:
        raise UserError(f"{path}: its header describes a network with too large tables; fetch the file again")


def read_classes(header: Mapping[str, str]) -> ClassSpace:
    """Raises ValueError or TypeError for names and colours that do not belong together."""
    names = tuple(header["classes"].split(","))
    found = parse_json(header["colours"])
    if len(names) != len(found):
        raise ValueError(f"{len(names)} classes, {len(found)} colours")
    if not 1 < len(names) < IGNORE or len(set(names)) != len(names) or not all(names):
        raise ValueError(f"{len(names)} classes, expected 2 to 254 different names")
    colours = tuple((int(r), int(g), int(b)) for r, g, b in found)
    if not all(0 <= value <= 255 for colour in colours for value in colour):
        raise ValueError("colours, expected 0 to 255")
    return ClassSpace(header["benchmark"], names, colours, tuple((name,) for name in names), (), {})
