"""A step at full size on tensors that claim to be on a GPU: nothing waits for the host, every loss is single precision.

The whole grid is tests/bench/grid.py (`make plan-check`); here is each method, on each family of networks in turn, with one
block a stage: those after it repeat it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from tiny_project import ROOT
from udaseg import params
from udaseg.bench import fake
from udaseg.methods.base import Losses
from udaseg.methods.self_training import SelfTrainingMethod
from udaseg.models import Segmenter

ONE_BLOCK = {"pvt_v2_b5": {"depths": [1, 1, 1, 1]}, "resnet101c": {"layers": [1, 1, 1, 1]}}


def shallow() -> params.Params:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for block in raw["benchmarks"].values():
        model = block["model"]
        block["model"] = model | {"backbone_args": model["backbone_args"] | ONE_BLOCK.get(model["backbone"], {})}
    return params.parse(raw)


PARAMS = shallow()
MiT, DEEPLAB, VIT, HRDA, HRDA_DEEPLAB = (
    f"gta2cityscapes{name}" for name in ("", "-dlv2", "-dinov2", "-hrda", "-dlv2-hrda")
)
# Each method on MiT, and each family with one of the methods that look at its features in their own way.
CASES = [
    *((MiT, name) for name in ("source_only", "self_training", "bcl", "plca", "sepico", "pipa", "cluda", "mic")),
    (DEEPLAB, "bcl"),
    (DEEPLAB, "sepico"),
    (VIT, "self_training"),
    (VIT, "plca"),
    (HRDA, "cluda-hrda"),
    (HRDA, "pipa-hrda"),
    (HRDA_DEEPLAB, "mic-hrda"),
    (HRDA_DEEPLAB, "oracle"),
]


@pytest.mark.parametrize(("benchmark", "method"), CASES)
def test_nothing_waits_and_losses_are_single_precision(benchmark: str, method: str) -> None:
    assert fake.faults(PARAMS.resolve(benchmark, method, 0)) == []


def test_teachers_look_in_mixed_precision() -> None:
    """Where the student does: its logits are bf16, and become fp32 before their softmax."""
    seen = []

    def note(module: torch.nn.Module, args: object, output: tuple[torch.Tensor, ...]) -> None:
        seen.append((module.training, output[0].dtype, output[0].requires_grad))

    with torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: note(module, args, output) if type(module).__name__ == "FusionHead" else None
    ):
        fake.faults(PARAMS.resolve("streets2camvid", "self_training", 0))
        assert [dtype for _, dtype, _ in seen] == [torch.float32] * 3
        seen.clear()
        fake.faults(PARAMS.resolve(MiT, "self_training", 0))
    assert [(dtype, gradient) for _, dtype, gradient in seen] == [(torch.bfloat16, n > 0) for n in range(3)]


def broken(monkeypatch: pytest.MonkeyPatch, change: object) -> list[str]:
    """Faults of a self-training step whose first losses go through `change`."""
    original = SelfTrainingMethod.losses

    def losses(self: SelfTrainingMethod, batch: fake.Batch, step: int) -> Iterator[Losses]:
        for found in original(self, batch, step):
            yield {name: change(value) for name, value in found.items()}  # type: ignore[operator]

    with monkeypatch.context() as patch:
        patch.setattr(SelfTrainingMethod, "losses", losses)
        return fake.faults(PARAMS.resolve("streets", "self_training", 0))


def test_a_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataDependentOutputException):
        broken(monkeypatch, lambda loss: loss * loss.item())
    with pytest.raises(DynamicOutputShapeException):
        broken(monkeypatch, lambda loss: loss + loss.repeat(5)[loss.repeat(5) > 0].sum())
    assert any("on the host" in each for each in broken(monkeypatch, lambda loss: loss.detach().cpu()))
    assert "loss source: torch.bfloat16 of shape () on cuda:0" in broken(monkeypatch, lambda loss: loss.bfloat16())


def test_a_map_made_on_the_host_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(self: Segmenter, output: object, label: torch.Tensor, *args: object) -> torch.Tensor:
        weight = torch.ones(label.shape).to(label.device)
        return (weight * output.logits.float().mean()).mean()  # type: ignore[attr-defined]

    monkeypatch.setattr(Segmenter, "loss", loss)
    found = fake.faults(PARAMS.resolve("streets", "self_training", 0))
    assert len(found) == 2 and all(each.startswith("on the host: aten.ones") for each in found)
