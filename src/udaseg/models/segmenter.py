"""The segmentation network: student and teacher are both one of these.

Which network of which paper this is: docs/models.md.
shapes: B images, K classes, H W image size, h w map size at head stride
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from udaseg.errors import UserError
from udaseg.losses.segmentation import cross_entropy, fp32, resized
from udaseg.models.backbones import Encoder
from udaseg.models.heads import DeepLabV2Head, FusionHead, sum_of_branches
from udaseg.models.spec import ModelSpec

# from the context branch's logits (B, K, h, w) to a box (B, 4) in each image: top, left, bottom, right in pixels
Boxes = Callable[[Tensor], Tensor]
Draw = Callable[[int], int]  # n -> a random number of 0 .. n - 1
HEADS = ("deeplabv2", "daformer", "segformer")


@dataclass
class Output:
    """What one pass of a segmenter returns.

    Attributes:
        logits: (B, K, h, w) at head stride, not upsampled.
        stages: encoder feature maps (B, c_i, h_i, w_i), high to low resolution.
        decoder: fused decoder map (B, width, h, w) before the classifier; None for deeplabv2.
        branches: deeplabv2's parallel convolutions, side by side (B, branches * K, h, w), whose sum is the logits; else None.

    Multi-resolution networks (models/hrda.py) have more. Their `stages`, `decoder` and `branches` are those of the context branch,
    their `logits` the fused ones.

    Attributes:
        detail: what the network says of the detail crops; None where it looked at the whole image in windows.
        boxes: of an output of detail crops: (B, 4) where they lie in the images, as top, left, bottom, right in pixels.
        fusion: what the logits were fused from.
    """

    logits: Tensor
    stages: list[Tensor]
    decoder: Tensor | None
    branches: Tensor | None = None
    detail: Output | None = None
    boxes: Tensor | None = None
    fusion: Fusion | None = None

    @property
    def feature(self) -> Tensor:
        """The map (B, D, h, w) that is classified: the fused decoder map, for deeplabv2 the last stage."""
        return self.stages[-1] if self.decoder is None else self.decoder


@dataclass
class Fusion:
    """Two resolutions before they become one: docs/methods/hrda.md.

    Attributes:
        context: (B, K, h, w) logits of the reduced images.
        attention: (B, K, h, w) share of the detail logits, 0 where no detail crop lies.
        detail: (B, K, 2h, 2w) detail logits at their place in the image, 0 elsewhere.
    """

    context: Tensor
    attention: Tensor
    detail: Tensor


class Segmenter(nn.Module):
    """A timm encoder, a decoder head and the normalisation that belongs to the weights.

    Attributes:
        stage_channels, stage_strides: channels and nominal stride of `Output.stages`.
        reduction: how many times smaller the images are that the stages are made of.
        decoder_channels: channels of `Output.decoder`; None for deeplabv2.
        mean, std: (3, 1, 1), for 0..1 RGB; not part of the state.
    """

    mean: Tensor
    std: Tensor
    reduction = 1
    detail_window: tuple[int, int] | None = None  # (height, width) of the detail crops of multi-resolution networks

    def __init__(self, spec: ModelSpec, classes: int) -> None:
        """Builds the network with random weights.

        Args:
            spec: the model block of params.yaml.
            classes: K.

        Raises:
            UserError: unknown backbone, backbone arguments, head or batch_norm.
        """
        super().__init__()
        _check(spec)
        self.encoder = Encoder(spec.backbone, spec.backbone_args, spec.positions)
        self.frozen = spec.frozen
        if self.frozen:
            self.encoder.requires_grad_(False)
        self.stage_channels = self.encoder.channels
        self.stage_strides = self.encoder.strides
        self.head: FusionHead | DeepLabV2Head
        self.decoder_channels: int | None
        if spec.head == "deeplabv2":
            self.head = DeepLabV2Head(self.stage_channels[-1], classes, spec.dilations)
            self.decoder_channels = None
        else:
            dilations = spec.dilations if spec.head == "daformer" else ()
            self.head = FusionHead(
                *(self.stage_channels, self.stage_strides[0], classes, spec.width, dilations, spec.dropout),
                embedding=spec.embedding,
                embedding_norm=spec.embedding_norm,
            )
            self.decoder_channels = spec.width
        self.freeze_statistics = spec.batch_norm == "eval"
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """As usual, but a frozen encoder stays in evaluation mode, and with `batch_norm: eval` its BatchNorm keeps its statistics.

        Its scale and shift are still trained. Weights whose statistics do not fit small batches need this.
        """
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        elif mode and self.freeze_statistics:
            for module in self.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """Normalises RGB images (B, 3, H, W), uint8 in 0..255 or floating point in 0..1."""
        unit = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        return (unit - self.mean) / self.std

    def forward(self, images: Tensor, *, boxes: Tensor | Boxes | None = None) -> Output:
        """One pass.

        Args:
            images: (B, 3, H, W), normalised; any size. Encoders that demand a multiple of some number resize inside
                (`Encoder.multiple`); maps then cover the whole image all the same.
            boxes: where the detail crops of multi-resolution networks lie; this network has no detail branch.
        """
        return self.context(images)

    def context(self, images: Tensor) -> Output:
        """The pass without a detail branch: all that most networks have."""
        return self.decoded(self.stages(images))

    def decoded(self, stages: list[Tensor]) -> Output:
        """The head alone."""
        if isinstance(self.head, DeepLabV2Head):
            branches = self.head.branch_maps(stages[-1])
            return Output(sum_of_branches(branches), stages, None, torch.cat(branches, dim=1))
        logits, decoder = self.head(stages)
        return Output(logits, stages, decoder)

    def random_box(self, draw: Draw, size: tuple[int, int]) -> Tensor | None:
        """A place for the detail crop in images of `size` = (H, W), for `forward`; None: this network has no detail branch."""
        return None

    def check_crop(self, size: tuple[int, int], where: str) -> None:
        """Raises UserError, which begins with `where`, if the network cannot be trained on crops of `size` = (H, W)."""

    def stages(self, images: Tensor) -> list[Tensor]:
        """The encoder alone: `Output.stages` of normalised images (B, 3, H, W), where nothing else is wanted."""
        maps: list[Tensor] = self.encoder(images)
        return maps

    @property
    def feature_channels(self) -> int:
        """Channels of `Output.feature`."""
        return self.decoder_channels or self.stage_channels[-1]

    @property
    def multiple(self) -> int:
        """Images are resized inside to multiples of this number of pixels; 1: never."""
        return self.encoder.multiple

    def drop_classifier_bias(self) -> None:
        """DeepLab-V2's parallel classifiers without bias: zero, and no longer trained. Other heads stay as they are."""
        if isinstance(self.head, DeepLabV2Head):
            self.head.drop_bias()

    def classify(self, feature: Tensor) -> Tensor:
        """Logits (B, K, h, w) of a map as `feature` gives it; without dropout."""
        if isinstance(self.head, DeepLabV2Head):
            return sum_of_branches(self.head.branch_maps(feature))
        return self.head.classify(feature)

    def classified(self, output: Output, feature: Tensor) -> Tensor:
        """Logits (B, K, h, w) that the pass of `output` would have had with another `feature`; without dropout."""
        return self.classify(feature)

    def loss(self, output: Output, label: Tensor, weight: Tensor | None = None, pixels: Tensor | None = None) -> Tensor:
        """Cross-entropy at label size, mean over all pixels, ignored ones included.

        (T1), oracle o8 of docs/methods/self_training.md.

        Args:
            output: of this network.
            label: (B, H, W), 255 = ignore.
            weight: (B, H, W) or None.
            pixels: what to divide by instead of the number of all pixels.
        """
        return cross_entropy(resized(fp32(output.logits), (label.shape[-2], label.shape[-1])), label, weight, pixels)

    def loss_parts(self, output: Output, label: Tensor, weight: Tensor | None = None) -> list[Tensor]:
        """The parts of `loss`: that of the logits, then those of the branches."""
        return [self.loss(output, label, weight)]

    def predict(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, H, W) of normalised images, upsampled bilinearly to `size` = (H, W)."""
        return resized(fp32(self(images).logits), size)  # in fp32 at least: under autocast logits arrive in bf16


def _check(spec: ModelSpec) -> None:
    if spec.head not in HEADS:
        raise UserError(f"model.head: found {spec.head!r}, expected one of {', '.join(HEADS)}")
    if spec.head != "segformer" and not spec.dilations:
        raise UserError(f"model.dilations: found none, expected at least one for head {spec.head}, e.g. [6, 12]")
    if spec.batch_norm not in ("train", "eval"):
        raise UserError(f"model.batch_norm: found {spec.batch_norm!r}, expected train or eval")
