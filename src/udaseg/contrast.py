"""The contrastive loss of each paper, for a training loop of one's own: maps and labels in, one number with gradient out.

Each takes maps as a network gives them (B, D, h, w) and labels at any size (B, H, W; 255 = no class), does what its paper does
in between (classes of cells, choice of anchors, statistics, memory), and has a named tuple of settings with the paper's
values. What must outlive a step is given and returned, never hidden; save it with your checkpoint. Means are those of the
batch that is given: no other process is asked. Weights of the losses are yours to choose, the papers' stand in the docstrings.

    bcl            pixels against prototypes of the other domain, both ways    docs/methods/bcl.md
    plca           cycles from source to target and back                       docs/methods/plca.md
    sepico         cells against the source's class statistics                 docs/methods/sepico.md
    pipa_pixel     hard and easy cells of labelled images                      docs/methods/pipa.md
    pipa_patch     two overlapping views of unlabelled images                  docs/methods/pipa.md
    cluda          all grid positions of a batch, one or two resolutions       docs/methods/cluda.md

What the methods of this package compute is made of the same functions (`udaseg.losses`); tests hold both together.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.classes import IGNORE
from udaseg.errors import UserError
from udaseg.losses import bcl as _bcl
from udaseg.losses import cluda as _cluda
from udaseg.losses import pipa as _pipa
from udaseg.losses import plca as _plca
from udaseg.losses import sepico as _sepico
from udaseg.losses.segmentation import cell_labels, fp32, nearest_labels

# --- BCL ------------------------------------------------------------------------------------------------------------


class BclSettings(NamedTuple):
    """Lee, Eom, Lee, Park, Ham, ECCV 2022. The meaning of each: docs/methods/bcl.md."""

    temperature: float = 0.1
    labels: Literal["static", "dynamic", "hybrid"] = "hybrid"
    confidence: float = 0.8  # of dynamic labels
    hybrid_in: Literal["prototypes", "prototypes+anchors"] = "prototypes+anchors"
    prototypes: Literal["pair", "batch"] = "pair"
    calibration: Literal["none", "static", "hybrid"] = "hybrid"
    momentum: float = 0.99  # of the calibration


BCL = BclSettings()  # the paper's


class BclLoss(NamedTuple):
    """`forward` and `backward`, () each with gradient (the paper weighs both by 0.2), and the `bias` (K, D) for the next step."""

    forward: Tensor
    backward: Tensor
    bias: Tensor


def bcl(
    source: Tensor,
    source_label: Tensor,
    target: Tensor,
    target_label: Tensor,
    bias: Tensor,
    settings: BclSettings = BCL,
) -> BclLoss:
    """Contrast of target pixels with source prototypes and of source pixels with target prototypes: (B1) to (B6).

    Args:
        source, target: (B, D, h, w) features; a pair shares its place in the batch.
        source_label: (B, H, W) true classes.
        target_label: (B, H, W) pseudo-labels, mostly 255; holes are filled by the nearest prototype where it is sure.
        bias: (K, D) of the step before; zeros to begin with, which also says how many classes there are.
        settings: of the paper.

    Raises:
        UserError: maps or labels of another layout.

    >>> bias = torch.zeros(19, 64)
    >>> source, target = torch.randn(2, 64, 16, 16, requires_grad=True), torch.randn(2, 64, 16, 16, requires_grad=True)
    >>> label, pseudo = torch.randint(19, (2, 128, 128)), torch.randint(19, (2, 128, 128))
    >>> forward, backward, bias = bcl(source, label, target, pseudo, bias)
    >>> (0.2 * forward + 0.2 * backward).backward()
    """
    source_label, size = _checked("bcl", source, source_label)
    target_label, _ = _checked("bcl", target, target_label)
    if target.shape != source.shape:
        raise UserError(
            f"bcl: found maps of shapes {tuple(source.shape)} and {tuple(target.shape)}, expected pairs of one shape"
        )
    classes = _width("bcl", bias, source)
    static = nearest_labels(target_label, size)
    rho_s = _prototypes(source, nearest_labels(source_label, size), classes, settings.prototypes)
    dynamic = torch.full_like(static, IGNORE)
    if settings.labels != "static":
        similarity = _bcl.cosine(target.detach(), rho_s.vectors.detach() + bias)
        dynamic = _bcl.dynamic_labels(similarity, rho_s.present, settings.temperature, settings.confidence)

    def merged(fixed: Tensor, found: Tensor) -> Tensor:
        return found if settings.labels == "dynamic" else _bcl.fuse(fixed, found)

    rho_t = _prototypes(target, merged(static, dynamic), classes, settings.prototypes)
    shared = (rho_s.present & rho_t.present)[..., None, None]
    full = (target_label.shape[1], target_label.shape[2])
    anchors_t = target_label
    if settings.hybrid_in == "prototypes+anchors":
        anchors_t = merged(target_label, nearest_labels(dynamic, full))

    def contrast(features: Tensor, label: Tensor, rho: _bcl.Prototypes) -> Tensor:
        counts = _bcl.label_counts(label, size, classes) * shared
        each = counts.sum() / len(counts) if settings.prototypes == "batch" else None
        similarity = _bcl.cosine(features, rho.vectors)
        return _bcl.contrast(similarity, rho.present, counts, settings.temperature, anchors=each)

    if settings.calibration != "none":
        seen = rho_t if settings.calibration == "hybrid" else _prototypes(target, static, classes, settings.prototypes)
        bias = _bcl.calibrate(bias, *_bcl.class_bias(rho_s, seen), settings.momentum)
    return BclLoss(contrast(target, anchors_t, rho_s), contrast(source, source_label, rho_t), bias)


def _prototypes(features: Tensor, label: Tensor, classes: int, of: str) -> _bcl.Prototypes:
    sums, counts = _bcl.class_sums(features, label, classes)
    if of == "batch":
        sums, counts = sums.sum(dim=0, keepdim=True), counts.sum(dim=0, keepdim=True)
    return _bcl.prototypes(sums, counts)


# --- PLCA -----------------------------------------------------------------------------------------------------------


class PlcaSettings(NamedTuple):
    """Kang, Wei, Yang, Zhuang, Hauptmann, NeurIPS 2020. The meaning of each: docs/methods/plca.md."""

    level: Literal["feature", "prediction"] = "feature"
    aggregation: float = 0.5  # alpha: share of the similarity-weighted mean in each target vector; 0: off
    floor: float = 1.0e-4  # least standard deviation of a row of similarities
    exclude_self: bool = False  # drop cycles that end where they began
    tile: int = 256  # rows of similarities in memory at a time


PLCA = PlcaSettings()  # the paper's


def plca(source: Tensor, target: Tensor, source_label: Tensor, settings: PlcaSettings = PLCA) -> Tensor:
    """Mean over the cycles source -> target -> source that keep their class of both steps' -log p: (L1) to (L7).

    The paper adds it for features and for predictions, each weighted 0.1, beside `udaseg.losses.plca.adaptive_smoothing` and
    `lovasz_softmax`.

    Args:
        source, target: (B, D, h, w) features, or with `level="prediction"` logits (B, K, h, w); at stride 8 as in the paper. The
            aggregation of target vectors, which diffuses the gradient, happens here.
        source_label: (B, H, W).
        settings: of the paper.

    Returns:
        (), a zero with gradient where no cycle keeps its class.

    Raises:
        UserError: maps or labels of another layout.

    >>> source, target = (torch.randn(2, 64, 16, 16, requires_grad=True) for _ in range(2))
    >>> label = torch.randint(19, (2, 128, 128))
    >>> loss = 0.1 * plca(source, target, label)
    >>> logits_s, logits_t = (torch.randn(2, 19, 16, 16, requires_grad=True) for _ in range(2))
    >>> (loss + 0.1 * plca(logits_s, logits_t, label, PlcaSettings(level="prediction"))).backward()
    """
    source_label, size = _checked("plca", source, source_label)
    if target.ndim != 4 or target.shape[:2] != source.shape[:2]:
        raise UserError(
            f"plca: found target maps of shape {tuple(target.shape)} beside {tuple(source.shape)}, expected as many images and channels"
        )
    label = nearest_labels(source_label, size).flatten(1)
    x_s, x_t = source.flatten(2).mT, target.flatten(2).mT
    floor, tile, exclude = settings.floor, settings.tile, settings.exclude_self
    if settings.level == "feature":
        x_t = _plca.aggregated_features(x_t, alpha=settings.aggregation, floor=floor, tile=tile)
        cycles = _plca.feature_cycles(x_s, x_t, label, floor=floor, tile=tile, exclude_self=exclude)
    else:
        x_s, x_t = fp32(x_s).softmax(dim=2), fp32(x_t).softmax(dim=2)
        x_t = _plca.aggregated_probabilities(x_t, alpha=settings.aggregation, tile=tile)
        cycles = _plca.probability_cycles(x_s, x_t, label, floor=floor, tile=tile, exclude_self=exclude)
    return cycles.total / cycles.kept.sum().clamp(min=1)


# --- SePiCo ---------------------------------------------------------------------------------------------------------


class SepicoSettings(NamedTuple):
    """Xie, Li, Li, Liu, Huang, Wang, TPAMI 2023. The meaning of each: docs/methods/sepico.md."""

    prototype: Literal["proto", "bank", "dist"] = "dist"
    temperature: float = 100.0  # similarities are divided by it
    regulariser: float = 1.0  # its weight
    regulariser_sign: Literal["official", "uniform"] = "official"
    momentum: float | None = None  # of the statistics; None: every cell since the start weighs the same
    bank: int = 200  # centroids that `prototype="bank"` keeps of each class
    cell_ratio: float = 0.75  # share of a cell that its class must fill


SEPICO = SepicoSettings()  # the paper's


class SepicoState(NamedTuple):
    """What stands for each class: `number` (K,), `mean` (K, A), `variance` (K, A), float64; `bank` (K, M, A), `pushed` (K,)."""

    number: Tensor
    mean: Tensor
    variance: Tensor
    bank: Tensor
    pushed: Tensor


def sepico_state(
    classes: int, width: int, settings: SepicoSettings = SEPICO, device: torch.device | str = "cpu"
) -> SepicoState:
    """Nothing seen yet of K `classes` in embeddings of `width` channels."""
    slots = settings.bank if settings.prototype == "bank" else 0
    bank, pushed = _sepico.empty_bank(classes, slots, width, zero=False)
    moments = torch.zeros(2, classes, width, dtype=torch.float64)
    number = torch.zeros(classes, dtype=torch.float64)
    return SepicoState(*(x.to(device) for x in (number, moments[0], moments[1], bank, pushed)))


@torch.no_grad()
def sepico_update(
    state: SepicoState, embedding: Tensor, label: Tensor, settings: SepicoSettings = SEPICO
) -> SepicoState:
    """The state with a batch of source images added: (S3), (S4). Once a step, before `sepico`.

    Args:
        state: before; nothing in it is changed.
        embedding: (B, A, h, w) of source images, as the paper by the averaged teacher on weakly augmented ones.
        label: (B, H, W) their true classes.
        settings: the same as for `sepico_state`.
    """
    label, size = _checked("sepico", embedding, label)
    classes = _width("sepico", state.mean, embedding)
    key = _unit_rows(embedding)
    cells = cell_labels(label, size, classes, settings.cell_ratio).flatten()
    sums = _sepico.class_sums(key, cells, state.mean)
    new, centroid = _sepico.merged(_sepico.Statistics(*state[:3]), sums, settings.momentum)
    bank, pushed = state.bank, state.pushed
    if settings.prototype == "bank":
        bank, pushed = _sepico.push(bank, pushed, centroid, present=sums[:, 0] > 0)
    return SepicoState(*new, bank, pushed)


def sepico(embedding: Tensor, label: Tensor, state: SepicoState, settings: SepicoSettings = SEPICO) -> Tensor:
    """Contrast of each cell with what stands for the classes, and the regulariser: (S5) to (S8). The paper's weight is 1.

    Args:
        embedding: (B, A, h, w) of a projection head (512 wide in the paper); made unit length here. Only it receives gradient.
        label: (B, H, W): true classes of source images, the teacher's sure ones of target images (255 elsewhere).
        state: of `sepico_update`.
        settings: the same.

    Returns:
        (), a zero with gradient where no cell has a class that was seen.

    Raises:
        UserError: maps or labels of another layout.

    >>> state = sepico_state(classes=19, width=64)
    >>> features, label = torch.randn(2, 64, 16, 16, requires_grad=True), torch.arange(2).repeat_interleave(64).repeat(2, 128, 1)
    >>> state = sepico_update(state, features, label)
    >>> sepico(features, label, state).backward()
    """
    label, size = _checked("sepico", embedding, label)
    classes = _width("sepico", state.mean, embedding)
    t, mean = settings.temperature, state.mean
    q = _unit_rows(embedding)
    cells = cell_labels(label, size, classes, settings.cell_ratio).flatten()
    seen = state.pushed > 0 if settings.prototype == "bank" else state.number > 0
    if settings.prototype == "proto":
        loss = _sepico.proto_contrast(q, cells, mean, seen, t)
    elif settings.prototype == "bank":
        loss = _sepico.bank_contrast(q, cells, state.bank, state.pushed, t)
    else:
        loss = _sepico.dist_contrast(q, cells, mean, state.variance, seen, t)
    if not settings.regulariser:
        return loss
    sign = 1.0 if settings.regulariser_sign == "official" else -1.0
    number = _sepico.anchors(cells, seen)[0].sum()
    regulariser = _sepico.regulariser(_sepico.anchor_sum(q, cells, seen), number, mean, seen, t, sign)
    return loss + settings.regulariser * regulariser


# --- PiPa -----------------------------------------------------------------------------------------------------------


class PipaPixelSettings(NamedTuple):
    """Chen, Zheng, Yang, Chua, ACM MM 2023, pixel contrast. The meaning of each: docs/methods/pipa.md."""

    temperature: float = 0.1
    base_temperature: float = 0.07  # the loss is scaled by temperature / base_temperature
    anchors: int = 1024  # at most, over the batch
    eligible: float = 0.0061  # a class of an image needs more cells than this share, and gives at most as many anchors


PIPA_PIXEL = PipaPixelSettings()  # the paper's


def pipa_pixel(
    embedding: Tensor,
    label: Tensor,
    logits: Tensor,
    settings: PipaPixelSettings = PIPA_PIXEL,
    generator: torch.Generator | None = None,
) -> Tensor:
    """InfoNCE among chosen cells of labelled images, half of them predicted wrongly: (P1) to (P4). The paper's weight is 0.1.

    Args:
        embedding: (B, D, h, w) of a projection head (256 wide in the paper); made unit length here.
        label: (B, H, W) true classes.
        logits: (B, K, h', w') of the network, which tell cells that it labels wrongly from easy ones; at any size.
        settings: of the paper.
        generator: for the choice of anchors; None: torch's own.

    Returns:
        (), a zero with gradient where no two anchors share a class.

    Raises:
        UserError: maps or labels of another layout.

    >>> features, label = torch.randn(2, 64, 32, 32, requires_grad=True), torch.randint(4, (2, 256, 256))
    >>> logits = torch.randn(2, 19, 32, 32)
    >>> (0.1 * pipa_pixel(features, label, logits)).backward()
    """
    label, size = _checked("pipa_pixel", embedding, label)
    if logits.ndim != 4 or len(logits) != len(label):
        raise UserError(
            f"pipa_pixel: found logits of shape {tuple(logits.shape)}, expected ({len(label)}, classes, height, width)"
        )
    label, predicted = nearest_labels(label, size), nearest_labels(logits.argmax(dim=1), size)
    sizes = _pipa.group_sizes(label, predicted, logits.shape[1])
    fewest = max(1, round(settings.eligible * size[0] * size[1]))
    eligible = sizes.sum(dim=-1) > fewest
    quota = _pipa.anchor_quotas(sizes, _pipa.anchors_per_group(eligible.sum(), settings.anchors, fewest))
    keys = torch.rand(label.shape, generator=generator, device=generator.device if generator else label.device)
    cells, filled = _pipa.choose_anchors(
        label, predicted, keys.to(label.device), quota * eligible[..., None], settings.anchors
    )
    anchors = _unit_rows(embedding)[cells]
    return _pipa.pixel_contrast(
        anchors, label.flatten()[cells], filled, settings.temperature, settings.base_temperature
    )


class PipaPatchSettings(NamedTuple):
    """The same paper, patch contrast. The meaning of each: docs/methods/pipa.md."""

    temperature: float = 0.1
    confidence: float = 0.9  # from which a view teaches the other
    mask: bool = True  # only towards the more confident view, and only where it is confident
    bank_steps: int = 3  # the present step and those before whose cells are negatives
    bank_share: float = 0.09876543  # of each view's cells that enter the bank


PIPA_PATCH = PipaPatchSettings()  # the paper's


class PipaBank(NamedTuple):
    """Negatives of the last steps: `keys` (S, n, D) and their predicted classes `label` (S, n), -1 where empty."""

    keys: Tensor
    label: Tensor


def pipa_patch(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    overlap: Tensor,
    flipped: Tensor,
    bank: PipaBank | None = None,
    settings: PipaPatchSettings = PIPA_PATCH,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, PipaBank]:
    """Two crops of each unlabelled image agree where they overlap, the less sure view learning: (P6) to (P10).

    The paper's weight is 0.1, and 0.01 on HRDA (`pipa-mild` in our tables says why one may begin there).

    Args:
        first, second: of each view its embeddings (B, D, h, w), 128 wide in the paper and made unit length here, and class
            probabilities (B, K, h, w), the teacher's.
        overlap: (B, 2, 4) int, the shared cells in the first and second view before flips: top, left, height, width.
        flipped: (B, 2) bool, whether each view is mirrored.
        bank: of the step before; None to begin with.
        settings: of the paper.
        generator: for the cells that enter the bank; None: torch's own.

    Returns:
        (), a zero with gradient where no view is sure, and the bank for the next step.

    Raises:
        UserError: maps of another layout.

    >>> e1, e2 = (torch.randn(2, 64, 16, 16, requires_grad=True) for _ in range(2))
    >>> p1, p2 = (torch.randn(2, 19, 16, 16).mul(9).softmax(dim=1) for _ in range(2))
    >>> overlap = torch.tensor([[[4, 0, 12, 16], [0, 0, 12, 16]]]).expand(2, 2, 4)
    >>> loss, bank = pipa_patch((e1, p1), (e2, p2), overlap, torch.zeros(2, 2, dtype=torch.bool))
    >>> (0.1 * loss).backward()
    """
    for maps, shares in (first, second):
        if maps.ndim != 4 or maps.shape != first[0].shape or shares.shape[::2] != maps.shape[::2] or shares.ndim != 4:
            raise UserError(
                f"pipa_patch: found embeddings {tuple(maps.shape)} with probabilities {tuple(shares.shape)}, expected "
                f"(images, channels, height, width) and (images, classes, height, width), the same in both views"
            )
    batch, width, h, w = first[0].shape
    e = torch.stack([_unit(maps).flatten(2).mT for maps, _ in (first, second)], dim=1)  # B x 2 x N x D
    confidence, label = torch.stack([fp32(p).flatten(2).mT for _, p in (first, second)], dim=1).max(dim=-1)
    match, shared = _pipa.matching_cells(overlap, flipped, (h, w))
    image = torch.arange(batch, device=e.device)[:, None]
    (f1, f2), (c1, c2), (s1, s2) = ((x[:, 0], x[image, 1, match]) for x in (e, label, confidence))
    masks = [shared, shared]
    if settings.mask:
        masks = [mask & shared for mask in _pipa.directions(s1, s2, settings.confidence)]

    sampled = max(1, round(settings.bank_share * h * w))
    if bank is None:
        kept = (settings.bank_steps, 2 * batch * sampled)
        bank = PipaBank(e.new_zeros(*kept, width), label.new_full(kept, -1))
    order = torch.rand(batch, 2, h * w, generator=generator, device=generator.device if generator else e.device)
    chosen = order.to(e.device).argsort(dim=2)[..., :sampled]
    new_keys = e.detach().gather(2, chosen[..., None].expand(-1, -1, -1, width)).flatten(0, 2)
    new_label = label.gather(2, chosen).flatten()
    if len(new_label) != bank.label.shape[1]:
        raise UserError(
            f"pipa_patch: found {len(new_label)} cells for a bank of {bank.label.shape[1]}, expected batches of one size"
        )
    bank = PipaBank(_pipa.pushed(bank.keys, new_keys), _pipa.pushed(bank.label, new_label))

    keys, tags = bank.keys.flatten(0, 1)[None], bank.label.flatten()[None]
    loss = e.sum() * 0
    for (query, positive, tag), mask in zip(((f1, f2, c1), (f2, f1, c2)), masks, strict=True):
        weight = mask / mask.sum().clamp(min=1)
        loss = loss + _pipa.patch_contrast(query, positive, tag, weight, keys, tags, settings.temperature)
    return loss, bank


# --- CLUDA ----------------------------------------------------------------------------------------------------------


class CludaSettings(NamedTuple):
    """Vayyat, Kasi, Bhattacharya, Ahmed, Tallamraju, arXiv 2208.14227. The meaning of each: docs/methods/cluda.md."""

    temperature: float = 1.0
    stride: int = 8  # of the grid of pixels that are compared; 16 on HRDA
    anchors: int | None = None  # drawn from each image's grid; None: all
    gate: Literal["row", "both"] = "row"  # detail partners: all pixels of a class, or those inside the detail crop


CLUDA = CludaSettings()  # the paper's


class CludaDetail(NamedTuple):
    """The second resolution, where a network has one.

    Attributes:
        features: (B, D, h', w') of one crop of each image.
        boxes: (B, 4) top, left, bottom, right of the crops, in pixels of the labels.
        blend: (B, 1, h, w) learned weight in 0..1 of the pairs within the context: (C3).
    """

    features: Tensor
    boxes: Tensor
    blend: Tensor


def cluda(
    features: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    detail: CludaDetail | None = None,
    settings: CludaSettings = CLUDA,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Supervised contrast among the grid positions of a batch: (C1), (C2), and (C4) with a detail crop. The paper's weight is 1.

    Args:
        features: (B, D, h, w), the fused map before the classifier; made unit length here.
        label: (B, H, W): true classes of source images, mixed ones of class-mixed images.
        weight: (B, H, W) of each pixel, the teacher's share of sure pixels in pasted-on targets; None: 1.
        detail: of the second resolution.
        settings: of the paper.
        generator: for `settings.anchors`; None: torch's own.

    Raises:
        UserError: maps or labels of another layout, or smaller than the stride.

    >>> features, label = torch.randn(2, 64, 16, 16, requires_grad=True), torch.randint(19, (2, 128, 128))
    >>> cluda(features, label).backward()
    """
    label, _ = _checked("cluda", features, label)
    size = (label.shape[1], label.shape[2])
    cells = (size[0] // settings.stride, size[1] // settings.stride)
    if min(cells) < 1:
        raise UserError(f"cluda: found labels of {size} pixels, expected at least the stride, {settings.stride}")
    y = _cluda.labels_on_grid(label, cells).flatten()
    if weight is None:
        w = torch.ones(len(y), device=features.device)
    else:
        w = _cluda.rows(_cluda.on_grid(weight[:, None], cells))[:, 0]
    positions, own = cells[0] * cells[1], None
    if settings.anchors is not None and settings.anchors < positions:
        order = torch.rand(
            len(label), positions, generator=generator, device=generator.device if generator else y.device
        )
        drawn = order.to(y.device).argsort(dim=1)[:, : settings.anchors]
        own = (torch.arange(len(label), device=y.device)[:, None] * positions + drawn).flatten()
    low = _cluda.rows(_cluda.on_grid(features, cells))
    if detail is None:
        return _cluda.pixel_contrast(low, y, w, anchors=own, temperature=settings.temperature)
    high, inside = _cluda.detail_on_grid(detail.features, detail.boxes, size, cells)
    blend = _cluda.rows(_cluda.on_grid(detail.blend, cells))[:, 0]
    return _cluda.multi_resolution_contrast(
        *(low, _cluda.rows(high), y, w, blend, inside.flatten()),
        gate=settings.gate,
        anchors=own,
        temperature=settings.temperature,
    )


# --- what they share ------------------------------------------------------------------------------------------------


def _unit(maps: Tensor) -> Tensor:
    return F.normalize(fp32(maps), dim=1)


def _unit_rows(maps: Tensor) -> Tensor:
    """(B, D, h, w) to (B h w, D), each of length 1."""
    return _unit(maps).permute(0, 2, 3, 1).flatten(0, 2)


def _checked(name: str, maps: Tensor, label: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The labels as int64, and (h, w) of the maps."""
    if maps.ndim != 4 or not maps.is_floating_point():
        raise UserError(
            f"{name}: found maps of shape {tuple(maps.shape)} and type {maps.dtype}, expected (images, channels, height, width) of floats"
        )
    if label.ndim != 3 or len(label) != len(maps) or label.is_floating_point():
        raise UserError(
            f"{name}: found labels of shape {tuple(label.shape)} and type {label.dtype}, expected ({len(maps)}, height, width) of integers"
        )
    return label.long(), (maps.shape[2], maps.shape[3])


def _width(name: str, of_classes: Tensor, maps: Tensor) -> int:
    """K of the (K, D) state."""
    if of_classes.shape[1] != maps.shape[1]:
        raise UserError(f"{name}: found maps of {maps.shape[1]} channels, expected {of_classes.shape[1]}, as its state")
    return len(of_classes)
