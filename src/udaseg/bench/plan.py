"""What a run will take of a GPU, told without one: parameters, operations, peak memory, hours.

A step of full size runs forward and backward on fake tensors (bench/fake.py) while every storage is counted from its making to its
end. Nothing is measured and no time is predicted: hours are the operations over a share of a card's peak, which the reader chooses.
"""

from __future__ import annotations

import concurrent.futures
import gc
import json
import logging
import multiprocessing
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

from udaseg.bench.fake import batch_of, deterministic, moved, networks, skeleton
from udaseg.errors import UserError
from udaseg.methods.base import Batch, Method
from udaseg.models.backbones import blocks
from udaseg.params import LICENSED, Params, Run, parse
from udaseg.recipes.self_training import SelfTraining

CARDS = (11, 24, 40, 80)  # GiB: RTX 2080 Ti, RTX 4090, A100, H100
# What a card must have beyond the tensors: an allocator's gaps, and CUDA itself with its libraries (an assumption).
GAPS, CONTEXT = 1.1, 1.0
GIB = 2**30
HEAD = (
    "benchmark",
    "method",
    "parameters",
    "TFLOP a step",
    "GiB",
    "checkpointed",
    "fits",
    "checkpointed fits",
    "hours",
)
PARAMS: Params | None = None  # of a process
log = logging.getLogger("udaseg")


@dataclass(frozen=True)
class Cost:
    """Of one run on one GPU.

    Attributes:
        parameters: of the network that is scored.
        tflop: multiply-adds times two of one optimizer step, in 10^12.
        gib, gib_checkpointed: most memory that tensors take at a time, without and with `train.checkpointing`.
        steps: of the run.
        refused: why the method cannot run on this benchmark; the rest is 0 then.
    """

    parameters: int = 0
    tflop: float = 0.0
    gib: float = 0.0
    gib_checkpointed: float = 0.0
    steps: int = 0
    refused: str = ""


class Meter(TorchDispatchMode):
    """Bytes alive in storages that are made while it is active, and operations.

    `peak_checkpointed` is what `peak` would be if the blocks that are `watched` were made again in the backward pass: what a block
    keeps for it is taken off from the end of its forward pass to the beginning of its backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.high = 0  # peak since a block began
        self.kept = 0  # in blocks that wait for their backward pass
        self.peak_checkpointed = 0
        self.operations = 0
        self.known: dict[int, int] = {}

    def ignore(self, tensors: Iterator[Tensor]) -> int:
        """Take the tensors' storages for known; returns their bytes."""
        found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        self.known |= dict.fromkeys(found, 0)
        return sum(found.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := OPERATIONS.get(func._overloadpacket):
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known[key] = storage.nbytes()
        weakref.finalize(storage, self.drop, key)
        self.now += storage.nbytes()
        self.peak, self.high = max(self.peak, self.now), max(self.high, self.now)
        self.peak_checkpointed = max(self.peak_checkpointed, self.now - self.kept)

    def drop(self, key: int) -> None:
        self.now -= self.known.pop(key)

    @contextmanager
    def watched(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        begun: list[int] = []

        def enter(module: nn.Module, args: Any) -> None:
            begun.append(self.now)
            self.high = self.now

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            first, most = begun.pop(), self.high
            results = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
            if not results or not torch.is_grad_enabled():
                return
            inside = max(0, self.now - first - sum(t.untyped_storage().nbytes() for t in results))
            self.kept += inside

            def backward(gradient: Tensor) -> None:
                # the block is made again, and then what it keeps is there
                self.peak_checkpointed = max(self.peak_checkpointed, self.now - self.kept + most - first)
                self.kept -= inside

            results[0].register_hook(backward)

        hooks = [m.register_forward_pre_hook(enter) for m in modules]
        hooks += [m.register_forward_hook(leave) for m in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Each gradient takes what the forward pass took; torch's own count takes grouped convolutions for full ones."""
    transposed, wanted = args[4], args[7]
    forward = conv_flop_count(list(x.shape), list(weight.shape), list(grad.shape), transposed=transposed)
    return int(forward * sum(wanted[:2]))


OPERATIONS: dict[Any, Callable[..., int]] = flop_registry | {torch.ops.aten.convolution_backward: convolution_backward}

SINGLE = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, Tensor.softmax, Tensor.log_softmax, F.cross_entropy}


class CudaTypes(TorchFunctionMode):
    """On the CPU, the types that autocast has on CUDA: there it keeps normalisation and softmax in single precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SINGLE and torch.is_autocast_enabled("cpu"):
            args = [a.float() if isinstance(a, Tensor) and a.dtype == torch.bfloat16 else a for a in args]
        return func(*args, **(kwargs or {}))


def measure(method: Method, batch: Batch, step: int, meter: Meter) -> None:
    """All student passes of a step, forward and backward, as the trainer makes them."""
    train = method.run.train
    method.zero_grad(set_to_none=True)
    passes = method.losses(batch, step)
    with meter.watched(blocks(method.student.encoder)):
        while True:
            with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16"):
                losses = next(passes, None)
            if losses is None:
                return
            if losses:
                total = torch.stack(list(losses.values())).sum() / train.accumulate
                del losses
                total.backward()
                del total


def standing(method: Method, meter: Meter) -> int:
    """Bytes there before a step: networks, buffers and the optimizer's averages of every trained parameter."""
    states = {"adamw": 2, "sgd": 1}[method.run.train.optimizer.name]
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    tensors = (t for network in networks(method) for t in (*network.parameters(), *network.buffers()))
    return meter.ignore(tensors) + states * trained


def cost(run: Run) -> Cost:
    """What the last step of `run` takes, in which every part of its method takes part."""
    try:
        run.check_usable()
        method = skeleton(run)
    except UserError as error:
        return Cost(refused=str(error))
    mode, meter = FakeTensorMode(allow_non_fake_inputs=True), Meter()
    moved(method, mode, "cpu")
    before = standing(method, meter)
    gc.collect()
    gc.disable()  # nothing here is circular but what the interpreter made before
    try:
        with deterministic(), mode, CudaTypes(), meter:
            measure(method, batch_of(method, "cpu"), run.train.steps - 1, meter)
    finally:
        gc.enable()
    return Cost(
        sum(p.numel() for p in method.student.parameters()),
        meter.operations * run.train.accumulate / 1e12,
        (before + meter.peak) / GIB,
        (before + meter.peak_checkpointed) / GIB,
        run.train.steps,
    )


def bench_plan(
    p: Params, benchmarks: Sequence[str], methods: Sequence[str], *, tflops: float, share: float, jobs: int
) -> str:
    """A Markdown table: a row for each benchmark and method, of which those that take the same are traced once.

    Args:
        p: the parameters.
        benchmarks, methods: names of params.yaml.
        tflops, share: of the card whose hours are told: its peak in 10^12 operations a second, and which part of it is reached.
        jobs: processes.
    """
    runs = [p.resolve(benchmark, method, 0) for benchmark in benchmarks for method in methods]
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(key_of(run), run)
    found: dict[str, Cost] = {}
    start = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, start, initializer=begin, initargs=(p.raw,)) as pool:
        # the longest begin first
        order = sorted(first, key=lambda key: first[key].benchmark.model.hrda is None)
        waiting = {pool.submit(cost_of, first[key].benchmark_name, first[key].method_name): key for key in order}
        for n, done in enumerate(concurrent.futures.as_completed(waiting), 1):
            key = waiting[done]
            found[key] = done.result()
            run = first[key]
            log.info("%d of %d: %s on %s, %.1f GiB", n, len(first), run.method_name, run.benchmark_name, found[key].gib)
    rows = [row(run, found[key_of(run)], tflops, share) for run in runs]
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in (HEAD, ("---", "---", *["---:"] * (len(HEAD) - 2)), *rows)
    )


