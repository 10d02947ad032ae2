"""Decoder heads: encoder stages in, logits at head stride out.

DAFormer (CVPR 2022) sec. 3.2 with its SegFormer ablation, and DeepLab-V2 (TPAMI 2018) as UDA papers use it: docs/models.md.
shapes: B images, c_i channels of stage i, w head width, K classes, h_i w_i map size of stage i

Nothing here is named `norm`: DAFormer takes weight decay off parameters of that name, and decays the BatchNorm of
decoders (engine/optim.py).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.losses.segmentation import fp32, resized


class ConvBN(nn.Module):
    """Bias-free convolution that keeps the map size, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        return F.relu(self.bn(self.conv(x)))


class ContextFusion(nn.Module):
    """DAFormer's fusion: depthwise-separable atrous spatial pyramid pooling (ASPP), without image pooling."""

    def __init__(self, inputs: int, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvBN(inputs, width, 1)])
        for dilation in dilations:
            depthwise = ConvBN(inputs, inputs, 3, dilation=dilation, groups=inputs)
            self.branches.append(nn.Sequential(depthwise, ConvBN(inputs, width, 1)))
        self.bottleneck = ConvBN(width * len(self.branches), width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, width, h, w)."""
        return self.bottleneck(torch.cat([branch(x) for branch in self.branches], dim=1))


class FusionHead(nn.Module):
    """DAFormer head: embed every stage, bring all to the finest map, fuse, classify.

    With `dilations` empty the fusion is one 1x1 convolution: the paper's ablation, which it calls SegFormer.
    The finest map of a plain ViT has stride 14 or 16; it is first enlarged to about stride 4, where the fusion of the
    paper works.
    """

    def __init__(
        self,
        channels: Sequence[int],
        finest_stride: int,
        classes: int,
        width: int,
        dilations: Sequence[int],
        dropout: float,
        embedding: int | None = None,
        embedding_norm: bool = False,
    ) -> None:
        """
        Args:
            channels: channels c_i of the encoder stages, high to low resolution.
            finest_stride: stride of the first of them.
            classes: K.
            width: width w of the fused map, and of the embeddings.
            dilations: dilations of the separable 3x3 branches; empty for the 1x1 fusion.
            dropout: probability of dropping a channel before the classifier.
            embedding: width of the embeddings where it is another (CLUDA's 512).
            embedding_norm: BatchNorm and ReLU after each (the SegFormer head of mmsegmentation).
        """
        super().__init__()
        embedding = embedding or width
        self.enlarge = max(1, round(finest_stride / 4))
        self.embed = nn.ModuleList(  # 1x1: a linear layer per pixel
            [ConvBN(c, embedding, 1) if embedding_norm else nn.Conv2d(c, embedding, 1) for c in channels]
        )
        inputs = embedding * len(channels)
        self.fuse = ContextFusion(inputs, width, dilations) if dilations else ConvBN(inputs, width, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)
        _init_classifier(self.classify)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Stages (B, c_i, h_i, w_i) -> logits (B, K, h, w) and the fused map (B, w, h, w) before dropout."""
        height, width = (side * self.enlarge for side in stages[0].shape[-2:])
        # Embedding first, resizing second: the two commute (both are linear) and this order is the cheaper one.
        maps = [resized(embed(stage), (height, width)) for embed, stage in zip(self.embed, stages, strict=True)]
        fused = self.fuse(torch.cat(maps, dim=1))
        return self.classify(self.dropout(fused)), fused


class DeepLabV2Head(nn.Module):
    """Sum of parallel dilated 3x3 convolutions on the last stage; no BatchNorm, ReLU or dropout."""

    def __init__(self, inputs: int, classes: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(inputs, classes, 3, padding=d, dilation=d) for d in dilations])
        for branch in self.branches:
            _init_classifier(branch)

    def drop_bias(self) -> None:
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d) and branch.bias is not None
            nn.init.zeros_(branch.bias).requires_grad_(False)

    def branch_maps(self, stage: Tensor) -> list[Tensor]:
        """The last stage (B, c, h, w) -> one map (B, K, h, w) for each dilation."""
        return [branch(stage) for branch in self.branches]


def sum_of_branches(maps: Sequence[Tensor]) -> Tensor:
    """Logits of DeepLab-V2."""
    logits = maps[0]
    for branch in maps[1:]:
        logits = logits + branch
    return logits


def over_stages(convolution: nn.Conv2d, stages: Sequence[Tensor], *, align_corners: bool = False) -> Tensor:
    """A 1x1 convolution of the stages resized to the first one and concatenated: (B, outputs, h, w).

    Convolved first and resized second: the two commute, and this order takes a tenth of the operations (MiT).
    """
    first, *rest = convolution.weight.split([stage.shape[1] for stage in stages], dim=1)
    total = F.conv2d(stages[0], first, convolution.bias)
    for stage, weight in zip(stages[1:], rest, strict=True):
        part = F.conv2d(stage, weight)
        total = total + resized(part, (total.shape[-2], total.shape[-1]), align_corners=align_corners)
    return total


class StageProjection(nn.Module):
    """Concatenated stages -> 1x1 convolution, BatchNorm, ReLU -> unit embeddings (A, width) of A cells, numbered over (B, h, w)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.last = nn.Linear(channels, width)

    def forward(self, stages: Sequence[Tensor], cells: Tensor) -> Tensor:
        hidden = F.relu(self.bn(over_stages(self.first, stages, align_corners=True)))
        rows = hidden.transpose(0, 1).flatten(1).index_select(1, cells).mT
        return F.normalize(fp32(self.last(rows)), dim=1)


def _init_classifier(conv: nn.Module) -> None:
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
