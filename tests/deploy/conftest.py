"""Model files for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_model


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """`make_model("name", method="self_training", classes="camvid11", backbone="pvt_v2_b0")`: a new model file's path."""

    def make(name: str = "model", **changes: Any) -> Path:
        return write_model(tmp_path / name, **changes)

    return make
