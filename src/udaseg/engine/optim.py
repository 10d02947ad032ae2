"""Optimizer, parameter groups and learning-rate schedule of the DAFormer family (docs/methods/self_training.md)."""

from __future__ import annotations

import torch
from torch import nn

from udaseg.models.backbones import Encoder
from udaseg.params import Optimizer, Schedule

NO_WEIGHTS = ("cls_token", "reg_token", "mask_token", "gamma_1", "gamma_2", "gamma")
WARMUP_RATIO = 1e-6  # DAFormer: the warm-up starts at this share of the rate


def parameter_groups(method: nn.Module, p: Optimizer) -> list[dict[str, object]]:
    """Trainable parameters in groups of equal rate and decay.

    Whatever has `head` in its name gets `head_factor` x the rate (decoder, projection heads). With `no_decay`, normalisation
    and position parameters of the encoder (`norm`, `pos_block`, as the released configuration names them) decay by 0; all else
    decays, biases and the decoder's batch normalisation included. Tokens and LayerScale of foundation encoders decay by 0 too.
    With `layer_decay` the rate of a layer of a plain ViT is that power of it lower (VFM-UDA++: 0.9).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    normalising = {id(q) for m in method.modules() if isinstance(m, nn.LayerNorm) for q in m.parameters(recurse=False)}
    scales = layer_scales(method, p.layer_decay)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            head = "head" in name and id(parameter) not in scales
            free = p.no_decay and not head and (id(parameter) in normalising or is_no_weight(name))
            factor = p.head_factor if head else scales.get(id(parameter), 1.0)
            groups.setdefault((factor, 0.0 if free else p.weight_decay), []).append(parameter)
    return [
        {"params": params, "lr": p.lr * factor, "factor": factor, "weight_decay": decay}
        for (factor, decay), params in groups.items()
    ]


def is_no_weight(name: str) -> bool:
    """Positions, tokens and LayerScale of a transformer: additive or multiplicative tables, which no weight decay should shrink."""
    return "pos_" in name or name.rpartition(".")[2] in NO_WEIGHTS


def layer_scales(method: nn.Module, decay: float) -> dict[int, float]:
    """id of a parameter of a trained encoder -> factor of its rate: `decay` to the power of its layers below the last (BEiT; timm)."""
    if decay == 1.0:
        return {}
    scales: dict[int, float] = {}
    for encoder in (module for module in method.modules() if isinstance(module, Encoder)):
        depths = encoder.layers()
        last = max(depths.values())
        scales |= {id(q): decay ** (last - depths[name]) for name, q in encoder.named_parameters() if name in depths}
    return scales


def build_optimizer(method: nn.Module, p: Optimizer, device: torch.device) -> torch.optim.Optimizer:
    groups = parameter_groups(method, p)
    fused = device.type == "cuda"
    if p.name == "sgd":
        return torch.optim.SGD(groups, lr=p.lr, momentum=p.momentum, weight_decay=p.weight_decay, fused=fused)
    return torch.optim.AdamW(groups, lr=p.lr, betas=(0.9, 0.999), weight_decay=p.weight_decay, fused=fused)


def learning_rate(step: int, steps: int, lr: float, p: Schedule) -> float:
    """Rate at 0-based `step`: polynomial decay, times a linear warm-up of the already decaying value: (T11), oracle o5.

    The decay reaches 0 after `horizon` x the run; with `rounds` it begins anew in each, `factor` lower (oracles o13 of
    docs/methods/bcl.md, 5_10 of plca.md).
    """
    length = steps / p.rounds
    done = min(step * p.rounds // steps, p.rounds - 1)  # the round, as rounds.round_of
    rate = lr * p.factor**done * max(0.0, 1 - (step - done * length) / (p.horizon * length)) ** p.power
    warmup = round(p.warmup * steps)
    if step < warmup:
        rate *= 1 - (1 - step / warmup) * (1 - WARMUP_RATIO)
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
