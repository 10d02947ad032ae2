"""Losses on segmentation logits.

shapes: B images, K classes, H W image size, N = B*H*W pixels
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Pixel-wise cross-entropy, averaged over ALL pixels: ignored ones count with value 0 (oracle O8).

    `reduction="mean"` of torch would divide by the valid pixels only, which is another loss.

    Args:
        logits: (B, K, H, W); computed in fp32 at least.
        label: (B, H, W) int64, 255 = ignore.
        weight: (B, H, W) or None (all ones).

    Returns:
        A scalar; 0 with a graph where every pixel is ignored.
    """
    logits_NK = logits.permute(0, 2, 3, 1).flatten(0, 2)
    logits_NK = logits_NK.to(torch.promote_types(logits.dtype, torch.float32))
    loss_N = F.cross_entropy(logits_NK, label.flatten(), ignore_index=IGNORE, reduction="none")
    if weight is not None:
        loss_N = loss_N * weight.flatten()
    return loss_N.mean()
