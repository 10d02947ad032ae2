"""One step of a run at full size without data, weights or the device that it is for.

Under torch's FakeTensorMode a tensor is a shape, a type and a device: a step runs through all its code and computes nothing.
Whatever would need a value (`.item()`, a truth value, a shape that depends on the data) is an error there, which is what a host
wait is on a GPU. Gradients do not pass through tensors that claim to be on a GPU that is not there; on `cpu` they do.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udaseg.data.sampling import CANDIDATES
from udaseg.methods import create
from udaseg.methods.base import Batch, Method
from udaseg.methods.self_training import SelfTrainingMethod
from udaseg.models import build_model
from udaseg.params import Run

# Elements of a tensor that may be made on the host: random numbers of pairs, cells and boxes, never a map of pixels.
SMALL = 2**16


def skeleton(run: Run) -> Method:
    """The method of a run on the device `meta`: all of its tensors, none of their values; nothing is read from disk."""
    with torch.device("meta"):
        student = build_model(run.benchmark.model, len(run.classes))
    method = create(without_weights(run), student)
    if isinstance(method, SelfTrainingMethod) and method.p.feature_distance and run.from_imagenet:
        method.frozen = (copy.deepcopy(student).requires_grad_(False).eval(),)
    return method.train()


def without_weights(run: Run) -> Run:
    """The run with random initial weights for every method of its benchmark."""
    block = dataclasses.replace(run.benchmark, init={"default": "none"})
    blocks = run.params.benchmarks | {run.benchmark_name: block}
    params = dataclasses.replace(run.params, benchmarks=blocks, known={})
    return Run(params, run.benchmark_name, run.method_name, run.seed)


def networks(method: Method) -> list[nn.Module]:
    """The method, and what it keeps out of its state."""
    return [method, *getattr(method, "frozen", ())]


def moved(method: Method, mode: FakeTensorMode, device: str) -> Method:
    """The method with fake tensors on `device` in the place of its parameters and buffers, in place."""
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                new: Tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                made[id(tensor)] = (
                    new if not isinstance(tensor, nn.Parameter) else nn.Parameter(new, tensor.requires_grad)
                )
        return made[id(tensor)]

    for network in networks(method):
        for module in network.modules():
            for owned in (module._parameters, module._buffers):
                for name, tensor in owned.items():
                    if tensor is not None:
                        owned[name] = fake(tensor)  # type: ignore[assignment]
    return method


def batch_of(method: Method, device: str) -> Batch:
    """A micro-batch with what the method asks its loader for, of unspecified values; to be made under a FakeTensorMode."""
    run, views = method.run, method.views()
    pairs, crop, target = run.train.batch // run.train.accumulate, run.train.crop, run.benchmark.size.target

    def image(*shape: int) -> Tensor:
        return torch.empty(pairs, *shape, device=device)

    def label(*shape: int) -> Tensor:
        return torch.empty(pairs, *shape, device=device, dtype=torch.int64)

    size = (crop.height, crop.width)
    batch = Batch(list(range(pairs)), image(3, *size), label(*size))
    if not views.unlabelled:
        return batch
    if views.whole_target:
        size = (max(size[0], target.height), max(size[1], target.width))
        batch.corners = label(CANDIDATES, 2)
    batch.target = image(3, *size)
    if views.reference:
        batch.reference = image(3, *size)
    if views.static:
        batch.static = label(*size)
    if views.border is not None:
        batch.inside = torch.empty(pairs, *size, device=device, dtype=torch.bool)
    if views.pair is not None:
        batch.pair = image(2, 3, views.pair.side, views.pair.side)
        batch.overlap, batch.flipped = label(2, 4), label(2).bool()
    return batch


class Host(TorchDispatchMode):
    """Notes what passes through the host, which a step on a GPU should not do.

    Attributes:
        found: operations that make more than a few numbers there, and those that fetch anything from the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        here = [each for each in tree_leaves(out) if isinstance(each, Tensor) and each.device.type == "cpu"]
        given = (each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)) if here else ()
        if any(tensor.numel() > SMALL for tensor in here) or any(each.device.type == "cuda" for each in given):
            self.found.append(f"{func} {[tuple(tensor.shape) for tensor in here]}")
        return out


@contextmanager
def cuda_autocast(run: Run) -> Iterator[None]:
    """The run's precision for fake CUDA tensors; `torch.autocast` refuses where there is no such device."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", run.train.precision == "bf16")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


@contextmanager
def deterministic() -> Iterator[None]:
    """As `runtime.setup` has it for a training."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]


def faults(run: Run, step: int | None = None) -> list[str]:
    """What of a step of `run` would make a GPU wait or lose precision; empty: nothing.

    Runs the forward passes and the update after the step at full size, on tensors that claim to be on CUDA.

    Args:
        run: any run; neither data nor weights are read.
        step: which one; None: the last, in which every part of a method takes part.

    Raises:
        UserError: network, recipe or benchmark do not fit each other.
        DataDependentOutputException, DynamicOutputShapeException: of torch, where a value is asked for, or where a shape depends on one.
    """
    mode, host = FakeTensorMode(allow_non_fake_inputs=True), Host()
    method = moved(skeleton(run), mode, "cuda")
    step = run.train.steps - 1 if step is None else step
    found = []
    with deterministic(), mode, host:
        passes = method.losses(batch_of(method, "cuda"), step)
        while True:
            with cuda_autocast(run):
                losses = next(passes, None)
            if losses is None:
                break
            for name, loss in losses.items():
                if (loss.dtype, loss.device.type, loss.ndim) != (torch.float32, "cuda", 0):
                    found.append(f"loss {name}: {loss.dtype} of shape {tuple(loss.shape)} on {loss.device}")
        method.after_step(step)
    state = (
        (name, t) for network in networks(method) for name, t in (*network.named_parameters(), *network.named_buffers())
    )
    found += [f"{name}: on {tensor.device}" for name, tensor in state if tensor.device.type != "cuda"]
    return found + [f"on the host: {each}" for each in host.found]
