"""Checkpoints that the authors of papers published, as model files of ours: `udaseg import-checkpoint`.

They are PyTorch files of mmsegmentation and its offspring: DAFormer, DACS, HRDA, MIC, SePiCo, PiPa, CLUDA, SegFormer. Names and shapes
say which network a file holds. Every tensor is used, or dropped by a rule that has a name, or the file is refused: docs/models.md.

In rules, {n} is a number of the name, {i} the same less one, {j} the same plus one.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from udaseg.artifacts import check_folder, file_hash
from udaseg.checking import essential
from udaseg.classes import NAMES, ClassSpace, class_space
from udaseg.errors import UserError
from udaseg.models import build_model
from udaseg.models.files import check_state, load_model_file, load_pickled, save_model
from udaseg.models.trained import OURS, header_of
from udaseg.models.weights import COUNTERS, mit_to_timm
from udaseg.params import Model, Run

Rules = tuple[tuple[str, str], ...]
State = dict[str, Tensor]

METHOD = "published"  # in the header of what was trained elsewhere
STUDENT, TEACHER = "model.", "ema_model."  # of a self-training file; a published number is the student's
# beside the networks
BESIDE = (
    (r"imnet_model\..*", "the frozen ImageNet network"),
    (r"(project|classifier)\..*", "PiPa's projection of patches"),
    (r"mic\..*", "MIC's own teacher"),
    (r"data_preprocessor\..*", "mmsegmentation's normalisation"),
)
# of a network: what only training needs
UNUSED = (
    (r"auxiliary_head\..*", "the auxiliary head"),
    (r"(cls_head|proj_head)\..*", "PiPa's contrast heads"),
    (r"decode_head\.feat_weighter\..*", "CLUDA's weights of features"),
)
UNUSED_CLASSIFIER = (r"decode_head\.conv_seg\..*", "a classifier that SegFormer does not use")

# below `backbone.`
RESNET: Rules = (
    (r"stem\.(?P<n>[01346])\.(?P<t>.+)", "conv1.{n}.{t}"),
    (r"stem\.7\.(?P<t>.+)", "bn1.{t}"),
    (r"(?P<t>(?:conv1|bn1|layer[1-4])\..+)", "{t}"),
)
# mmsegmentation's own MiT (from 0.17 on) -> the official one; q and kv are `parted` before
MMSEG_MIT: Rules = (
    (r"layers\.(?P<n>\d)\.0\.projection\.(?P<t>.+)", "patch_embed{j}.proj.{t}"),
    (r"layers\.(?P<n>\d)\.0\.norm\.(?P<t>.+)", "patch_embed{j}.norm.{t}"),
    (r"layers\.(?P<n>\d)\.1\.(?P<b>\d+)\.attn\.attn\.out_proj\.(?P<t>.+)", "block{j}.{b}.attn.proj.{t}"),
    (r"layers\.(?P<n>\d)\.1\.(?P<b>\d+)\.(?P<t>(?:attn\.(?:q|kv|sr|norm)|norm[12])\..+)", "block{j}.{b}.{t}"),
    (r"layers\.(?P<n>\d)\.1\.(?P<b>\d+)\.ffn\.layers\.0\.(?P<t>.+)", "block{j}.{b}.mlp.fc1.{t}"),
    (r"layers\.(?P<n>\d)\.1\.(?P<b>\d+)\.ffn\.layers\.1\.(?P<t>.+)", "block{j}.{b}.mlp.dwconv.dwconv.{t}"),
    (r"layers\.(?P<n>\d)\.1\.(?P<b>\d+)\.ffn\.layers\.4\.(?P<t>.+)", "block{j}.{b}.mlp.fc2.{t}"),
    (r"layers\.(?P<n>\d)\.2\.(?P<t>.+)", "norm{j}.{t}"),
)
# below `decode_head.`, `decode_head.head.` and `decode_head.scale_attention.`
HEAD: Rules = (
    (r"(?:conv_seg|linear_pred)\.(?P<t>weight|bias)", "classify.{t}"),
    (r"(?:embed_layers|linear_c)\.(?P<n>\d)\.proj\.(?P<t>weight|bias)", "embed.{n}.{t}"),
    (r"linear_c(?P<n>[1-4])\.proj\.(?P<t>weight|bias)", "embed.{i}.{t}"),
    (r"fuse_layer\.aspp_modules\.0\.(?P<t>(?:conv|bn)\..+)", "fuse.branches.0.{t}"),
    (r"fuse_layer\.aspp_modules\.(?P<n>[1-9])\.depthwise_conv\.(?P<t>(?:conv|bn)\..+)", "fuse.branches.{n}.0.{t}"),
    (r"fuse_layer\.aspp_modules\.(?P<n>[1-9])\.pointwise_conv\.(?P<t>(?:conv|bn)\..+)", "fuse.branches.{n}.1.{t}"),
    (r"fuse_layer\.bottleneck\.(?P<t>(?:conv|bn)\..+)", "fuse.bottleneck.{t}"),
    (r"(?:fuse_layer|linear_fuse|fusion_conv)\.(?P<t>(?:conv|bn)\..+)", "fuse.{t}"),
    (r"convs\.(?P<n>\d)\.(?P<t>(?:conv|bn)\..+)", "embed.{n}.{t}"),
    (r"aspp_modules\.(?P<n>\d)\.conv\.(?P<t>weight|bias)", "branches.{n}.{t}"),
)

CAFFE = "Caffe's ResNet (stride in the first convolution of a block, pooling that rounds up), which timm lacks"
# what is known and not read, by the name of a tensor
FOREIGN = (
    (r"classifier\.0\.convs\..*", f"PLCA's network: {CAFFE}; BGR images, classifiers without bias, classes in another order"),
    (r"target_(conv1|bn1|layer1)\..*", f"BCL's network: {CAFFE}; BGR images, first layers of its own for each domain"),
    (r"layer[56]\.conv2d_list\..*", f"a DeepLab-V2 of the AdaptSegNet line: {CAFFE}"),
    (r"network\.(encoder|upscale|out)\..*", "a network of VFM-UDA: a DINOv2 encoder with a decoder that this project lacks"),
    (r"segformer\.encoder\..*", "a SegFormer of `transformers`, whose names are others than its authors'"),
    (r"(decode_head\.)?(image_pool|c1_bottleneck|psp_modules|lateral_convs|fpn_convs)\..*",
     "another decoder (DeepLab-V3, PSPNet, UPerNet); read are those of DAFormer, HRDA, SegFormer and DeepLab-V2"),
)  # fmt: skip

MIT = {  # width of the first stage, blocks of the four -> size
    (32, (2, 2, 2, 2)): 0,
    (64, (2, 2, 2, 2)): 1,
    (64, (3, 4, 6, 3)): 2,
    (64, (3, 4, 18, 3)): 3,
    (64, (3, 8, 27, 3)): 4,
    (64, (3, 6, 40, 3)): 5,
}
RESNETS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}  # blocks of the four stages -> size
SEPARABLE = {3: (6, 12, 18)}  # 3x3 branches of DAFormer's fusion -> their dilations, which are not in a file
DILATIONS = {2: (6, 12), 4: (6, 12, 18, 24)}  # the same for DeepLab-V2
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SHORT = 200  # characters that are kept of a text of the file


@dataclass(frozen=True)
class Checkpoint:
    """What a published file holds.

    Attributes:
        state: tensors by name.
        meta: what it says about itself, shortened texts and numbers.
        classes: names of the classes, where it tells them.
    """

    state: State
    meta: dict[str, str]
    classes: tuple[str, ...]


def import_checkpoint(path: Path, like: Run, out: Path | None, *, network: str = "student") -> str:
    """Write a published checkpoint as a model file.

    Args:
        path: .pth, .pt or .safetensors, or the .tar.gz with one of them in which it was published.
        like: a run of the benchmark whose classes, image size and test protocol the model is for.
        out: the file to write; None: beside `path`, ending in .safetensors.
        network: `student` or `teacher`, where the file holds both.

    Returns:
        A few lines: what it is, what was dropped, the next command.

    Raises:
        UserError: nothing there, a damaged file, one that holds code or another network, tensors that no rule knows, other
            classes than those of the benchmark.
    """
    out = out or path.with_name(path.name.removesuffix(".gz").removesuffix(".tar")).with_suffix(".safetensors")
    if out.resolve() == path.resolve():
        raise UserError(f"{path}: the model file would replace it; say --out with another name")
    check_folder(out.parent)
    with unpacked(path) as file:
        found = read(file, path)
    check_familiar(found.state, path)
    prefix, state, dropped = network_in(found.state, network, path)
    state = parted(state)
    dropped += drop(state, (*UNUSED, *([UNUSED_CLASSIFIER] if "decode_head.linear_pred.weight" in state else [])))
    named = translated(state, path)
    family = family_of(found.state, prefix)
    model, classes = model_of(named, like, family, path), classes_of(named, like, found.classes, path)
    expected = build_model(model, len(classes)).state_dict()
    for name, value in expected.items():
        if name.endswith(COUNTERS):  # some files lack them, and nothing reads them in evaluation
            named.setdefault(name, torch.zeros_like(value))
    check_state(expected, named, path)
    origin = {
        "file": path.name,
        "sha256": file_hash(path),
        "family": family,
        "network": network if prefix else "the only one",
        "prefix": prefix,
        "tensors": len(state),
        "dropped": dict(sorted(dropped.items())),
        "meta": found.meta,
    }
    header = header_of(like) | {
        "method": METHOD,
        "seed": "none",
        "params_hash": "none",
        "classes": ",".join(classes.names),
        "colours": json.dumps(classes.colours),
        "model": json.dumps(essential(model) | {"weights": "none"}, sort_keys=True),
        "origin": json.dumps(origin, sort_keys=True),
    }
    save_model(out, {name: named[name] for name in expected}, header)
    left = "; ".join(f"{count} of {what}" for what, count in sorted(dropped.items())) or "nothing"
    return (
        f"{out}: {family}, {model.backbone} with head {model.head}, {len(classes)} classes, {origin['network']}; "
        f"{len(state)} tensors used, dropped: {left}\n"
        f"udaseg evaluate --model {out} --benchmark {like.benchmark_name}"
    )


# --- reading --------------------------------------------------------------------------------------------------------


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The checkpoint itself: `path`, or a temporary copy of the one in an archive.

    Raises:
        UserError: no such file, an empty one, a damaged archive, one with no checkpoint or several.
    """
    if not path.is_file():
        raise UserError(
            f"found nothing at {path}, expected a published checkpoint (.pth, or the .tar.gz that holds it)"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path}: found an empty file, expected a published checkpoint; download it again")
    if not tarfile.is_tarfile(path) or is_old_pickle(path):
        yield path
        return
    try:
        with tarfile.open(path) as archive, tempfile.TemporaryDirectory(dir=path.parent, prefix=".import-") as folder:
            inside = [m for m in archive if m.isfile() and m.name.endswith((".pth", ".pt", ".safetensors"))]
            inside = [m for m in inside if PurePosixPath(m.name).name == "latest.pth"] or inside
            if len(inside) != 1:
                names = ", ".join(m.name for m in inside[:3]) or "none"
                raise UserError(
                    f"{path}: found the checkpoints {names} in it, expected one; unpack it and name the file"
                )
            source = archive.extractfile(inside[0])
            assert source is not None  # it is a plain file
            copy = Path(folder) / f"checkpoint{PurePosixPath(inside[0].name).suffix}"
            with copy.open("wb") as target:
                shutil.copyfileobj(source, target)
            yield copy
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged or incomplete archive ({error}); download it again") from None