def full_size(p: Params) -> list[str]:
    """The benchmarks of licensed data: those whose images and networks are as large as the papers'."""
    return [
        name for name, block in p.benchmarks.items() if p.datasets[block.source.partition("/")[0]].format in LICENSED
    ]


def begin(raw: dict[str, Any]) -> None:
    """In each process: types made of params.yaml cannot be sent, the file's content can."""
    global PARAMS
    PARAMS = parse(raw)
    torch.set_num_threads(1)


def cost_of(benchmark: str, method: str) -> Cost:
    assert PARAMS is not None
    return cost(PARAMS.resolve(benchmark, method, 0))


def key_of(run: Run) -> str:
    """Equal for runs whose steps take the same: network, crop, number of classes and recipe; where whole target images or pairs of
    crops are shown, their size too."""
    recipe, train = run.method, run.train
    size = run.benchmark.size.target
    looks = isinstance(recipe, SelfTraining) and (recipe.target_crop == "balanced" or "pipa" in recipe.terms)
    trained = [str(train.crop), train.batch, train.accumulate, train.precision, train.optimizer.name, train.steps]
    method = {key: value for key, value in run.resolved["method"].items() if key != "photometric"}
    kind = "source_only" if run.kind == "oracle" else run.kind
    return json.dumps(
        [
            run.resolved["benchmark"]["model"],
            len(run.classes),
            trained,
            kind,
            method,
            run.from_imagenet,
            str(size) if looks else "",
        ],
        sort_keys=True,
        default=str,
    )


def row(run: Run, found: Cost, tflops: float, share: float) -> tuple[str, ...]:
    names = (run.benchmark_name, run.method_name)
    if found.refused:
        return (*names, "refused", *[""] * (len(HEAD) - 3))
    hours = found.tflop * found.steps / (tflops * share) / 3600
    return (
        *names,
        f"{found.parameters / 1e6:.1f} M",
        f"{found.tflop:.1f}",
        f"{found.gib:.1f}",
        f"{found.gib_checkpointed:.1f}",
        smallest_card(found.gib),
        smallest_card(found.gib_checkpointed),
        f"{hours:.1f}",
    )


def smallest_card(gib: float) -> str:
    """The first of CARDS that holds so much, and what it needs besides."""
    return next((f"{card} GB" for card in CARDS if gib * GAPS + CONTEXT <= card), "none")
