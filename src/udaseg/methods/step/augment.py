"""Photometric augmentation on the training device. Images are (B, 3, H, W) RGB in 0..1; labels are never touched.

Parameters are drawn on the CPU from the given generators, so that nothing waits for the device. Sources: DAFormer's released
configuration; docs/methods/self_training.md and source_only.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from udaseg.recipes.self_training import Blur, Jitter

BLUR_REACH = (
    5  # standard deviations on each side: for sigma <= 1.15 within 2e-6 of the published kernel of a tenth of the image
)


def photometric_distortion(images: Tensor, rngs: list[np.random.Generator]) -> Tensor:
    """Brightness +-32/255, contrast and saturation x 0.5..1.5, hue +-0.1 turns, each with p = 1/2, per image.

    Contrast comes before or after the change of saturation and hue, by a coin (DAFormer, source-only training).
    """
    return torch.stack([_distort(image, rng) for image, rng in zip(images, rngs, strict=True)])


def _distort(image: Tensor, rng: np.random.Generator) -> Tensor:
    brightness, contrast, saturation, hue = rng.random(4) < 0.5
    contrast_first = rng.random() < 0.5
    add, factor = float(rng.uniform(-32, 32)) / 255, float(rng.uniform(0.5, 1.5))
    scale, shift = float(rng.uniform(0.5, 1.5)), float(rng.integers(-18, 18)) / 180  # OpenCV hue: 180 steps a turn
    if brightness:
        image = (image + add).clamp(0, 1)
    if contrast and contrast_first:
        image = (image * factor).clamp(0, 1)
    if saturation:
        image = scale_saturation(image, scale)
    if hue:
        image = TF.adjust_hue(image, shift)
    if contrast and not contrast_first:
        image = (image * factor).clamp(0, 1)
    return image


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiply the saturation S of HSV by `factor`, clipped to 1; hue and value stay (torchvision mixes with grey instead).

    In RGB: every channel moves away from the maximum V by the same factor, at most until S = 1 (the smallest channel is 0).
    """
    value = image.amax(dim=-3, keepdim=True)
    chroma = value - image.amin(dim=-3, keepdim=True)
    largest = value / chroma.clamp(min=1e-6)
    return value - (value - image) * largest.clamp(max=factor)


def strong_augment(
    images: Tensor,
    gates: np.random.Generator,
    rngs: list[np.random.Generator],
    jitter: Jitter,
    blur: Blur,
    common: np.random.Generator | None = None,
) -> Tensor:
    """Colour jitter and Gaussian blur; each is switched once for the whole batch, its strength drawn per image.

    Args:
        images: (B, 3, H, W).
        gates: generator of the batch (the same on every rank).
        rngs: one generator per image.
        jitter: probability, strength of brightness, contrast, saturation and hue alike, and what these mean.
        blur: probability, and range of sigma in pixels.
        common: draws the order of the jitter's changes and sigma once for all images (MIC as released).
    """
    jittered, blurred = gates.random() < jitter.p, gates.random() < blur.p
    change = kornia_jitter if jitter.definition == "kornia" else colour_jitter
    with torch.autocast(images.device.type, enabled=False):  # bf16 has 8 bits: it would posterise the blurred image
        if jittered:
            strength = (jitter.strength,) * 4
            order = None if common is None else common.permutation(4)
            images = torch.stack([change(image, rng, strength, order) for image, rng in zip(images, rngs, strict=True)])
        if blurred:
            drawn = [common.uniform(*blur.sigma)] * len(rngs) if common else [rng.uniform(*blur.sigma) for rng in rngs]
            sigma = torch.tensor(drawn, dtype=images.dtype)
            images = gaussian_blur(
                images, sigma.to(images.device, non_blocking=True), math.ceil(BLUR_REACH * blur.sigma[1])
            )
    return images


def colour_jitter(
    image: Tensor, rng: np.random.Generator, strength: Sequence[float], order: np.ndarray | None = None
) -> Tensor:
    """torchvision's ColorJitter in random order: brightness multiplies, contrast about the mean grey, saturation mixes with grey.

    `strength` of brightness, contrast, saturation, and hue in turns; `order` of the four, if it is given.
    """
    brightness, contrast, saturation, hue = factors(rng, strength)
    changes = (
        lambda x: TF.adjust_brightness(x, brightness),
        lambda x: TF.adjust_contrast(x, contrast),
        lambda x: TF.adjust_saturation(x, saturation),
        lambda x: TF.adjust_hue(x, hue),
    )
    for k in rng.permutation(4) if order is None else order:
        image = changes[k](image)
    return image


def kornia_jitter(
    image: Tensor, rng: np.random.Generator, strength: Sequence[float], order: np.ndarray | None = None
) -> Tensor:
    """The ColorJitter of kornia 0.5.8, with which the DAFormer family was trained, in random order and with the same draws.

    With a factor f of 1 -+ strength: brightness adds f - 1, contrast multiplies by f (about 0, not the mean), both clamped to
    0..1; saturation multiplies S of HSV. Hue is the same in both. It changes an image about twice as much.
    """
    brightness, contrast, saturation, hue = factors(rng, strength)
    changes = (
        lambda x: (x + (brightness - 1)).clamp(0, 1),
        lambda x: (x * contrast).clamp(0, 1),
        lambda x: scale_saturation(x, saturation),
        lambda x: TF.adjust_hue(x, hue),
    )
    for k in rng.permutation(4) if order is None else order:
        image = changes[k](image)
    return image


def factors(rng: np.random.Generator, strength: Sequence[float]) -> tuple[float, float, float, float]:
    """Of brightness, contrast and saturation (1 -+ strength), and of hue in turns (0 -+ strength)."""
    brightness, contrast, saturation = (float(rng.uniform(1 - s, 1 + s)) for s in strength[:3])
    return brightness, contrast, saturation, float(rng.uniform(-strength[3], strength[3]))


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur image i with standard deviation sigma[i] pixels: two passes of 2 * radius + 1 taps, reflected borders."""
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)  # (3B, taps)
    batch, channels, height, width = images.shape
    flat = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels)
    return flat.reshape(batch, channels, height, width)
