"""Throughput and memory of a run's parts, measured apart: data only, step only, its bare network passes, both, evaluation.

A benchmark, not a test: absolute times belong to the machine, ratios of one call can be quoted.
"""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.data.prepared import find_prepared
from udaseg.engine import provenance, runtime
from udaseg.engine.optim import build_optimizer
from udaseg.engine.trainer import Loop, build
from udaseg.engine.training import check_crop
from udaseg.models import Segmenter
from udaseg.models.heads import DeepLabV2Head, FusionHead
from udaseg.params import Run, Use, parse, uses
from udaseg.progress import Scoring

WARMUP = 3


def bench(run: Run, steps: int) -> str:
    """Measure `steps` steps of each part; returns JSON. Starts from random weights and writes nothing.

    Raises:
        UserError: data not prepared, a crop that the network cannot take.
    """
    device = runtime.setup(run.params.run)
    bench_run = without_start(run, 2 * (steps + WARMUP))
    method = build(bench_run, device)
    check_crop(bench_run, method, device)
    optimizer = build_optimizer(method, bench_run.train.optimizer, device)
    with tempfile.TemporaryDirectory() as restart:
        loop = Loop(bench_run, method, optimizer, device, Path(restart), {})
        return json.dumps(parts(run, bench_run, loop, steps), indent=2)


def parts(run: Run, bench_run: Run, loop: Loop, steps: int) -> dict[str, Any]:
    device, method = loop.device, loop.method
    result: dict[str, Any] = {
        "benchmark": run.benchmark_name,
        "method": run.method_name,
        "device": provenance.machine(device)["device"],
        "threads": run.params.run.threads,
        "workers": loop.workers,
        "batch": f"{run.train.batch} + {run.train.batch}",
        "crop": str(run.train.crop),
        "precision": run.train.precision,
        "parameters": sum(p.numel() for p in method.student.parameters()),
    }

    batches = loop.begin_round()
    first = [next(batches) for _ in range(run.train.accumulate)]
    micro = run.train.accumulate
    result["data_only"] = rate(lambda: [next(batches) for _ in range(micro)], steps, run.train.batch, device)
    synthetic = itertools.cycle(first)
    late = loop.step = loop.p.steps // 2  # by then every term takes part
    for _ in range(WARMUP):
        loop.advance(synthetic)
    loop.step = late
    result["step_only"] = rate(lambda: loop.advance(synthetic), steps, run.train.batch, device)
    loop.step = late
    bare = bare_passes(loop, synthetic)
    bare()
    result["bare_passes"] = rate(bare, steps, run.train.batch, device)
    result["step_over_bare_passes"] = round(result["step_only"]["seconds"] / result["bare_passes"]["seconds"], 3)
    loop.step = late
    batches = loop.begin_round()
    loop.advance(batches)
    result["data_and_step"] = rate(lambda: loop.advance(batches), steps, run.train.batch, device)
    if device.type == "cuda":
        loop.step = late
        result["host_waits_per_step"] = host_waits(lambda: loop.advance(synthetic))
    result["peak_memory_mb"] = runtime.peak_memory_mb(device)
    scored = next((use for use in uses(run.benchmark) if use.role == "evaluate"), None)
    result["evaluation"] = scored and evaluation(run, scored, method.student, steps, device)
    return result


def bare_passes(loop: Loop, batches: Iterator[dict[str, Tensor]]) -> Callable[[], None]:
    """What repeats the passes that one step makes through encoders and heads, forward and backward, and nothing else.

    What is left out: losses, pseudo-labels, mixing, augmentation, crops and fusion of two resolutions, optimizer, teacher update.
    """
    networks = [m for m in loop.method.modules() if isinstance(m, Segmenter)]
    networks += [network for network in getattr(loop.method, "frozen", ()) if network not in networks]
    children = [child for network in networks for child in network.children()]
    # DeepLab-V2's branches are called one by one
    parts = {p for child in children for p in (child.branches if isinstance(child, DeepLabV2Head) else [child])}
    calls: list[tuple[nn.Module, Any, bool]] = []

    def note(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.append((part, args[0], any(o.requires_grad for o in flat(output))))

    hooks = [part.register_forward_hook(note) for part in parts]
    loop.advance(batches)
    for hook in hooks:
        hook.remove()
    calls = [(part, leaves(given), trained) for part, given, trained in calls]
    cast = torch.autocast(loop.device.type, torch.bfloat16, enabled=loop.p.precision == "bf16")

    def repeat() -> None:
        for part, given, trained in calls:
            with cast, torch.set_grad_enabled(trained):
                outputs = [o for o in flat(part(given)) if o.requires_grad]
            if isinstance(part, FusionHead):
                outputs = outputs[:1]  # the logits
            if trained:
                torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])

    return repeat


def flat(maps: Any) -> list[Tensor]:
    return list(maps) if isinstance(maps, list | tuple) else [maps]


def leaves(given: Any) -> Any:
    """Maps of a graph become inputs that want gradients: what an encoder gives its head."""
    if isinstance(given, list | tuple):
        return [leaves(each) for each in given]
    return given.detach().requires_grad_(given.requires_grad)


def without_start(run: Run, steps: int) -> Run:
    """The run with random initial weights (throughput does not depend on them) and a number of steps."""
    raw = copy.deepcopy(run.params.raw)
    raw["benchmarks"][run.benchmark_name]["init"] = {"default": "none"}
    raw["benchmarks"][run.benchmark_name]["train"]["steps"] = steps
    if "rounds" in raw["methods"][run.method_name]:
        raw["methods"][run.method_name]["rounds"] = 1
    return parse(raw).resolve(run.benchmark_name, run.method_name, run.seed)


def rate(step: Any, steps: int, batch: int, device: torch.device) -> dict[str, float]:
    """Seconds per step and pairs of images per second."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    seconds = (time.perf_counter() - began) / steps
    return {"seconds": round(seconds, 5), "images_per_second": round(batch / seconds, 2)}


def host_waits(step: Any) -> int:
    """How often one step makes the host wait for the device (0 is the aim)."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        return sum("synchroniz" in str(w.message) for w in caught)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def evaluation(run: Run, use: Use, student: Segmenter, images: int, device: torch.device) -> dict[str, float]:
    from udaseg.evaluation.evaluate import score_images

    prepared = find_prepared(run.benchmark_name, use)
    samples = prepared.samples(use.split)[:images]
    student.eval()
    watch = Scoring("bench", len(samples), device)
    score_images(run, student, prepared, samples, device, watch=watch)
    return {
        "images_per_second": round(len(samples) / watch.seconds, 2),
        "share_outside_the_network": round(watch.outside, 3),
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
