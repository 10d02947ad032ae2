"""Networks that share all but their stems."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from udaseg.errors import UserError
from udaseg.models import build_model
from udaseg.models.stems import with_own_stem
from udaseg.params import Model


def model(backbone: str, **args: Any) -> Model:
    unit = (1.0, 1.0, 1.0)
    return Model(backbone, args, "daformer", 16, (6,), 0.0, "none", (0.0, 0.0, 0.0), unit, "train")


@pytest.mark.parametrize(
    ("backbone", "stem"),
    [
        ("resnet10t", ("conv1", "bn1", "layer1")),
        ("mobilenetv2_100", ("conv_stem", "bn1", "blocks.0", "blocks.1")),
        ("pvt_v2_b0", ("patch_embed", "stages_0")),
    ],
)
def test_what_is_shared_and_what_is_not(backbone: str, stem: tuple[str, ...]) -> None:
    network = build_model(model(backbone), 5)
    twin = with_own_stem(network)
    one, two = dict(network.named_parameters()), dict(twin.named_parameters())
    assert list(one) == list(two)
    own = {name for name in one if one[name] is not two[name]}
    prefixes = tuple(f"encoder.body.{part}." for part in stem)
    assert own == {name for name in one if name.startswith(prefixes)}
    assert all(any(name.startswith(prefix) for name in own) for prefix in prefixes)
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.eval()(image).logits, twin.eval()(image).logits)
    with torch.no_grad():
        one[next(name for name in one if name in own)].mul_(-2)
    assert not torch.equal(network(image).logits, twin(image).logits)


def test_no_stem_to_split() -> None:
    with pytest.raises(UserError, match="has no stem to split"):
        with_own_stem(build_model(model("vit_tiny_patch16_224"), 5))
