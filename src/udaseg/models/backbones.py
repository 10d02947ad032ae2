"""Encoders: any timm `features_only` model as up to four feature maps, high to low resolution.

MiT is timm's pvt_v2 with MLP ratio 4, DeepLab-V2's ResNet-101 its resnet101c: docs/models.md.
shapes: B images, c_i channels of stage i, H W image size, s_i stride of stage i
"""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from udaseg.errors import UserError
from udaseg.losses.segmentation import resized

STAGES = 4

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

    def __init__(self, name: str, args: Mapping[str, Any]) -> None:
        """Builds the network with random weights.

        Args:
            name: timm name without a weights tag.
            args: arguments of the timm constructor.

        Raises:
            UserError: unknown name, or arguments that this network does not take.
        """
        super().__init__()
        self.body = _create(name, args)
        info = self.body.feature_info
        self.channels: list[int] = list(info.channels())[-STAGES:]
        self.strides: list[int] = [int(s) for s in info.reduction()][-STAGES:]
        self.multiple = self.strides[0] if _is_plain_vit(self.body) else _size_multiple(name)
        self._channels_last = getattr(self.body, "output_fmt", None) == "NHWC"  # swin and a few others

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, c_i, H/s_i, W/s_i) of normalised images (B, 3, H, W)."""
        height, width = (-(-side // self.multiple) * self.multiple for side in images.shape[-2:])
        stages = list(self.body(resized(images, (height, width))))[-STAGES:]
        return [stage.permute(0, 3, 1, 2).contiguous() for stage in stages] if self._channels_last else stages


def _create(name: str, args: Mapping[str, Any]) -> Any:
    if "." in name or not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.4)
        raise UserError(
            f"model.backbone: found {name!r}, expected a timm model name without a tag; "
            f"nearest: {', '.join(near) or 'none'} (python -c 'import timm; print(timm.list_models())' lists all)"
        )
    # YAML knows lists only; some timm constructors compare their arguments with tuples.
    arguments: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    try:
        body = _features_only(name, arguments)
        if _is_plain_vit(body) and "out_indices" not in arguments:
            # timm's default is the last three blocks; heads want four maps from evenly spaced depths.
            depth = len(body.model.blocks)
            arguments["out_indices"] = tuple(depth * (i + 1) // STAGES - 1 for i in range(STAGES))
            arguments.setdefault("dynamic_img_size", True)
            body = _features_only(name, arguments)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"model.backbone_args: found {arguments}, which timm's {name} does not take ({error}); "
            "expected arguments of its constructor: remove or correct the one named"
        ) from error
    return body


def _features_only(name: str, arguments: dict[str, Any]) -> Any:
    # timm declares the result as a plain module; which class it really is depends on the network.
    return timm.create_model(name, pretrained=False, features_only=True, **arguments)


def _is_plain_vit(body: Any) -> bool:
    """One stride throughout, and transformer blocks in one list."""
    return len(set(body.feature_info.reduction())) == 1 and hasattr(getattr(body, "model", None), "blocks")


def _size_multiple(name: str) -> int:
    return next((multiple for family, multiple in SIZE_MULTIPLES.items() if name.startswith(family)), 1)
