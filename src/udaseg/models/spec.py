"""What the network builder reads from a model block of params.yaml; `udaseg.params.Model` fits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Box(Protocol):
    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...


class HrdaSpec(Protocol):
    """What makes a network one of two resolutions: docs/methods/hrda.md."""

    @property
    def detail(self) -> Box:
        """Size of the detail crops and windows in pixels."""

    @property
    def variant(self) -> str:
        """`paper` or `released`."""

    @property
    def box_step(self) -> int:
        """Random boxes lie at multiples of this number of pixels."""

    @property
    def detail_weight(self) -> float:
        """Share of the detail logits' own cross-entropy in the loss."""

    @property
    def context_weight(self) -> float:
        """Share of the context logits' own cross-entropy in the loss."""

    @property
    def fusion(self) -> str:
        """`hrda` or `cluda`: what is enlarged first."""

    @property
    def windows_at_once(self) -> int | None:
        """Windows that share a pass of the teacher; None: all."""


class ModelSpec(Protocol):
    """One model block. A protocol, so that tests and other tools can build networks without a parameter file."""

    @property
    def backbone(self) -> str:
        """timm name without a weights tag, e.g. `resnet101c` or `pvt_v2_b5`."""

    @property
    def backbone_args(self) -> Mapping[str, Any]:
        """Arguments of the timm constructor, e.g. `{output_stride: 8}`."""

    @property
    def head(self) -> str:
        """`deeplabv2`, `daformer` or `segformer`."""

    @property
    def width(self) -> int:
        """Embedding width of the fusion heads (256 in the DAFormer paper); deeplabv2 has none."""

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilations of the 3x3 branches; segformer has none."""

    @property
    def weights(self) -> str:
        """`none`, `timm:<tag>`, `<name>.<tag>` (a file of the mirror) or a path."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """RGB mean of 0..1 images."""

    @property
    def std(self) -> tuple[float, float, float]:
        """RGB standard deviation of 0..1 images."""

    @property
    def batch_norm(self) -> str:
        """`train`, or `eval`: the running statistics of the encoder stay as loaded."""

    @property
    def dropout(self) -> float:
        """Probability of dropping a channel before the classifier; deeplabv2 has none."""

    @property
    def positions(self) -> str:
        """How a plain ViT's position table is resized: `timm` or `hub`."""

    @property
    def frozen(self) -> bool:
        """The encoder is not trained."""

    @property
    def embedding(self) -> int | None:
        """Width of the embeddings of the fusion heads; None: `width`."""

    @property
    def embedding_norm(self) -> bool:
        """Whether BatchNorm and ReLU follow each embedding."""

    @property
    def hrda(self) -> HrdaSpec | None:
        """None: one resolution."""
