"""Published files of every family, with random weights under the authors' names, and what each network computes, by their names.

The forward passes are written from the papers' definitions on plain functions of PyTorch; nothing of udaseg takes part in them.
Running statistics are random too, so that a forgotten or confused one shows.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
WIDTHS, DEPTHS, HEADS, REDUCTIONS = (32, 64, 160, 256), (2, 2, 2, 2), (1, 2, 5, 8), (8, 4, 2, 1)  # MiT-B0
BLOCKS, WIDE = (3, 4, 6, 3), (64, 128, 256, 512)  # ResNet-50, the smallest with bottlenecks
CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


class Maker:
    """Fills a dictionary with random tensors."""

    def __init__(self, seed: int = 0) -> None:
        self.random, self.state = torch.Generator().manual_seed(seed), OrderedDict[str, Tensor]()

    def weight(self, name: str, *shape: int) -> None:
        fan = max(1, int(torch.tensor(shape[1:]).prod()))
        self.state[name] = torch.randn(*shape, generator=self.random) * (2 / fan) ** 0.5

    def linear(self, name: str, outputs: int, inputs: int, *kernel: int) -> None:
        self.weight(f"{name}.weight", outputs, inputs, *kernel)
        self.state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=self.random)

    def norm(self, name: str, width: int) -> None:
        self.state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=self.random)
        self.state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=self.random)

    def batch_norm(self, name: str, width: int) -> None:
        self.norm(name, width)
        self.state[f"{name}.running_mean"] = 0.1 * torch.randn(width, generator=self.random)
        self.state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=self.random)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(40000)

    def conv_bn(self, name: str, outputs: int, inputs: int, kernel: int, bn: str = "bn") -> None:
        self.weight(f"{name}.conv.weight", outputs, inputs, kernel, kernel)
        self.batch_norm(f"{name}.{bn}", outputs)


# --- encoders -------------------------------------------------------------------------------------------------------


def mit(m: Maker, at: str = "backbone.") -> None:
    """The official MiT."""
    before = 3
    for k, (width, depth, reduction) in enumerate(zip(WIDTHS, DEPTHS, REDUCTIONS, strict=True), 1):
        m.linear(f"{at}patch_embed{k}.proj", width, before, *((7, 7) if k == 1 else (3, 3)))
        m.norm(f"{at}patch_embed{k}.norm", width)
        for b in range(depth):
            block = f"{at}block{k}.{b}."
            m.norm(f"{block}norm1", width)
            m.linear(f"{block}attn.q", width, width)
            m.linear(f"{block}attn.kv", 2 * width, width)
            m.linear(f"{block}attn.proj", width, width)
            if reduction > 1:
                m.linear(f"{block}attn.sr", width, width, reduction, reduction)
                m.norm(f"{block}attn.norm", width)
            m.norm(f"{block}norm2", width)
            m.linear(f"{block}mlp.fc1", 4 * width, width)
            m.linear(f"{block}mlp.dwconv.dwconv", 4 * width, 1, 3, 3)
            m.linear(f"{block}mlp.fc2", width, 4 * width)
        m.norm(f"{at}norm{k}", width)
        before = width


def mit_maps(s: State, x: Tensor, at: str = "backbone.") -> list[Tensor]:
    """SegFormer, sec. 3.1."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, s[f"{at}{name}.weight"], s[f"{at}{name}.bias"])

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], s[f"{at}{name}.weight"], s[f"{at}{name}.bias"], eps)

    def conv(name: str, x: Tensor, **how: Any) -> Tensor:
        return F.conv2d(x, s[f"{at}{name}.weight"], s[f"{at}{name}.bias"], **how)

    maps = []
    for k, (depth, heads, reduction) in enumerate(zip(DEPTHS, HEADS, REDUCTIONS, strict=True), 1):
        first = k == 1
        x = conv(f"patch_embed{k}.proj", x, stride=4 if first else 2, padding=3 if first else 1)
        batch, width, height, across = x.shape
        tokens = norm(f"patch_embed{k}.norm", x.flatten(2).transpose(1, 2), 1e-5)
        for b in range(depth):
            block = f"block{k}.{b}."
            y = norm(f"{block}norm1", tokens, 1e-6)
            queries = linear(f"{block}attn.q", y)
            if reduction > 1:
                grid = y.transpose(1, 2).reshape(batch, width, height, across)
                y = conv(f"{block}attn.sr", grid, stride=reduction).flatten(2).transpose(1, 2)
                y = norm(f"{block}attn.norm", y, 1e-5)
            keys, values = linear(f"{block}attn.kv", y).split(width, dim=-1)
            each = width // heads
            answers = []
            for h in range(heads):  # one head after the other
                part = slice(h * each, (h + 1) * each)
                share = (queries[..., part] @ keys[..., part].transpose(1, 2) / each**0.5).softmax(-1)
                answers.append(share @ values[..., part])
            tokens = tokens + linear(f"{block}attn.proj", torch.cat(answers, -1))
            y = linear(f"{block}mlp.fc1", norm(f"{block}norm2", tokens, 1e-6))
            grid = y.transpose(1, 2).reshape(batch, 4 * width, height, across)
            y = conv(f"{block}mlp.dwconv.dwconv", grid, padding=1, groups=4 * width).flatten(2).transpose(1, 2)
            tokens = tokens + linear(f"{block}mlp.fc2", F.gelu(y))
        x = norm(f"norm{k}", tokens, 1e-6).transpose(1, 2).reshape(batch, width, height, across)
        maps.append(x)
    return maps


