"""From a model block to a network."""

from __future__ import annotations

from udaseg.models.hrda import HrdaSegmenter
from udaseg.models.segmenter import Segmenter
from udaseg.models.spec import ModelSpec


def build_model(spec: ModelSpec, classes: int) -> Segmenter:
    """A segmenter with random weights; `load_encoder_weights` gives it pretrained ones.

    Raises:
        UserError: unknown backbone, backbone arguments, head or batch_norm, or two resolutions that do not fit the network.
    """
    return Segmenter(spec, classes) if spec.hrda is None else HrdaSegmenter(spec, classes)
