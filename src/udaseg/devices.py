"""Where to compute."""

from __future__ import annotations

import os

import torch

from udaseg.errors import UserError


def choose(wanted: str, where: str) -> torch.device:
    """`auto` is CUDA where there is a device, this process's own under torchrun.

    Args:
        wanted: `auto`, `cpu` or `cuda`.
        where: what said so, for the message.

    Raises:
        UserError: `cuda` without a CUDA device.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{where}: found cuda, but no CUDA device is visible; say auto or cpu to use the CPU")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