def mmseg_mit(official: State) -> State:
    """The same weights as mmsegmentation's own MiT (0.17 and later, 1.x) names and shapes them."""
    out: State = {}
    for name, value in official.items():
        part, _, rest = name.removeprefix("backbone.").partition(".")
        k = int(part[-1]) - 1
        if part.startswith("patch_embed"):
            out[f"backbone.layers.{k}.0.{rest.replace('proj.', 'projection.')}"] = value
        elif part.startswith("norm"):
            out[f"backbone.layers.{k}.2.{rest}"] = value
        else:
            b, _, what = rest.partition(".")
            new, kind = f"backbone.layers.{k}.1.{b}.", what.rpartition(".")[2]
            if what.startswith("attn.q."):
                both = torch.cat([value, official[name.replace("attn.q.", "attn.kv.")]])
                out[f"{new}attn.attn.in_proj_{kind}"] = both
            elif what.startswith("attn.proj."):
                out[f"{new}attn.attn.out_proj.{kind}"] = value
            elif what.startswith("mlp."):
                layer = {"fc1": 0, "dwconv": 1, "fc2": 4}[what.split(".")[1]]
                out[f"{new}ffn.layers.{layer}.{kind}"] = value[:, :, None, None] if value.dim() == 2 else value
            elif not what.startswith("attn.kv."):
                out[f"{new}{what}"] = value
    return out


def resnet_c(m: Maker, at: str = "backbone.") -> None:
    """mmsegmentation's ResNetV1c: three 3x3 convolutions to begin with."""
    for k, (outputs, inputs) in zip((0, 3, 6), ((32, 3), (32, 32), (64, 32)), strict=True):
        m.weight(f"{at}stem.{k}.weight", outputs, inputs, 3, 3)
        m.batch_norm(f"{at}stem.{k + 1}", outputs)
    before = 64
    for k, (blocks, width) in enumerate(zip(BLOCKS, WIDE, strict=True), 1):
        for b in range(blocks):
            block = f"{at}layer{k}.{b}."
            shapes = ((width, before, 1), (width, width, 3), (4 * width, width, 1))
            for c, (outputs, inputs, kernel) in enumerate(shapes, 1):
                m.weight(f"{block}conv{c}.weight", outputs, inputs, kernel, kernel)
                m.batch_norm(f"{block}bn{c}", outputs)
            m.state[f"{block}bn3.weight"] *= 0.2  # or the sums grow from block to block
            if b == 0:
                m.weight(f"{block}downsample.0.weight", 4 * width, before, 1, 1)
                m.batch_norm(f"{block}downsample.1", 4 * width)
            before = 4 * width


