"""The method blocks of params.yaml: what each paper leaves to be set. Meanings and sources: docs/methods/*.md.

Steps that papers give for 40 000 iterations are fractions of the run here. A value left at its default is not part of a run's
hash, so that a new key does not disown old results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Start = Literal["imagenet", "source_only", "none"]
Variant = Literal["paper", "released"]


@dataclass(frozen=True)
class Jitter:
    p: float
    strength: float


@dataclass(frozen=True)
class Blur:
    p: float
    sigma: tuple[float, float]


@dataclass(frozen=True)
class Supervised:
    """source_only and oracle: cross-entropy on one labelled domain."""

    variant: Variant
    terms: tuple[str, ...]
    init: Start
    photometric: bool
    crop_max_ratio: float
    native: dict[str, Any]


@dataclass(frozen=True)
class Statistics:
    """SePiCo's running moments of the source classes."""

    start: float  # fraction of the run
    momentum: float | None  # None: cumulative over the run, as released


@dataclass(frozen=True)
class Bank:
    length: int
    zero: bool  # begin with one zero vector for each class, as released


@dataclass(frozen=True)
class Sepico:
    prototype: Literal["proto", "bank", "dist"]
    temperature: float
    weight: float
    regulariser: float
    regulariser_sign: Literal["official", "uniform"]
    start: float  # fraction of the run
    statistics: Statistics
    bank: Bank
    cell_ratio: float
    width: int  # of the embedding
    domains: tuple[Literal["source", "target"], ...] = ("source", "target")


@dataclass(frozen=True)
class PixelContrast:
    weight: float
    temperature: float
    base_temperature: float
    start: float  # fraction of the run
    anchors: int  # at most, over the global batch
    per_group: int  # at most, of one class in one image
    eligible: float  # a class needs more than this share of an image's cells
    width: int


@dataclass(frozen=True)
class PatchContrast:
    weight: float
    temperature: float
    start: float
    crop: float  # side of the square crops, as a share of the target image's height
    scale: tuple[float, float]  # random factor on the target image
    iou: tuple[float, float]  # of the two crops
    confidence: float
    mask: bool  # only confident cells, and only towards the more confident view
    negatives: Literal["bank", "other_view"]
    bank_steps: int
    bank_share: float  # of each crop's cells that enter the bank
    width: int
    jitter_p: float
    jitter: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    grey: float
    blur: float


@dataclass(frozen=True)
class Pipa:
    pixel: PixelContrast | None
    patch: PatchContrast | None


@dataclass(frozen=True)
class Cluda:
    source: float  # weight
    mixed: float
    temperature: float
    stride: int  # of the grid of pixels that are compared
    anchors: int | None  # drawn uniformly from each image's grid positions; None: all
    gate: Literal["row", "both"]  # detail partners: all pixels of a class, or those inside the detail crop
    detail_crop: Literal["random", "entropy"]  # of the mixed images
    detail_start: float  # fraction of the run from which `entropy` chooses
    width: int  # of the learned weight's head, and of the projection where the network has no fused decoder map


@dataclass(frozen=True)
class DayReference:
    """Pseudo-labels of night images from the day image of the same place (SePiCo's Dark Zurich recipe)."""

    confident: float
    weight: float
    balance: float  # class weights 1 + balance * rarity, in the losses and the pseudo-labels
    test_balance: float  # the same on test probabilities, scored beside the headline
    rarity: tuple[float, ...]


@dataclass(frozen=True)
class SelfTraining:
    """The self-training step (DACS, DAFormer), alone or with contrastive terms."""

    variant: Variant
    terms: tuple[str, ...]
    init: Start
    teacher_horizon: float
    threshold: float
    source_view: Literal["weak", "strong"]
    crop_max_ratio: float
    rare_class_temperature: float | None
    feature_distance: float
    feature_distance_ratio: float
    jitter: Jitter
    blur: Blur
    native: dict[str, Any]
    target_crop: Literal["random", "balanced"] = "random"
    day_reference: DayReference | None = None
    sepico: Sepico | None = None
    pipa: Pipa | None = None
    cluda: Cluda | None = None


@dataclass(frozen=True)
class Bcl:
    variant: Variant
    terms: tuple[str, ...]
    init: Start
    rounds: int
    portion: float  # share of pixels that a round labels, for each class and image
    target: float  # weight of the target's cross-entropy and entropy
    entropy: float
    forward: float
    backward: float
    temperature: float
    labels: Literal["static", "dynamic", "hybrid"]
    confidence: float  # of dynamic labels
    hybrid_in: Literal["prototypes", "prototypes+anchors"]
    prototypes: Literal["pair", "batch"]
    normalise: bool
    calibration: Literal["off", "static", "hybrid"]  # with which labels the bias is measured
    momentum: float  # of the calibration
    feature: Literal["auto", "branches", "stage", "decoder"]
    split_stem: bool
    scale: tuple[float, float] | None
    crop_max_ratio: float
    rare_class_temperature: float | None
    native: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plca:
    variant: Variant
    terms: tuple[str, ...]
    init: Start
    association: float
    levels: tuple[Literal["feature", "prediction"], ...]
    aggregation: float
    lsr: float
    lsr_target: float
    lovasz: float
    floor: float  # least standard deviation of a row of similarities
    stride: int
    tile: int
    max_pixels: int | None
    exclude_self: bool
    scale: tuple[float, float] | None
    crop_max_ratio: float
    rare_class_temperature: float | None
    native: dict[str, Any] = field(default_factory=dict)


Recipe = Supervised | SelfTraining | Bcl | Plca

# The part of a method's name before the first "-" names its file in methods/ and the block it is checked against.
KINDS: dict[str, type] = {
    "source_only": Supervised,
    "oracle": Supervised,
    "self_training": SelfTraining,
    "sepico": SelfTraining,
    "pipa": SelfTraining,
    "cluda": SelfTraining,
    "bcl": Bcl,
    "plca": Plca,
}
TERMS = ("sepico", "pipa", "cluda")
