"""Model blocks for the tests of this folder."""

from collections.abc import Callable
from typing import Any

import pytest

from udaseg.params import Model

SMALL: dict[str, Any] = {
    "backbone": "resnet10t",
    "backbone_args": {},
    "head": "daformer",
    "width": 16,
    "dilations": (6, 12, 18),
    "dropout": 0.1,
    "weights": "none",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "batch_norm": "train",
}


@pytest.fixture
def block() -> Callable[..., Model]:
    """`block(head="deeplabv2")`: a small model block with some fields changed."""
    return lambda **changes: Model(**{**SMALL, **changes})
