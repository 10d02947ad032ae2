"""HRDA: Hoyer, Dai, Van Gool, "Context-Aware High-Resolution Domain-Adaptive Semantic Segmentation", ECCV 2022.

One encoder and one head at two resolutions: the whole image at half its size for context, and a crop of it at full size for
detail. A second head says, for each class and place, how much the detail counts. Equations, departures of the released code
and oracles q1 ..: docs/methods/hrda.md.

(H1) context image -> `halved`          (H2) detail crop -> `random_box`      (H3) three maps -> `forward`
(H4) box on the attention -> `box_mask`        (H5) fusion -> `fused`          (H6) loss -> `loss_parts`
(H7) windows of teacher and test -> `over_windows`
shapes: B images, K classes, H W image size, o stride of the head, h w = H/2o W/2o the context grid
"""

from __future__ import annotations

import functools
import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from udaseg import ranks
from udaseg.classes import IGNORE
from udaseg.errors import UserError
from udaseg.losses.segmentation import cross_entropy, fp32, resized
from udaseg.models.heads import DeepLabV2Head, FusionHead, sum_of_branches
from udaseg.models.segmenter import Boxes, Draw, Fusion, Output, Segmenter
from udaseg.models.spec import HrdaSpec, ModelSpec
from udaseg.models.windows import averaged, cut, cut_labels, pasted, windows

TESTED_AT_ONCE = 16  # detail windows in evaluation mode, where their number changes nothing
SPLIT = (
    "model.hrda.windows_at_once: %d: the teacher's batch normalisation sees that many windows at a time instead of all, so that "
    "its labels, and the result, are other ones than with `null`"
)
log = logging.getLogger("udaseg")


