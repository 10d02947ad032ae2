"""A trained model as programs that run without this package: torch.export (.pt2) and ONNX, checked against the model.

A program takes images (B, 3, H, W) uint8 RGB and gives logits (B, K, H, W) float32: the normalisation is inside, the resize to
the size of training and the choice of the class are the caller's (docs/use.md).
shapes: B images, K classes, H W image size
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, Conv2dSame, to_2tuple
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from udaseg.artifacts import check_folder, writing
from udaseg.errors import UserError
from udaseg.models import Segmenter
from udaseg.models.trained import Trained, load
from udaseg.params import Size

log = logging.getLogger("udaseg")
Shape = tuple[int, int, int]  # B, H, W
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # largest difference of a logit from the model's, as a share of the largest logit
LEAST = 64  # side, for programs of free size: encoders divide by 32, and a map of one pixel is a special case
ODD = ((2, 97, 131), (3, 65, 64))  # what these are tried at, besides the size asked for
ADVICE = "nothing was written; use the pinned versions of torch, onnxscript and onnxruntime"


def export(model: Path, out: Path | None, *, size: Size | None) -> str:
    """Write `<model>-<size>.{pt2,onnx}` (one image of this size) and `<model>.{pt2,onnx}` (any batch and size).

    Nothing is written unless all programs agree with the model.

    Args:
        model: a model.safetensors of this program.
        out: folder; None: that of the model.
        size: of the input; None: as in training.

    Returns:
        One line for each program: the file, and how far it is from the model.

    Raises:
        UserError: a missing package, a model that cannot be used, a program that differs from the model.
    """
    need(PACKAGES)
    folder = out or model.parent
    check_folder(folder)
    trained = load(model)
    size = size or trained.size
    fixed = [(1, size.height, size.width)]
    several = [(2, max(size.height, LEAST), max(size.width, LEAST)), *ODD]
    programs: dict[str, bytes] = {}
    lines = []
    for name, shapes, free in ((f"{model.stem}-{size}", fixed, False), (model.stem, several, True)):
        try:
            made = program_of(trained, shapes[0], free=free)
        except FixedOnly as reason:
            log.info("only programs of fixed size: %s", reason)
            continue
        for ending, blob in made.items():
            share = compare_program(f"{name}{ending}", runner(ending, blob), trained.student, shapes)
            tried = ", ".join(f"{b}x3x{h}x{w}" for b, h, w in shapes)
            lines.append(f"{name}{ending}: within {share:.1e} of the model's largest logit, tried at {tried}")
        programs |= {f"{name}{ending}": blob for ending, blob in made.items()}
    for name, blob in programs.items():
        with writing(folder / name) as temporary:
            temporary.write_bytes(blob)
    return "\n".join(f"{folder}/{line}" for line in lines)


def need(packages: Iterable[str]) -> None:
    """Raises UserError: a package is not installed."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"export needs the package {name}, which is not installed: pip install 'udaseg[export]'"
            ) from None


# --- programs -------------------------------------------------------------------------------------------------------


class FixedOnly(Exception):
    """Why a network has no program of free size."""


class Program(nn.Module):
    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, K, H, W) logits."""
        return self.network.predict(self.network.normalise(images), (images.shape[-2], images.shape[-1]))


class Same(nn.Module):
    """timm's layers with TensorFlow's padding, in integers: timm rounds fractions, which a program of free size cannot hold."""

    def __init__(self, layer: Conv2dSame | AvgPool2dSame) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        kernel, stride, dilation = geometry(layer)
        pads = []
        for side, k, s, d in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], dilation[::-1], strict=True):
            total = (side - 1) // s * s + d * (k - 1) + 1 - side
            pads += [total // 2, total - total // 2]
        x = F.pad(x, pads)
        if isinstance(layer, AvgPool2dSame):
            return F.avg_pool2d(x, kernel, stride, 0, layer.ceil_mode, layer.count_include_pad)
        return F.conv2d(x, layer.weight, layer.bias, stride, 0, dilation, layer.groups)


def geometry(layer: Conv2dSame | AvgPool2dSame) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and dilation, each of height and width."""
    dilation = getattr(layer, "dilation", 1)  # pooling has none
    return to_2tuple(layer.kernel_size), to_2tuple(layer.stride), to_2tuple(dilation)


def exportable(network: Segmenter) -> Segmenter:
    """A copy whose padding can be traced."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            # a stride beyond the kernel's reach, where padding could be negative, stays timm's
            if isinstance(child, Conv2dSame | AvgPool2dSame) and all(
                d * (k - 1) + 1 >= s for k, s, d in zip(*geometry(child), strict=True)
            ):
                setattr(parent, name, Same(child))
    return network


def program_of(trained: Trained, shape: Shape, *, free: bool) -> dict[str, bytes]:
    """The program as bytes, by file ending. Both hold the model file's header.

    Raises:
        FixedOnly: `free`, and the network cannot be traced so.
        UserError: it cannot be traced at all.
    """
    network, (batch, height, width) = exportable(trained.student), shape
    example = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    if free and network.multiple > 1:
        raise FixedOnly(f"this network resizes images to multiples of {network.multiple}, which a program cannot ask")
    dims = {0: Dim("batch", min=1), 2: Dim("height", min=LEAST), 3: Dim("width", min=LEAST)}
    try:
        return convert(network, example, {"images": dims} if free else None, trained.header)
    except Exception as error:  # whatever torch or the encoder says, the answer is the same
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        if free:
            raise FixedOnly(f"this encoder cannot be traced for any size ({reason})") from error
        raise UserError(f"the network cannot be traced at {width}x{height} ({reason}); {ADVICE}") from error


def convert(
    network: Segmenter, example: Tensor, free: dict[str, dict[int, Dim]] | None, header: dict[str, str]
) -> dict[str, bytes]:
    with torch.no_grad(), quiet():
        program = torch.export.export(
            Program(network).eval(),
            (example,),
            dynamic_shapes=free,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"udaseg.json": json.dumps(header, sort_keys=True)})
        onnx = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=free,
        )
        assert onnx is not None
        onnx.model.metadata_props.update(header)
        return {".pt2": buffer.getvalue(), ".onnx": onnx.model_proto.SerializeToString(deterministic=True)}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own workings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


# --- the check ------------------------------------------------------------------------------------------------------


def runner(ending: str, blob: bytes) -> Callable[[Tensor], Tensor]:
    """What runs a program: torch, or onnxruntime on the CPU."""
    if ending == ".pt2":
        program: ExportedProgram = torch.export.load(io.BytesIO(blob))
        module = program.module()
        return lambda images: module(images)
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(blob, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def compare_program(name: str, run: Callable[[Tensor], Tensor], network: Segmenter, shapes: Iterable[Shape]) -> float:
    """The largest difference from the network on random images, as a share of the largest logit.

    Raises:
        UserError: more than TOLERANCE, or the program does not run.
    """
    worst = 0.0
    for batch, height, width in shapes:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
        expected = network.predict(network.normalise(images), (height, width))
        size = f"{batch}x3x{height}x{width}"
        try:
            found = run(images)
        except Exception as error:  # of torch or onnxruntime, which share no type
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{name}: cannot run at {size} ({reason}); {ADVICE}") from error
        share = float((found - expected).abs().max() / expected.abs().max())
        if not share <= TOLERANCE:  # nor NaN
            raise UserError(
                f"{name}: differs from the model by {share:.1e} of its largest logit at {size}, expected at most "
                f"{TOLERANCE:.0e}; {ADVICE}"
            )
        worst = max(worst, share)
    return worst