def is_old_pickle(path: Path) -> bool:
    """Whether it is a file of the first PyTorch versions, a tar of pickles."""
    with tarfile.open(path) as archive:
        first = archive.next()
        return first is not None and first.name in ("sys_info", "pickle", "storages", "tensors")


def read(file: Path, path: Path) -> Checkpoint:
    """Args:
    file: to read.
    path: what messages call it.
    """
    if file.suffix == ".safetensors":
        state, header = load_model_file(file)
        if all(key in header for key in OURS):
            raise UserError(f"{path}: is a model file of udaseg already; `udaseg evaluate --model {path}` scores it")
        return Checkpoint(state, shortened(header), ())
    if zipfile.is_zipfile(file):  # PyTorch compares no checksum
        with zipfile.ZipFile(file) as archive:
            if (bad := member_damaged(archive)) is not None:
                raise UserError(f"{path}: damaged ({bad} does not fit its checksum); download it again")
    content = load_pickled(file, path)
    meta = content.get("meta") if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {str(n).removeprefix("module."): v for n, v in state.items() if isinstance(v, Tensor)} if state else {}
    if not tensors:
        raise UserError(f"{path}: found no tensors, expected a state dictionary (possibly under 'state_dict')")
    told = meta.get("CLASSES") or (meta.get("dataset_meta") or {}).get("classes") or ()
    return Checkpoint(tensors, shortened(meta), tuple(str(name) for name in told))


