"""Encoders: any timm `features_only` model as up to four feature maps, high to low resolution.

MiT is timm's pvt_v2 with MLP ratio 4, DeepLab-V2's ResNet-101 its resnet101c: docs/models.md.
shapes: B images, c_i channels of stage i, H W image size, s_i stride of stage i
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import get_pretrained_cfg, group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from udaseg.errors import UserError
from udaseg.losses.segmentation import resized

STAGES = 4

# What families of timm need to take images of any size.
ANY_SIZE: dict[str, dict[str, Any]] = {"swin": {"strict_img_size": False}}

# Families of timm that fail unless height and width are multiples of this number. Plain ViTs have their patch size.
SIZE_MULTIPLES = {"swin": 4, "sam2_hiera": 32, "hrnet": 32}


class Encoder(nn.Module):
    """A timm network that returns its (last) four feature maps in NCHW.

    Images of any size are accepted. Where the network demands a multiple of some number (`multiple` > 1: the patch size
    of a ViT), the image is resized bilinearly to the next multiple. Padding would show the network a border and leave
    a map that covers more than the image; a resized image keeps map and label aligned.

    Attributes:
        channels: channels of every stage.
        strides: stride of every stage, nominal (a plain ViT has the same in all).
        multiple: height and width are brought to multiples of this number.
    """

    def __init__(self, name: str, args: Mapping[str, Any], positions: str = "timm") -> None:
        """Builds the network with random weights.

        Args:
            name: timm name without a weights tag.
            args: arguments of the timm constructor.
            positions: how a plain ViT's position table is resized: `timm`, or `hub` as DINOv2's own code does it.

        Raises:
            UserError: unknown name, arguments that this network does not take, one that takes images of one size alone, or
                `hub` for a network without such a table.
        """
        super().__init__()
        self.body = _create(name, args)
        if positions == "hub":
            _use_hub_positions(self.body, name)
        info = self.body.feature_info
        self.channels: list[int] = list(info.channels())[-STAGES:]
        self.strides: list[int] = [int(s) for s in info.reduction()][-STAGES:]
        self.multiple = self.strides[0] if _is_plain_vit(self.body) else _size_multiple(name)
        self._channels_last = getattr(self.body, "output_fmt", None) == "NHWC"  # swin and a few others
        if _has_fixed_input(name) and "img_size" not in args:
            self._check_any_size(name)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, c_i, H/s_i, W/s_i) of normalised images (B, 3, H, W)."""
        height, width = (-(-side // self.multiple) * self.multiple for side in images.shape[-2:])
        stages = list(self.body(resized(images, (height, width))))[-STAGES:]
        return [stage.permute(0, 3, 1, 2).contiguous() for stage in stages] if self._channels_last else stages

    def _check_any_size(self, name: str) -> None:
        """timm knows which networks were made for one input size; whether they take others, a small image tells."""
        training = self.training
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(1, 3, 96, 160))
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"model.backbone: {name} takes images of one size alone ({str(error).splitlines()[0][:80]}), expected one for any "
                f"size, as pvt_v2, resnet, convnext, swin or vit; or fix it: backbone_args: {{img_size: [height, width]}} of the crop"
            ) from None
        self.train(training)

    def layers(self) -> dict[str, int]:
        """Parameter name -> depth from the stem (0), as timm groups them for layer-wise rate decay.

        Raises:
            UserError: a network that timm does not group.
        """
        grouped: Any = getattr(self.body, "model", None)
        if not hasattr(grouped, "group_matcher"):
            raise UserError(
                "optimizer.layer_decay: found a network without numbered layers, expected a plain ViT; say layer_decay: 1.0"
            )
        found = group_parameters(grouped, grouped.group_matcher(coarse=False), reverse=True)
        return {f"body.model.{name}": depth for name, depth in found.items()}


class HubPositions(VisionTransformer):
    """A ViT whose position table is resized as DINOv2's own code does: without antialias, by the factor (side + 0.1) / table side.

    timm resizes to the exact side, with antialias: the table then differs by some percent. DINOv2's networks with register
    tokens were made with timm's way, which they keep.
    """

    def _pos_embed(self, x: Tensor) -> Tensor:
        if self.reg_token is not None:
            return super()._pos_embed(x)
        assert self.pos_embed is not None and self.cls_token is not None
        batch, height, width, _ = x.shape
        whole: Tensor = self.pos_embed
        rows, columns = self.patch_embed.grid_size
        ahead, table = whole[:, : self.num_prefix_tokens], whole[:, self.num_prefix_tokens :]
        if (height, width) != (rows, columns):
            grid = table.float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
            factors = ((height + 0.1) / rows, (width + 0.1) / columns)
            grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
            table = grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), x.flatten(1, 2)], dim=1)
        return self.pos_drop(tokens + torch.cat([ahead, table], dim=1))