def resnet_map(s: State, x: Tensor, at: str = "backbone.") -> Tensor:
    """ResNet with output stride 8: stride in the 3x3 convolution; dilation 2 and 4, in the first block the stage before's."""

    def bn(name: str, x: Tensor) -> Tensor:
        return batch_norm(s, f"{at}{name}", x)

    for k, stride in ((0, 2), (3, 1), (6, 1)):
        x = bn(f"stem.{k + 1}", F.conv2d(x, s[f"{at}stem.{k}.weight"], stride=stride, padding=1)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    before = 1
    for k, (blocks, stride, dilation) in enumerate(zip(BLOCKS, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1):
        for b in range(blocks):
            block, d, step = f"layer{k}.{b}.", before if b == 0 else dilation, stride if b == 0 else 1
            y = bn(f"{block}bn1", F.conv2d(x, s[f"{at}{block}conv1.weight"])).relu()
            y = F.conv2d(y, s[f"{at}{block}conv2.weight"], stride=step, padding=d, dilation=d)
            y = bn(f"{block}bn3", F.conv2d(bn(f"{block}bn2", y).relu(), s[f"{at}{block}conv3.weight"]))
            if b == 0:
                x = bn(f"{block}downsample.1", F.conv2d(x, s[f"{at}{block}downsample.0.weight"], stride=step))
            x = (x + y).relu()
        before = dilation
    return x


# --- decoders -------------------------------------------------------------------------------------------------------


def batch_norm(s: State, name: str, x: Tensor) -> Tensor:
    mean, var, scale, shift = (
        s[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def conv_bn_relu(s: State, name: str, x: Tensor, **how: Any) -> Tensor:
    return batch_norm(s, f"{name}.bn", F.conv2d(x, s[f"{name}.conv.weight"], **how)).relu()


def enlarged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def daformer(m: Maker, at: str = "decode_head.", *, embedding: int = 256, width: int = 256, classes: int = 19) -> None:
    m.linear(f"{at}conv_seg", classes, width, 1, 1)
    for k, inputs in enumerate(WIDTHS):
        m.linear(f"{at}embed_layers.{k}.proj", embedding, inputs)
    inputs = embedding * 4
    m.conv_bn(f"{at}fuse_layer.aspp_modules.0", width, inputs, 1)
    for k in (1, 2, 3):
        m.conv_bn(f"{at}fuse_layer.aspp_modules.{k}.depthwise_conv", inputs, 1, 3)
        m.conv_bn(f"{at}fuse_layer.aspp_modules.{k}.pointwise_conv", width, inputs, 1)
    m.conv_bn(f"{at}fuse_layer.bottleneck", width, 4 * width, 3)


def stacked(s: State, maps: list[Tensor], names: list[str], order: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
    """Each stage through its linear layer, enlarged to the first, side by side in the given order."""
    embedded = [
        F.linear(x.permute(0, 2, 3, 1), s[f"{name}.proj.weight"], s[f"{name}.proj.bias"]).permute(0, 3, 1, 2)
        for name, x in zip(names, maps, strict=True)
    ]
    return torch.cat([enlarged(embedded[k], maps[0].shape[2:]) for k in order], dim=1)


def daformer_logits(s: State, maps: list[Tensor], at: str = "decode_head.") -> Tensor:
    """DAFormer, sec. 3.2."""
    x = stacked(s, maps, [f"{at}embed_layers.{k}" for k in range(4)])
    parts = [conv_bn_relu(s, f"{at}fuse_layer.aspp_modules.0", x)]
    for k, d in ((1, 6), (2, 12), (3, 18)):
        name = f"{at}fuse_layer.aspp_modules.{k}."
        y = conv_bn_relu(s, f"{name}depthwise_conv", x, padding=d, dilation=d, groups=x.shape[1])
        parts.append(conv_bn_relu(s, f"{name}pointwise_conv", y))
    x = conv_bn_relu(s, f"{at}fuse_layer.bottleneck", torch.cat(parts, dim=1), padding=1)
    return F.conv2d(x, s[f"{at}conv_seg.weight"], s[f"{at}conv_seg.bias"])


def plain_fusion(m: Maker, at: str, *, width: int = 256, classes: int = 19) -> None:
    """DAFormer's head with a 1x1 fusion: HRDA's attention, and DAFormer's ablation."""
    m.linear(f"{at}conv_seg", classes, width, 1, 1)
    for k, inputs in enumerate(WIDTHS):
        m.linear(f"{at}embed_layers.{k}.proj", width, inputs)
    m.conv_bn(f"{at}fuse_layer", width, 4 * width, 1)


def plain_fusion_logits(s: State, maps: list[Tensor], at: str) -> Tensor:
    x = conv_bn_relu(s, f"{at}fuse_layer", stacked(s, maps, [f"{at}embed_layers.{k}" for k in range(4)]))
    return F.conv2d(x, s[f"{at}conv_seg.weight"], s[f"{at}conv_seg.bias"])


def segformer(m: Maker, *, width: int = 256, classes: int = 19, loop: bool = False) -> None:
    """SegFormer's own head; `loop`: as DAFormer's repository names it."""
    m.linear("decode_head.conv_seg", classes, 128, 1, 1)  # never used
    m.linear("decode_head.linear_pred", classes, width, 1, 1)
    for k, inputs in enumerate(WIDTHS):
        m.linear(f"decode_head.linear_c.{k}.proj" if loop else f"decode_head.linear_c{k + 1}.proj", width, inputs)
    m.conv_bn("decode_head.linear_fuse", width, 4 * width, 1)


def segformer_logits(s: State, maps: list[Tensor], *, loop: bool = False) -> Tensor:
    """Its stages are stacked from the last to the first; in DAFormer's repository from the first to the last."""
    names = [f"decode_head.linear_c.{k}" if loop else f"decode_head.linear_c{k + 1}" for k in range(4)]
    x = conv_bn_relu(s, "decode_head.linear_fuse", stacked(s, maps, names, (0, 1, 2, 3) if loop else (3, 2, 1, 0)))
    return F.conv2d(x, s["decode_head.linear_pred.weight"], s["decode_head.linear_pred.bias"])


def mmseg_segformer(m: Maker, *, width: int = 256, classes: int = 19) -> None:
    """mmsegmentation's head (0.17 and later, 1.x): each stage is normalised and rectified before it is enlarged."""
    m.linear("decode_head.conv_seg", classes, width, 1, 1)
    for k, inputs in enumerate(WIDTHS):
        m.conv_bn(f"decode_head.convs.{k}", width, inputs, 1)
    m.conv_bn("decode_head.fusion_conv", width, 4 * width, 1)


def mmseg_segformer_logits(s: State, maps: list[Tensor]) -> Tensor:
    parts = [enlarged(conv_bn_relu(s, f"decode_head.convs.{k}", x), maps[0].shape[2:]) for k, x in enumerate(maps)]
    x = conv_bn_relu(s, "decode_head.fusion_conv", torch.cat(parts, dim=1))
    return F.conv2d(x, s["decode_head.conv_seg.weight"], s["decode_head.conv_seg.bias"])


def deeplab(m: Maker, at: str = "decode_head.", *, branches: int = 2, classes: int = 19) -> None:
    for k in range(branches):
        m.linear(f"{at}aspp_modules.{k}.conv", classes, 2048, 3, 3)


def deeplab_logits(s: State, x: Tensor, dilations: tuple[int, ...], at: str = "decode_head.") -> Tensor:
    parts = [
        F.conv2d(x, s[f"{at}aspp_modules.{k}.conv.weight"], s[f"{at}aspp_modules.{k}.conv.bias"], padding=d, dilation=d)
        for k, d in enumerate(dilations)
    ]
    return torch.stack(parts).sum(0)


def hrda_logits(s: State, x: Tensor, *, cluda: bool = False) -> Tensor:
    """HRDA, sec. 3.2 and 3.3, as it predicts: detail windows of 512 with stride 256, context at half the size.

    CLUDA enlarges both before it weighs them.
    """
    deeplab = "decode_head.head.aspp_modules.0.conv.weight" in s

    def maps(x: Tensor) -> Any:
        return resnet_map(s, x) if deeplab else mit_maps(s, x)

    def head(maps: Any) -> Tensor:
        return (
            deeplab_logits(s, maps, (6, 12), "decode_head.head.")
            if deeplab
            else daformer_logits(s, maps, "decode_head.head.")
        )

    seen = maps(F.avg_pool2d(x, 2))
    at = "decode_head.scale_attention."
    attention = (deeplab_logits(s, seen, (6, 12), at) if deeplab else plain_fusion_logits(s, seen, at)).sigmoid()
    stride = 8 if deeplab else 4
    height, width = (side // stride for side in x.shape[2:])
    detail, covered = torch.zeros(1, attention.shape[1], height, width), torch.zeros(height, width)
    for top in range(0, max(1, x.shape[2] - 511), 256):
        for left in range(0, max(1, x.shape[3] - 511), 256):
            part = head(maps(x[:, :, top : top + 512, left : left + 512]))
            rows, columns = slice(top // stride, (top + 512) // stride), slice(left // stride, (left + 512) // stride)
            detail[:, :, rows, columns] += part
            covered[rows, columns] += 1
    size = (height, width)
    if cluda:
        share = enlarged(attention, size)
        return (1 - share) * enlarged(head(seen), size) + share * detail / covered
    return enlarged((1 - attention) * head(seen), size) + enlarged(attention, size) * detail / covered


def contrast_heads(m: Maker) -> None:
    """PiPa's, of a segmentor (small ones, their sizes decide nothing)."""
    for head, last in (("cls_head", "3"), ("proj_head.proj", "2")):
        m.linear(f"{head}.0", 8, 8, 1, 1)
        m.batch_norm(f"{head}.1.0", 8)
        m.linear(f"{head}.{last}", 4, 8, 1, 1)


# --- files ----------------------------------------------------------------------------------------------------------


def uda(student: State, teacher: State | None = None, *, imnet: bool = True, **top: Tensor) -> State:
    """All that lies in a self-training file: the student, a teacher, the ImageNet network."""
    out = OrderedDict((f"model.{name}", value) for name, value in student.items())
    out |= {f"ema_model.{name}": value for name, value in (teacher or {}).items()}
    if imnet:
        out |= {f"imnet_model.{name}": value for name, value in student.items()}
    return OrderedDict(out | top)


def write(path: Path, state: State, **meta: Any) -> Path:
    """As mmcv writes it."""
    about = {
        "mmcv_version": "1.3.7",
        "config": "model = dict(\n  type='X')\n" * 40,
        "iter": 40000,
        "CLASSES": CITYSCAPES,
    }
    torch.save({"meta": about | meta, "state_dict": OrderedDict(state)}, path)
    return path