def member_damaged(archive: zipfile.ZipFile) -> str | None:
    """The first member that does not fit its checksum."""
    try:
        return archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        return " ".join(str(error).split())[:80]


def shortened(meta: Mapping[Any, Any]) -> dict[str, str]:
    """The texts and numbers of `meta`, in one line each."""
    kept = {str(k): " ".join(str(v).split()) for k, v in meta.items() if isinstance(v, str | int | float)}
    return {k: v if len(v) <= SHORT else f"{v[:SHORT]} ... ({len(v)} characters)" for k, v in sorted(kept.items())}


def network_in(state: State, network: str, path: Path) -> tuple[str, State, Counter[str]]:
    """The prefix and the tensors (without it) of one network of a file; and what else lies there, counted by rule."""
    state, dropped = dict(state), Counter[str]()
    if not any(name.startswith(STUDENT) for name in state):  # one network alone
        if network == "teacher":
            raise UserError(
                f"{path}: found one network, expected a teacher beside it (names `{TEACHER}...`); leave out --teacher"
            )
        dropped += drop(state, BESIDE)
        return "", state, dropped
    dropped += drop(state, BESIDE)
    wanted, other = (STUDENT, TEACHER) if network == "student" else (TEACHER, STUDENT)
    if not any(name.startswith(wanted) for name in state):
        raise UserError(f"{path}: found no teacher (names `{TEACHER}...`), expected one; leave out --teacher")
    dropped += drop(state, ((rf"{re.escape(other)}.*", f"the {'teacher' if network == 'student' else 'student'}"),))
    strangers = [name for name in state if not name.startswith(wanted)]
    if strangers:
        raise unknown(strangers, path)
    return wanted, {name.removeprefix(wanted): value for name, value in state.items()}, dropped