def _use_hub_positions(body: Any, name: str) -> None:
    vit = getattr(body, "model", None)
    if type(vit) is not VisionTransformer or vit.pos_embed is None or vit.cls_token is None or not vit.dynamic_img_size:
        raise UserError(f"model.positions: found hub for {name}, expected timm: it has no position table like DINOv2's")
    vit.__class__ = HubPositions  # a copy of the network keeps it, as it would not keep a replaced method


def _create(name: str, args: Mapping[str, Any]) -> Any:
    if "." in name or not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.4)
        raise UserError(
            f"model.backbone: found {name!r}, expected a timm model name without a tag; "
            f"nearest: {', '.join(near) or 'none'} (python -c 'import timm; print(timm.list_models())' lists all)"
        )
    # YAML knows lists only; some timm constructors compare their arguments with tuples.
    arguments: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    defaults = next((given for family, given in ANY_SIZE.items() if name.startswith(family)), {})
    arguments = defaults | arguments
    try:
        body = _features_only(name, arguments)
        if _is_plain_vit(body) and "out_indices" not in arguments:
            # timm's default is the last three blocks; heads want four maps from evenly spaced depths.
            depth = len(body.model.blocks)
            arguments["out_indices"] = tuple(depth * (i + 1) // STAGES - 1 for i in range(STAGES))
            try:
                body = _features_only(name, {"dynamic_img_size": True} | arguments)
            except TypeError:  # a relative of the ViT that has no such argument
                body = _features_only(name, arguments)
    except (TypeError, ValueError, AttributeError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
        raise UserError(
            f"model.backbone_args: found {arguments}, which timm's {name} does not take ({error}); "
            "expected arguments of its constructor: remove or correct the one named"
        ) from error
    return body


def _features_only(name: str, arguments: dict[str, Any]) -> Any:
    # timm declares the result as a plain module; which class it really is depends on the network.
    return timm.create_model(name, pretrained=False, features_only=True, **arguments)


def _has_fixed_input(name: str) -> bool:
    config = get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


def _is_plain_vit(body: Any) -> bool:
    """One stride throughout, and transformer blocks in one list."""
    return len(set(body.feature_info.reduction())) == 1 and hasattr(getattr(body, "model", None), "blocks")


def _size_multiple(name: str) -> int:
    return next((multiple for family, multiple in SIZE_MULTIPLES.items() if name.startswith(family)), 1)


def is_convolutional(encoder: nn.Module) -> bool:
    """Whether no part of it is called attention, by timm's names: then maps are best kept with their channels last on a GPU."""
    return not any("attn" in name for name, _ in encoder.named_modules())


class Remade(nn.Module):
    """A block that keeps nothing but its input for the backward pass, where it is made again (activation checkpointing).

    Mixed into the class of a block, so that names of parameters and copies stay what they were. Dropout and drop-path draw the
    same, and batch normalisation moves its running statistics in the first pass alone: the numbers are those without it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), statistics_left_alone(self)

        return checkpoint(super().forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def statistics_left_alone(module: nn.Module) -> Iterator[None]:
    """Batch normalisation below `module` adds the statistics of the batch to copies of the running ones, which are thrown away."""
    moving = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    held = [dict(m._buffers) for m in moving]
    for m in moving:
        m._buffers.update({name: value if value is None else value.clone() for name, value in m._buffers.items()})
    try:
        yield
    finally:
        for m, buffers in zip(moving, held, strict=True):
            m._buffers.update(buffers)


REMADE: dict[type[nn.Module], type[nn.Module]] = {}  # one for each class, so that blocks of one class stay such


def remake(module: nn.Module) -> None:
    """Let the `blocks` of an encoder be `Remade` ones, in place."""
    for block in blocks(module):
        kind = type(block)
        block.__class__ = REMADE.setdefault(kind, type(f"Remade{kind.__name__}", (Remade, kind), {}))


def blocks(module: nn.Module) -> list[nn.Module]:
    """The residual or transformer blocks of an encoder: the elements of its innermost lists of composite modules of one class."""
    found: list[nn.Module] = []
    for child in module.children():
        inner = blocks(child)
        found += inner
        if isinstance(child, nn.Sequential | nn.ModuleList) and not inner:
            kinds = {type(each) for each in child}
            if len(kinds) == 1 and any(True for each in child for _ in each.children()):
                found += child
    return found
