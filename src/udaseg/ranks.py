"""One process or many: sums over ranks, batch normalisation with the statistics of the global batch, and its dropout.

torch's own SyncBatchNorm refuses CPU tensors; the one below serves both, so that two CPU ranks can test what GPUs run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from udaseg.errors import UserError


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def join(device: torch.device) -> None:
    """Join the group that torchrun started (no-op for a single process)."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def wait() -> None:
    """Until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def total(tensor: Tensor) -> Tensor:
    """Sum over ranks, without gradient. The tensor itself is left alone."""
    if world() == 1:
        return tensor
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor)
    return tensor


class _Sum(torch.autograd.Function):
    """Sum over ranks whose gradient is summed over ranks too: each rank's loss depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return total(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0])


def differentiable_total(tensor: Tensor) -> Tensor:
    """Sum over ranks, with gradient."""
    summed: Tensor = _Sum.apply(tensor)
    return summed


class _Gather(torch.autograd.Function):
    """The tensors of all ranks; each rank's gradient is what all ranks' losses say of its own."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        every = tensor.new_empty(world() * len(tensor), *tensor.shape[1:])
        dist.all_gather_into_tensor(every, tensor.contiguous())
        return every

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0].contiguous()).chunk(world())[rank()]


def gathered(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, of equal shapes, one behind the other along the first dimension; with gradient.

    In the order of the ranks, which is the order of one rank's batch.
    """
    if world() == 1:
        return tensor
    every: Tensor = _Gather.apply(tensor)
    return every


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace every gradient by its mean over ranks, in one all-reduce.

    Every rank must have gradients for the same parameters: what a method computes may depend on the step, not on the data.
    """
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world()
    torch._foreach_copy_(
        gradients, [f.view_as(g) for f, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)]
    )


def _global_batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Training-mode batch normalisation of (B, C, H, W) with mean and variance over the batches of all ranks."""
    xf = x.float()
    count = xf.numel() // xf.shape[1] * world()
    own = xf.mean(dim=(0, 2, 3))
    spread = (xf - own[:, None, None]).square().mean(dim=(0, 2, 3))
    # mean and spread of every rank in one call; their parts of the batch are equal, and differences of means are exact where
    # sums of squares would cancel
    means, spreads = gathered(torch.stack([own, spread])[None]).unbind(dim=1)
    mean = means.mean(dim=0)
    var = (spreads + (means - mean).square()).mean(dim=0)
    centred = xf - mean[:, None, None]
    if norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None:
        with torch.no_grad():
            norm.running_mean.lerp_(mean.detach(), norm.momentum)
            norm.running_var.lerp_(var.detach() * (count / max(count - 1, 1)), norm.momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    out = centred * (var + norm.eps).rsqrt()[:, None, None]
    if norm.affine:
        out = out * norm.weight[:, None, None] + norm.bias[:, None, None]
    return out.to(x.dtype)


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of the batch over all ranks, with exact gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return _global_batch_norm(self, x) if self.training else super().forward(x)


class GlobalBatchNormAct(BatchNormAct2d):
    """The same for timm's BatchNorm2d with an activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_global_batch_norm(self, x))) if self.training else super().forward(x)


def _own_part(draw: Callable[[Tensor], Tensor], x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x times this rank's part of what `draw` makes of ones of `shape`, which stands for the samples of all ranks.

    One rank with all samples draws the same: generators are seeded alike on all ranks and step by step.
    """
    every = draw(torch.ones(len(x) * world(), *shape, dtype=x.dtype, device=x.device))
    return x * every[rank() * len(x) : (rank() + 1) * len(x)]


class GlobalDropout(nn.Dropout):
    """Dropout that drops what one rank with the samples of all would drop."""

    def forward(self, x: Tensor) -> Tensor:
        return _own_part(super().forward, x, tuple(x.shape[1:])) if self.training and self.p else x


class GlobalDropout2d(nn.Dropout2d):
    """The same for whole channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return _own_part(super().forward, x, (x.shape[1], 1, 1)) if self.training and self.p else x


class GlobalDropPath(DropPath):
    """The same for timm's residual branches of (B, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        return _own_part(super().forward, x, (1,) * (x.ndim - 1)) if self.training and self.drop_prob else x


DROPPING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: GlobalDropout,
    nn.Dropout2d: GlobalDropout2d,
    DropPath: GlobalDropPath,
}


def use_global_batch(module: nn.Module) -> nn.Module:
    """Let all below `module` see the global batch (in place, parameters kept); no-op for one rank.

    BatchNorm2d takes the statistics of all ranks, dropout and drop-path drop what one rank would.
    """
    if world() > 1:
        for child in module.modules():
            if isinstance(child, _BatchNorm) and type(child) not in (nn.BatchNorm2d, BatchNormAct2d):
                raise UserError(
                    f"{type(child).__name__} has no statistics over several processes; set run.gpus_per_run: 1 for this backbone"
                )
            if type(child) in (nn.BatchNorm2d, BatchNormAct2d):
                child.__class__ = GlobalBatchNorm if type(child) is nn.BatchNorm2d else GlobalBatchNormAct
            elif type(child) in DROPPING:
                child.__class__ = DROPPING[type(child)]
    return module