def drop(state: State, rules: Rules) -> Counter[str]:
    """Take what the rules name out of `state`; how many tensors of each."""
    dropped: Counter[str] = Counter()
    for name in list(state):
        if why := next((why for pattern, why in rules if re.fullmatch(pattern, name)), None):
            dropped[why] += 1
            del state[name]
    return dropped


# --- names ----------------------------------------------------------------------------------------------------------


def parted(state: State) -> State:
    """Query, key and value of mmsegmentation's MiT in two tensors, as the official one has them."""
    out: State = {}
    for name, value in state.items():
        match = re.fullmatch(r"(backbone\.layers\.\d\.1\.\d+\.attn)\.attn\.in_proj_(weight|bias)", name)
        if match and value.shape[0] % 3 == 0:
            third = value.shape[0] // 3
            out[f"{match[1]}.q.{match[2]}"], out[f"{match[1]}.kv.{match[2]}"] = value[:third], value[third:]
        else:
            out[name] = value
    return out


def translated(state: State, path: Path) -> State:
    """Names of one network -> ours, values in our shapes.

    Raises:
        UserError: a tensor that no rule knows, two for one place.
    """
    out: State = {}
    unread: list[str] = []
    for name, value in state.items():
        if (ours := our_name(name)) is None:
            unread.append(name)
        elif ours in out:
            raise UserError(
                f"{path}: {name} and another tensor would both become {ours}; expected the heads of one network"
            )
        else:
            out[ours] = in_our_shape(name, ours, value)
    if unread:
        raise unknown(unread, path)
    if not any(name.startswith("head.") for name in out) or not any(name.startswith("encoder.") for name in out):
        raise UserError(f"{path}: found no encoder with a decoder in it, expected a whole network (docs/models.md)")
    if (
        "decode_head.linear_c1.proj.weight" in state and "head.fuse.conv.weight" in out
    ):  # SegFormer's stacks stages from last to first
        parts = out["head.fuse.conv.weight"].chunk(4, dim=1)
        out["head.fuse.conv.weight"] = torch.cat(parts[::-1], dim=1)
    return out