class HrdaSegmenter(Segmenter):
    """A segmenter of two resolutions.

    `Output.stages`, `.decoder` and `.branches` are those of the context branch, `Output.logits` (B, K, H/o, W/o) the fused ones.
    """

    reduction = 2

    def __init__(self, spec: ModelSpec, classes: int) -> None:
        super().__init__(spec, classes)
        assert spec.hrda is not None
        self.p: HrdaSpec = spec.hrda
        self.detail_window = (self.p.detail.height, self.p.detail.width)
        self.attention_head: FusionHead | DeepLabV2Head
        channels, finest = self.stage_channels, self.stage_strides[0]
        if isinstance(self.head, DeepLabV2Head):
            self.attention_head = DeepLabV2Head(channels[-1], classes, spec.dilations)
            stride, shrunk = self.stage_strides[-1], 1
        else:
            self.attention_head = FusionHead(channels, finest, classes, spec.width, (), spec.dropout)
            stride, shrunk = finest, self.head.enlarge
        check(self.p, spec, channels, stride, shrunk, self.encoder.multiple)
        self.stride = stride // shrunk  # o
        self.cell = 2 * self.stride
        self.stage_strides = [2 * s for s in self.stage_strides]  # of the images given
        self.released = self.p.variant == "released"
        if self.p.windows_at_once is not None and any(isinstance(m, _BatchNorm) for m in self.modules()):
            log.warning(SPLIT, self.p.windows_at_once)

    @property
    def multiple(self) -> int:
        return math.lcm(self.cell, 2 * self.encoder.multiple)

    def check_crop(self, size: tuple[int, int], where: str) -> None:
        height, width = size
        if height % self.multiple or width % self.multiple:
            raise UserError(
                f"{where}: found {width}x{height}, expected multiples of {self.multiple}, the cells of the context grid of "
                f"model.hrda; change the crop"
            )
        if height < self.p.detail.height or width < self.p.detail.width:
            raise UserError(
                f"{where}: found {width}x{height}, which is smaller than model.hrda.detail, "
                f"{self.p.detail.width}x{self.p.detail.height}; enlarge the crop or reduce the detail"
            )

    def random_box(self, draw: Draw, size: tuple[int, int]) -> Tensor:
        """(H2): (4,) top, left, bottom, right; along a side that the crop fills nothing is drawn. Oracle q3."""
        step, lengths = self.p.box_step, self.detail_size(size)
        places = [(side - length + 1) // step for side, length in zip(size, lengths, strict=True)]
        top, left = (step * int(draw(n)) if n > 1 else 0 for n in places)
        return torch.tensor([top, left, top + lengths[0], left + lengths[1]])

    def detail_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the detail crops of images of `size`."""
        return min(self.p.detail.height, size[0]), min(self.p.detail.width, size[1])

    def stages(self, images: Tensor) -> list[Tensor]:
        """The encoder's maps of the context images."""
        return super().stages(halved(self.fitted(images)))

    def fitted(self, images: Tensor) -> Tensor:
        """Resized to whole cells, where they are not."""
        height, width = (-(-side // self.multiple) * self.multiple for side in images.shape[-2:])
        return resized(images, (height, width))

    def forward(self, images: Tensor, *, boxes: Tensor | Boxes | None = None) -> Output:
        """One pass, (H3) to (H5).

        Args:
            images: (B, 3, H, W), normalised.
            boxes: where the detail crops lie: (4,) for all images or (B, 4), as top, left, bottom, right in pixels; or what finds
                them in the context logits, which gradients do not reach. None: everywhere, in windows.
        """
        images = self.fitted(images)
        stages = self.stages(images)
        if boxes is None:
            return self.over_windows(images, stages)
        context = None
        if callable(boxes):
            if self.released:  # one more pass of the head, which moves its running statistics
                with torch.no_grad():
                    boxes = boxes(self.decoded(stages).logits)
            else:
                context = self.decoded(stages)
                boxes = boxes(context.logits.detach())
        boxes = boxes.to(images.device, non_blocking=True).expand(len(images), 4)
        detail_stages = self.encoder(cut(images, boxes[:, :2], self.detail_size(size_of(images))))
        context = context or self.decoded(stages)  # the head's running statistics see the context first
        detail = self.decoded(detail_stages)
        detail.boxes = boxes
        attention = self.attention(stages)
        attention = attention * box_mask(boxes, size_of(attention), self.cell)
        placed = pasted(fp32(detail.logits), boxes[:, :2] // self.stride, self.grid(images))
        fusion = Fusion(fp32(context.logits), attention, placed)
        return Output(self.fused(fusion), stages, context.decoder, context.branches, detail, fusion=fusion)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Size of the fused logits."""
        return images.shape[-2] // self.stride, images.shape[-1] // self.stride

    def attention(self, stages: list[Tensor]) -> Tensor:
        """(B, K, h, w) in 0..1."""
        if isinstance(self.attention_head, DeepLabV2Head):
            return fp32(sum_of_branches(self.attention_head.branch_maps(stages[-1]))).sigmoid()
        return fp32(self.attention_head(stages)[0]).sigmoid()

    def over_windows(self, images: Tensor, stages: list[Tensor]) -> Output:
        """(H7): detail everywhere, from windows that overlap by half, as one batch in training mode. Oracle q6."""
        context = self.decoded(stages)
        attention = self.attention(stages)
        size = size_of(images)
        window = self.detail_size(size)
        corners = windows(*size, window, (window[0] // self.cell * self.stride, window[1] // self.cell * self.stride))
        crops = torch.cat([images[:, :, y : y + window[0], x : x + window[1]] for y, x in corners])
        at_once = (self.p.windows_at_once or len(crops)) if self.training else TESTED_AT_ONCE
        logits = torch.cat([fp32(self.decoded(self.encoder(some)).logits) for some in crops.split(at_once)])
        cells = [(y // self.stride, x // self.stride) for y, x in corners]
        detail = averaged(logits.split(len(images)), cells, self.grid(images))
        fusion = Fusion(fp32(context.logits), attention, detail)
        return Output(self.fused(fusion), stages, context.decoder, context.branches, fusion=fusion)

    def fused(self, parts: Fusion) -> Tensor:
        return fuse(parts.context, parts.attention, parts.detail, enlarged_first=self.p.fusion == "cluda")

    def classified(self, output: Output, feature: Tensor) -> Tensor:
        assert output.fusion is not None
        context = resized(fp32(self.classify(feature)), size_of(output.fusion.context))
        return self.fused(Fusion(context, output.fusion.attention, output.fusion.detail))

    def loss(self, output: Output, label: Tensor, weight: Tensor | None = None, pixels: Tensor | None = None) -> Tensor:
        """(H6), oracle q8. With `pixels` the detail crops' part is divided by their labelled pixels."""
        return torch.stack(self.loss_parts(output, label, weight, pixels)).sum()

    def loss_parts(
        self, output: Output, label: Tensor, weight: Tensor | None = None, pixels: Tensor | None = None
    ) -> list[Tensor]:
        fused = super().loss(output, label, weight, pixels)
        detail, fusion = output.detail, output.fusion
        if detail is None:
            return [fused]
        assert detail.boxes is not None and fusion is not None
        shares = self.p.context_weight, self.p.detail_weight
        size = self.detail_size(size_of(label))
        y = cut_labels(label, detail.boxes[:, :2], size)
        w = None if weight is None else cut_labels(weight, detail.boxes[:, :2], size)
        inside = None if pixels is None else ranks.total((y != IGNORE).sum()) / ranks.world()
        parts = [(1 - sum(shares)) * fused, shares[1] * cross_entropy(resized(fp32(detail.logits), size), y, w, inside)]
        if shares[0]:
            context = (1 - fusion.attention) * fusion.context if self.released else fusion.context
            parts.append(shares[0] * cross_entropy(resized(context, size_of(label)), label, weight, pixels))
        return parts


def halved(images: Tensor) -> Tensor:
    """(H1): means of 2x2 pixels, which is bilinear halving. Oracle q1."""
    return F.avg_pool2d(images, 2)


def box_mask(boxes: Tensor, size: tuple[int, int], cell: int) -> Tensor:
    """(H4): (B, 1, h, w), 1 on the cells of the context grid that the boxes (B, 4) begin and end at.

    In whole cells: boxes that begin within one are moved, which is the released DeepLab-V2. Oracle q5.
    """
    (rows, columns), edges = (torch.arange(n, device=boxes.device) for n in size), (boxes // cell).T[..., None]
    down, across = ((line >= edges[i]) & (line < edges[i + 2]) for i, line in enumerate((rows, columns)))
    return (down[:, None, :, None] & across[:, None, None]).float()


def fuse(context: Tensor, attention: Tensor, detail: Tensor, *, enlarged_first: bool = False) -> Tensor:
    """(H5): (B, K, 2h, 2w) of context logits and attention (B, K, h, w) and detail logits (B, K, 2h, 2w).

    The attention is cut at the box's border before it is enlarged, so that a ring of one fused cell outside has less context and
    no detail. Oracles q2, q4. `enlarged_first`: CLUDA's order; another result where attention and context both vary.
    """
    up = functools.partial(resized, size=size_of(detail))
    if enlarged_first:
        share: Tensor = up(attention)
        return share * detail + (1 - share) * up(context)
    return up((1 - attention) * context) + up(attention) * detail


def size_of(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def check(p: HrdaSpec, spec: ModelSpec, channels: list[int], stride: int, shrunk: int, multiple: int) -> None:
    """Raises UserError where the two resolutions do not fit the network."""
    network = f"head {spec.head} on {spec.backbone}"
    if spec.head != "deeplabv2" and len(channels) < 4:
        raise UserError(f"model: found {network} with {len(channels)} stages, expected 4; correct backbone_args")
    if stride % shrunk:
        raise UserError(
            f"model.hrda: found {network}, whose maps have no whole number of pixels a cell ({stride}/{shrunk}); two resolutions "
            f"cannot be laid on each other: take a backbone with stages at strides 4 to 32, or of patch size 16"
        )
    cell = 2 * stride // shrunk
    grid = math.lcm(2 * cell, multiple)  # half of it is where windows begin
    if p.detail.height % grid or p.detail.width % grid:
        raise UserError(
            f"model.hrda.detail: found {p.detail.width}x{p.detail.height}, expected multiples of {grid} "
            f"({network} has cells of {cell}); change it, or the network's stride"
        )
    step = cell // 2 if p.variant == "released" else cell
    if p.box_step < 1 or p.box_step % step:
        raise UserError(
            f"model.hrda.box_step: found {p.box_step}, expected a multiple of {step}, so that boxes begin with a cell of {network}"
        )
    if p.detail_weight + p.context_weight > 1:
        raise UserError("model.hrda: detail_weight and context_weight: expected shares that are together at most 1")
