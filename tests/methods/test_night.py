"""The day reference of night images: numbers of docs/methods/sepico.md and cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from steps import BLOCKS

from udaseg.classes import class_space
from udaseg.errors import UserError
from udaseg.methods.step.night import class_weights, day_and_night, static_classes

FREQUENCY = BLOCKS["sepico-night"]["day_reference"]["frequency"]


def test_class_weights_are_the_released_ones() -> None:
    expected = [0.9041, 0.9542, 0.9175, 1.0162, 1.0081, 0.9988, 1.0482, 1.0210, 0.9275, 1.0004,
                0.9658, 0.9990, 1.0601, 0.9504, 1.0411, 1.0447, 1.0450, 1.0689, 1.0290]  # fmt: skip
    assert class_weights(FREQUENCY, 0.05).tolist() == pytest.approx(expected, abs=5e-5)
    with pytest.raises(UserError, match="expected all above 0"):
        class_weights(FREQUENCY, 0.6)


def test_static_classes_are_those_of_the_released_code() -> None:
    static = static_classes(class_space("cityscapes19").names)
    assert torch.nonzero(static).flatten().tolist() == [0, 1, 2, 3, 4, 8, 9, 10]


def test_day_tells_of_what_stands_where_it_is_sure() -> None:
    static = torch.tensor([True, True, False])
    day = torch.tensor([0.5, 0.4, 0.1]).view(1, 3, 1, 1)  # 0.4 is not above 0.4
    night = torch.tensor([0.2, 0.1, 0.7]).view(1, 3, 1, 1)
    mixed = day_and_night(day, night, static, confident=0.4, weight=0.8)
    assert mixed.flatten().tolist() == pytest.approx([0.8 * 0.5 + 0.2 * 0.2, 0.2 * 0.4 + 0.8 * 0.1, 0.7])
