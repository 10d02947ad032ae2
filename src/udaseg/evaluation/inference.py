"""From images to logits at label size: whole image, sliding windows, flip and several scales.

A `Predict` takes normalised images (B, 3, h, w) and a size (H, W) and returns logits (B, K, H, W), as `Segmenter.predict`.
Conventions of mmsegmentation: windows are averaged as logits, augmentations as probabilities
(mmseg/models/segmentors/encoder_decoder.py: slide_inference, aug_test).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.losses.segmentation import resized
from udaseg.methods.base import Predict
from udaseg.models.windows import windows
from udaseg.params import Test

WINDOWS_AT_ONCE = 8


def from_test(predict: Predict, test: Test) -> Predict:
    """`predict` on whole images or in windows, as the benchmark's test block says."""
    if test.mode == "whole" or test.window is None or test.stride is None:
        return predict
    window, stride = ((size.height, size.width) for size in (test.window, test.stride))
    return functools.partial(slide, predict, window=window, stride=stride)


def slide(
    predict: Predict, images: Tensor, size: tuple[int, int], *, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Logits (B, K, *size): the mean over the windows that hold a pixel, up-sampled bilinearly.

    A window that holds the whole image is exactly `predict` on the image.

    Args:
        predict: see the top of this file.
        images: (B, 3, h, w), normalised.
        size: of the result, (H, W).
        window, stride: (height, width) in pixels of `images`.
    """
    batch, _, h, w = images.shape
    box = (min(window[0], h), min(window[1], w))
    if box == (h, w):
        return predict(images, size)
    corners = windows(h, w, box, stride)
    total: Tensor | None = None
    covered = torch.zeros(h, w, device=images.device)
    at_once = max(1, WINDOWS_AT_ONCE // batch)
    for begin in range(0, len(corners), at_once):
        some = corners[begin : begin + at_once]
        crops = torch.cat([images[:, :, y : y + box[0], x : x + box[1]] for y, x in some])
        logits = predict(crops, box)
        if total is None:
            total = logits.new_zeros(batch, logits.shape[1], h, w)
        for (y, x), part in zip(some, logits.split(batch), strict=True):
            total[:, :, y : y + box[0], x : x + box[1]] += part
            covered[y : y + box[0], x : x + box[1]] += 1
    assert total is not None  # there is at least one window
    return resized(total / covered, size)


def augmented(
    predict: Predict, images: Tensor, size: tuple[int, int], *, scales: Sequence[float], flip: bool
) -> Tensor:
    """Class probabilities (B, K, *size), the mean over `scales` and, with `flip`, over the mirrored images too.

    Args:
        predict: see the top of this file.
        images: (B, 3, h, w), normalised.
        size: of the result, (H, W).
        scales: factors on the input's height and width; 1.0 is the image as it is.
        flip: also look at the images mirrored left to right.
    """
    h, w = images.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        scaled = shrunk_or_enlarged(images, (max(1, round(h * scale)), max(1, round(w * scale))))
        for mirrored in (False, True) if flip else (False,):
            logits = predict(scaled.flip(-1) if mirrored else scaled, size)
            probability = (logits.flip(-1) if mirrored else logits).softmax(1)
            total = probability if total is None else total.add_(probability)
    assert total is not None  # params.yaml has at least one scale
    return total / (len(scales) * (1 + flip))


def shrunk_or_enlarged(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear; a smaller image is averaged down, not sampled."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