def our_name(name: str) -> str | None:
    part, _, rest = name.partition(".")
    if part == "backbone":
        if mit := mit_to_timm(by_rule(rest, MMSEG_MIT) or rest):
            return f"encoder.body.{mit}"
        resnet = by_rule(rest, RESNET)
        return resnet and f"encoder.body.{resnet}"
    if part != "decode_head":
        return None
    for inside, ours in (("head.", "head."), ("scale_attention.", "attention_head."), ("", "head.")):
        if rest.startswith(inside) and (found := by_rule(rest.removeprefix(inside), HEAD)):
            return ours + found
    return None


def by_rule(name: str, rules: Rules) -> str | None:
    for pattern, target in rules:
        if match := re.fullmatch(pattern, name):
            parts = match.groupdict()
            n = int(parts.get("n") or 0)
            return target.format(**{**parts, "i": n - 1, "j": n + 1})
    return None


def in_our_shape(name: str, ours: str, value: Tensor) -> Tensor:
    if ".embed." in ours and value.dim() == 2:  # a linear layer per pixel, which is a 1x1 convolution
        return value[:, :, None, None]
    if ".ffn.layers." in name and value.dim() == 4 and value.shape[2:] == (1, 1):  # and the other way round
        return value[:, :, 0, 0]
    return value


def check_familiar(state: State, path: Path) -> None:
    """Raises UserError for what is known and not read."""
    for pattern, what in FOREIGN:
        if any(re.fullmatch(rf"(model\.)?{pattern}", name) for name in state):
            raise UserError(f"{path}: holds {what}; such files cannot be imported (docs/models.md)")
    if any(re.match(r"(backbone\.)?(patch_embed1|block1|layer1)\.", name) for name in state) and not any(
        "head" in name for name in state
    ):
        raise UserError(
            f"{path}: holds an encoder without a decoder, expected a whole network; name it in `weights` of a model block to start from it"
        )


