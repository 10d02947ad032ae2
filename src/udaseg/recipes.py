"""The method blocks of params.yaml: what each paper leaves to be set. Meanings and sources: docs/methods/*.md.

Steps that papers give for 40 000 iterations are fractions of the run here. A value left at its default is not part of a run's
hash, so that a new key does not disown old results. `contrast` names the keys that matter to a method's contrast alone, and
`contrasts` says whether there is any: two recipes that agree in all other keys, one of them without contrast, are twins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Start = Literal["imagenet", "source_only", "none"]
Variant = Literal["paper", "released"]
TERMS = ("sepico", "pipa", "cluda")


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
    contrast: ClassVar[tuple[str, ...]] = ()
    contrasts: ClassVar[bool] = False


@dataclass(frozen=True)
class Statistics:
    """SePiCo's running moments of the source classes."""

    start: float  # fraction of the run
    momentum: float | None  # None: cumulative over the run, as released


@dataclass(frozen=True)
class Bank:
    """SePiCo's centroids of the last batches of each class."""

    length: int  # at most
    span: float  # in steps, as a fraction of the run
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
    width: float  # of the embedding, times the model's `width`
    domains: tuple[Literal["source", "target"], ...] = ("source", "target")


@dataclass(frozen=True)
class PixelContrast:
    weight: float
    temperature: float
    base_temperature: float
    start: float  # fraction of the run
    anchors: int  # at most, over the global batch
    eligible: float  # a class of an image needs more cells than this share of them, and gives at most as many anchors
    width: int  # of the embedding


@dataclass(frozen=True)
class PatchContrast:
    weight: float
    temperature: float
    start: float
    crop: float  # side of the square crops, as a share of the target image's height
    scale: tuple[float, float]  # random factor on the target image
    iou: tuple[float, float]  # of the two crops
    confidence: float  # from which a view teaches the other
    mask: bool  # only towards the more confident view, and only where it is confident
    negatives: Literal["bank", "other_view"]
    bank_steps: int
    bank_share: float  # of each crop's cells that enter the bank
    width: int  # of the embedding
    jitter_p: float
    jitter: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    grey: float  # probability
    blur: float  # probability


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
    frequency: tuple[float, ...]  # of the classes, which says how rare they are


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
    contrast: ClassVar[tuple[str, ...]] = ("terms", *TERMS)

    @property
    def contrasts(self) -> bool:
        return bool(self.terms)


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
    calibration: Literal["none", "static", "hybrid"]  # by which target labels the bias is measured
    momentum: float  # of the calibration
    feature: Literal["auto", "branches", "stage", "decoder"]
    split_stem: bool
    scale: tuple[float, float] | None
    crop_max_ratio: float
    rare_class_temperature: float | None
    native: dict[str, Any] = field(default_factory=dict)
    contrast: ClassVar[tuple[str, ...]] = (
        *("forward", "backward", "temperature", "labels", "confidence", "hybrid_in", "prototypes", "normalise"),
        *("calibration", "momentum", "feature"),
    )

    @property
    def contrasts(self) -> bool:
        return self.forward > 0 or self.backward > 0


@dataclass(frozen=True)
class Plca:
    variant: Variant
    terms: tuple[str, ...]
    init: Start
    association: float  # weight of each level
    levels: tuple[Literal["feature", "prediction"], ...]
    aggregation: float  # alpha: share of the similarity-weighted mean in each target vector; 0: off
    lsr: float  # weight of adaptive smoothing on the source
    lsr_target: float
    lsr_limit: float  # where it turns from sharpening to smoothing
    lovasz: float
    floor: float  # least standard deviation of a row of similarities
    stride: int  # of the grid on which pixels are associated
    tile: int  # rows of similarities in memory at a time
    max_pixels: int | None  # positions drawn from each image; None: all
    exclude_self: bool  # drop cycles that end where they began
    scale: tuple[float, float] | None
    crop_max_ratio: float
    rare_class_temperature: float | None
    native: dict[str, Any] = field(default_factory=dict)
    contrast: ClassVar[tuple[str, ...]] = (
        *("association", "levels", "aggregation", "floor", "stride", "tile"),
        *("max_pixels", "exclude_self"),
    )

    @property
    def contrasts(self) -> bool:
        return bool(self.levels) and self.association > 0


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
