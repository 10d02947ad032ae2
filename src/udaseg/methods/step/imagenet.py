"""Feature distance to ImageNet (FD): the encoder is to keep what it knew of things. (T2), (T3) of docs/methods/self_training.md.

B images, K classes, H W image size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udaseg import ranks
from udaseg.losses.segmentation import cell_labels, feature_distance
from udaseg.models import Output, Segmenter, build_model, load_encoder_weights
from udaseg.params import Run


def as_imagenet_left_it(run: Run) -> Segmenter:
    """The frozen reference, of which the encoder's maps are used."""
    reference = build_model(run.benchmark.model, len(run.classes))
    load_encoder_weights(reference, run.benchmark.model, "imagenet")
    return reference.requires_grad_(False).eval()


def distance_to(
    reference: Segmenter, images: Tensor, output: Output, label: Tensor, is_thing: Tensor, ratio: float
) -> Tensor:
    """Mean distance of the last stage's cells of thing classes to what the reference makes of the same images.

    Args:
        images: (B, 3, H, W), normalised; `output`: what the student made of them.
        label: (B, H, W).
        is_thing: (256,) label -> thing class?
        ratio: share of a cell that its class must fill at least.
    """
    features = output.stages[-1]
    with torch.no_grad():
        before = reference.stages(images)[-1]
        classes = output.logits.shape[1]
        mask = is_thing[cell_labels(label, (features.shape[-2], features.shape[-1]), classes, ratio)]
        cells_per_rank = ranks.total(mask.sum()) / ranks.world()
    return feature_distance(features, before, mask, cells_per_rank)
