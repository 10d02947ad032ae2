"""Foundation encoders: plain ViTs of any crop size, their position table, frozen encoders, rates by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.engine.optim import parameter_groups
from udaseg.errors import UserError
from udaseg.models import build_model
from udaseg.params import Model, Optimizer

Block = Callable[..., Model]
DINO = "vit_small_patch14_dinov2"
SHORT: dict[str, Any] = {"depth": 4, "embed_dim": 24, "num_heads": 2}
ADAMW = Optimizer(
    name="adamw", lr=1e-5, head_factor=10, weight_decay=0.01, momentum=0.9, no_decay=True, layer_decay=0.9
)


def smooth_table(model: torch.nn.Module) -> Tensor:
    """Gives the network a position table that varies slowly, as trained ones do."""
    vit: Any = model.encoder.body.model  # type: ignore[union-attr]
    torch.manual_seed(0)
    side = vit.patch_embed.grid_size[0]
    grid = F.interpolate(torch.randn(1, 24, 6, 6), size=(side, side), mode="bicubic")
    with torch.no_grad():
        vit.pos_embed[:, 1:] = grid.flatten(2).transpose(1, 2)
    return grid


@pytest.mark.parametrize("name", [DINO, "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_taps_are_evenly_spaced_and_any_size_is_taken(name: str, block: Block) -> None:
    encoder = build_model(block(backbone=name), 5).encoder.eval()
    assert encoder.body.model.blocks is not None and len(encoder.channels) == 4
    with torch.no_grad():
        stages = encoder(torch.randn(1, 3, 75, 110))
    patch = encoder.multiple
    assert [stage.shape[-2:] for stage in stages] == [(-(-75 // patch), -(-110 // patch))] * 4


def test_the_position_table_is_resized_as_the_hub_does_it(block: Block) -> None:
    """An independent form: sampling the table bicubically at the hub's coordinates, (k + 0.5) / scale - 0.5."""
    model = build_model(block(backbone=DINO, backbone_args=SHORT, positions="hub"), 5).eval()
    grid = smooth_table(model)
    vit: Any = model.encoder.body.model
    rows, columns, side = 9, 13, grid.shape[-1]
    with torch.no_grad():
        tokens = vit._pos_embed(torch.zeros(1, rows, columns, 24))
    kernel = torch.tensor([[0.0, 1, 0, 0], [-0.75, 0, 0.75, 0], [1.5, -2.25, 1.5, -0.75], [-0.75, 1.25, -1.25, 0.75]])

    def matrix(n: int) -> Tensor:
        """(n, side) weights of Keys' cubic with a = -0.75, borders repeated."""
        out = torch.zeros(n, side)
        for k in range(n):
            place = (k + 0.5) / ((n + 0.1) / side) - 0.5
            first = int(torch.tensor(place).floor())
            t = place - first
            weights = torch.tensor([1, t, t * t, t**3]) @ kernel
            for j, weight in enumerate(weights):
                out[k, min(max(first - 1 + j, 0), side - 1)] += weight
        return out

    expected = matrix(rows) @ grid[0] @ matrix(columns).T
    assert torch.allclose(tokens[0, 1:].T.reshape(24, rows, columns), expected, atol=1e-4)


def test_the_two_ways_differ_by_percents_and_copies_keep_theirs(block: Block) -> None:
    tables = []
    for positions in ("hub", "timm"):
        model = copy.deepcopy(build_model(block(backbone=DINO, backbone_args=SHORT, positions=positions), 5)).eval()
        smooth_table(model)
        with torch.no_grad():
            tables.append(model.encoder.body.model._pos_embed(torch.zeros(1, 20, 20, 24))[0, 1:])
    assert 0.002 < (tables[0] - tables[1]).norm() / tables[1].norm() < 0.2
    registers = {"backbone": "vit_small_patch14_reg4_dinov2", "backbone_args": SHORT}
    same = [build_model(block(**registers, positions=positions), 5) for positions in ("hub", "timm")]
    same[1].load_state_dict(same[0].state_dict())
    with torch.no_grad():
        first, second = (model.eval().encoder(torch.ones(1, 3, 70, 70))[-1] for model in same)
    assert torch.equal(first, second)


def test_hub_positions_need_a_table(block: Block) -> None:
    for name in ("vit_small_patch16_dinov3", "resnet10t"):
        with pytest.raises(UserError, match=rf"model.positions: found hub for {name}, expected timm"):
            build_model(block(backbone=name, positions="hub"), 5)


def test_a_frozen_encoder_neither_trains_nor_drops(block: Block) -> None:
    arguments = {**SHORT, "drop_path_rate": 0.9, "proj_drop_rate": 0.9}
    model = build_model(block(backbone=DINO, backbone_args=arguments, frozen=True), 5).train()
    images, label = torch.randn(2, 3, 28, 42), torch.randint(0, 5, (2, 28, 42))
    assert torch.equal(model.stages(images)[-1], model.stages(images)[-1])
    model.loss(model(images), label).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    names = {id(p) for p in model.encoder.parameters()}
    groups = parameter_groups(model, Optimizer(**{**vars(ADAMW), "layer_decay": 1.0}))
    assert not any(id(p) in names for group in groups for p in group["params"])  # type: ignore[attr-defined]


def test_rates_fall_from_layer_to_layer(block: Block) -> None:
    model = build_model(block(backbone=DINO, backbone_args=SHORT), 5)
    found = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in parameter_groups(model, ADAMW):
        for parameter in group["params"]:  # type: ignore[attr-defined]
            found[names[id(parameter)]] = group["factor"], group["weight_decay"]
    assert len(found) == len(names)
    inside = "encoder.body.model."
    depth = max(build_model(block(backbone=DINO, backbone_args=SHORT), 5).encoder.layers().values())
    assert found[f"{inside}patch_embed.proj.weight"] == (pytest.approx(0.9**depth), 0.01)
    for layer in range(4):
        assert found[f"{inside}blocks.{layer}.mlp.fc1.weight"] == (pytest.approx(0.9 ** (depth - 1 - layer)), 0.01)
        assert found[f"{inside}blocks.{layer}.ls1.gamma"][1] == 0 == found[f"{inside}blocks.{layer}.norm1.weight"][1]
    assert found[f"{inside}cls_token"][1] == found[f"{inside}pos_embed"][1] == 0
    assert all(factor == 10 for name, (factor, _) in found.items() if name.startswith("head."))


def test_networks_without_layers_refuse_a_layer_decay(block: Block) -> None:
    with pytest.raises(UserError, match="network without numbered layers, expected a plain ViT"):
        parameter_groups(build_model(block(), 5), ADAMW)


def test_swin_needs_no_arguments_and_networks_of_one_size_are_named(block: Block) -> None:
    model = build_model(block(backbone="swin_tiny_patch4_window7_224"), 5).eval()
    with torch.no_grad():
        assert model.predict(torch.randn(1, 3, 61, 97), (61, 97)).shape == (1, 5, 61, 97)
    with pytest.raises(UserError, match=r"levit_128 takes images of one size alone .*expected one for any size"):
        build_model(block(backbone="levit_128"), 5)