def unknown(names: list[str], path: Path) -> UserError:
    """What a file is refused with that holds tensors which no rule knows."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return UserError(
        f"{path}: found the tensor {names[0]}{more}, which no rule knows; expected a file of DAFormer, DACS, HRDA, MIC, SePiCo, PiPa, "
        f"CLUDA or SegFormer (docs/models.md)"
    )


def family_of(state: State, prefix: str) -> str:
    """Whose file it is, as far as the names tell."""

    def has(pattern: str) -> bool:
        return any(re.match(rf"{re.escape(prefix)}{pattern}", name) for name in state)

    resolutions = "HRDA" if has(r"decode_head\.scale_attention\.") else ""
    if has(r"decode_head\.feat_weighter\."):
        return "CLUDA"
    if has(r"(cls_head|proj_head)\."):
        return f"PiPa on {resolutions or 'DAFormer'}"
    if prefix and has(r"auxiliary_head\."):
        return "SePiCo"
    if resolutions:
        return "HRDA or MIC"
    if has(r"decode_head\.(linear_|fusion_conv)"):
        return "SegFormer"
    deeplab = has(r"decode_head\.aspp_modules\.")
    if not prefix:
        return "DeepLab-V2 of mmsegmentation" if deeplab else "a network of mmsegmentation"
    return "DACS or another with DeepLab-V2" if deeplab else "DAFormer or another on it"


# --- the network ----------------------------------------------------------------------------------------------------


def model_of(state: State, like: Run, family: str, path: Path) -> Model:
    """The model block that names and shapes tell. What they do not (dilations, detail size) is the papers' or the benchmark's.

    Raises:
        UserError: an encoder or head of another size, two resolutions where the benchmark has one or the other way round.
    """
    branches = [name for name in state if re.fullmatch(r"head\.branches\.\d\.weight", name)]
    separable = [name for name in state if re.fullmatch(r"head\.fuse\.branches\.[1-9]\.0\.conv\.weight", name)]
    block: dict[str, Any] = {"head": "segformer", "dilations": (), "width": 256}
    if branches:
        block |= {"head": "deeplabv2", "dilations": known(DILATIONS, len(branches), "dilated classifiers", path)}
    elif separable:
        block |= {"head": "daformer", "dilations": known(SEPARABLE, len(separable), "dilated branches", path)}
    if not branches:
        normalised = "head.embed.0.conv.weight" in state
        sizes = [state.get(f"head.{name}.weight") for name in ("classify", "embed.0.conv" if normalised else "embed.0")]
        if any(size is None or size.dim() < 2 for size in sizes):
            raise UserError(
                f"{path}: found a decoder without its classifier or embedding, expected a whole one; download it again"
            )
        width, embedding = sizes[0].shape[1], sizes[1].shape[0]  # type: ignore[union-attr]
        block |= {"width": width, "embedding": embedding if embedding != width else None, "embedding_norm": normalised}
    two, hrda = any(name.startswith("attention_head.") for name in state), like.benchmark.model.hrda
    if two != (hrda is not None):
        found, other = ("two resolutions (HRDA)", "one") if two else ("one resolution", "two (HRDA)")
        raise UserError(
            f"{path}: holds a network of {found}, {like.benchmark_name} has {other}; say --like with a benchmark of its kind, "
            f"as gta2cityscapes{'-hrda' if two else ''}"
        )
    if hrda and family == "CLUDA":
        hrda = dataclasses.replace(hrda, fusion="cluda")
    return Model(
        **encoder_of(state, path), **block, **IMAGENET, dropout=0.1, weights="none", batch_norm="train", hrda=hrda
    )


def encoder_of(state: State, path: Path) -> dict[str, Any]:
    """Backbone and its arguments."""
    names = [name.removeprefix("encoder.body.") for name in state]
    if "encoder.body.patch_embed.proj.weight" in state:
        depths = tuple(len({n.split(".")[2] for n in names if n.startswith(f"stages_{i}.blocks.")}) for i in range(4))
        size = known(
            MIT, (state["encoder.body.patch_embed.proj.weight"].shape[0], depths), "width and blocks of a MiT", path
        )
        return {"backbone": f"pvt_v2_b{size}", "backbone_args": {"mlp_ratios": [4, 4, 4, 4], "drop_path_rate": 0.1}}
    depths = tuple(len({n.split(".")[1] for n in names if n.startswith(f"layer{i}.")}) for i in range(1, 5))
    size = known(RESNETS, depths, "blocks of a ResNet", path)
    deep = "c" if "encoder.body.conv1.0.weight" in state else ""
    return {"backbone": f"resnet{size}{deep}", "backbone_args": {"output_stride": 8}}


def known(table: Mapping[Any, Any], key: object, what: str, path: Path) -> Any:
    if key not in table:
        raise UserError(
            f"{path}: found {key} for the {what}, expected one of {', '.join(map(str, table))}; incomplete, or another network"
        )
    return table[key]


def classes_of(state: State, like: Run, told: tuple[str, ...], path: Path) -> ClassSpace:
    """The benchmark's classes; all 19 of Cityscapes where the benchmark is scored over fewer of them and the network has them all.

    Raises:
        UserError: another number of classes, or other names where the file tells them.
    """
    classifier = next(
        (f"head.{name}.weight" for name in ("classify", "branches.0") if f"head.{name}.weight" in state), ""
    )
    count, classes = state[classifier].shape[0], like.classes
    if count == len(NAMES) != len(classes) and set(classes.names) <= set(NAMES):
        classes = class_space("cityscapes19")
    if count != len(classes):
        raise UserError(
            f"{path}: found {count} classes, {like.benchmark_name} has {len(classes)}; say --like with a benchmark of its classes"
        )
    for place, (theirs, ours) in enumerate(zip(told, classes.names, strict=False)):
        if theirs.lower() != ours:
            raise UserError(
                f"{path}: class {place} is {theirs!r}, that of {like.benchmark_name} is {ours!r}; say --like with a benchmark of its "
                f"classes, in their order"
            )
    return classes
