"""Time and peak memory of each contrastive loss at its paper's size, against the form that its equation suggests.

That is `losses/plain.py`: everything at once, differentiated by autograd. Ratios of one call can be quoted, absolute times
belong to the machine. Extra passes through the network are counted apart: they, not the losses, are what methods cost.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from udaseg.engine import provenance, runtime
from udaseg.losses import association, bcl, cluda, pipa, plain, plca, sepico
from udaseg.models import build_model
from udaseg.params import Params

CLASSES = 19
MB = 2**20
# Passes over a batch of B crops that a step of each method takes besides those of the self-training step (two of the student with
# gradient, one of the teacher, one of the frozen encoder); BCL and PLCA: of its own, in all. docs/methods/*.md.
PASSES = {
    "sepico": "student 1 (target), teacher 1 (source) + 1 on whole images with `target_crop: balanced`",
    "pipa": "student 1 and teacher 1 over two 720x720 crops of each image, from `patch.start` on",
    "cluda": "none",
    "bcl": "student 2 in all, no teacher; the target set once a round",
    "plca": "student 2 in all, no teacher",
}


@dataclass(frozen=True)
class Case:
    """One loss in two forms of the same value.

    Attributes:
        ours, plain: from the inputs to a scalar; `plain` of None: there is no other form worth measuring.
        inputs: the tensors that need a gradient.
        operations: multiply-adds times two of forward and backward, where custom operators hide them from the counter.
        products: the matrix products that the loss cannot do without, for the ratio to their time.
    """

    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor] | None
    inputs: tuple[Tensor, ...]
    operations: int | None = None
    products: Callable[[], object] | None = None


def bench_losses(p: Params, shrink: int = 1) -> str:
    """Measure every loss; returns JSON. `shrink` divides the number of positions, for a quick look."""
    device = runtime.setup(p.run)
    step = step_operations(p)
    result: dict[str, Any] = {
        "device": provenance.machine(device)["device"],
        "threads": p.run.threads,
        "step_gigaoperations": round(step / 1e9),
        "step": "DAFormer-B5 self-training, 2 + 2 crops of 512x512",
        "losses": {},
        "extra_passes": PASSES,
    }
    for name, make in CASES.items():
        generator = torch.Generator().manual_seed(0)
        case = make(generator, device, shrink)
        row = measure(case.ours, case.inputs, device)
        operations = case.operations or counted(case.ours, case.inputs)
        row |= {"gigaoperations": round(operations / 1e9, 4), "share_of_step": round(operations / step, 7)}
        if case.plain is not None:
            dense = measure(case.plain, case.inputs, device)
            row |= {f"plain_{key}": value for key, value in dense.items() if key != "value"}
            row["times_faster"] = round(dense["seconds"] / row["seconds"], 2)
            row["memory_ratio"] = round(row["peak_mb"] / max(dense["peak_mb"], 1e-9), 3)
            row["difference"] = abs(dense["value"] - row["value"])
        if case.products is not None:
            row["times_its_products"] = round(row["seconds"] / timed(case.products, device), 2)
        result["losses"][name] = row
    return json.dumps(result, indent=2)


def measure(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], device: torch.device) -> dict[str, float]:
    """Seconds (of the best call) and peak memory beyond the inputs and their gradients, in MiB, of forward and backward; the value."""

    def once() -> Tensor:
        for x in inputs:
            x.grad = None
        value = loss(*inputs)
        if value.requires_grad:
            value.backward()
        return value.detach()

    value = once().item()
    seconds = timed(once, device)
    for x in inputs:
        x.grad = None
    extra = peak_memory(once, device) - sum(x.numel() * x.element_size() for x in inputs)
    return {"seconds": round(seconds, 5), "peak_mb": round(extra / MB, 1), "value": value}


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the best of two calls, or of as many as fit half a second: a short one alone measures the machine's noise."""
    best, spent, calls = math.inf, 0.0, 0
    while calls < 2 or spent < 0.5:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        best, spent, calls = min(best, seconds), spent + seconds, calls + 1
    return best


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes that tensors take at a time during `work`, beyond those there before.

    Tensors only: a process's resident size also holds what the C allocator keeps and what matrix products pack.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        profile.export_chrome_trace(trace.name)
        events = json.loads(Path(trace.name).read_bytes())["traceEvents"]
    changes = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    return max(itertools.accumulate((e["args"]["Bytes"] for e in changes), initial=0))


def counted(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        value = loss(*inputs)
        if value.requires_grad:
            value.backward()
    return counter.get_total_flops()


def step_operations(p: Params) -> int:
    """Of one self-training step of DAFormer with MiT-B5: counted on shapes alone, nothing is computed."""
    with torch.device("meta"), torch.no_grad():
        network = build_model(p.benchmarks["gta2cityscapes"].model, CLASSES)
        images = torch.zeros(2, 3, 512, 512)
        with FlopCounterMode(display=False) as whole:
            network(images)
        with FlopCounterMode(display=False) as encoder:
            network.stages(images)
    # student on source and on mixed images, backward twice as dear as forward; teacher; frozen encoder of the feature distance.
    # Not counted through backward: the counter takes the gradients of grouped convolutions for those of full ones.
    return (2 * 3 + 1) * whole.get_total_flops() + encoder.get_total_flops()


def randn(generator: torch.Generator, device: torch.device, *shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape, generator=generator).to(device).requires_grad_(grad)


def labels(generator: torch.Generator, device: torch.device, *shape: int) -> Tensor:
    return torch.randint(0, CLASSES, shape, generator=generator).to(device)


# --- BCL, PLCA -------------------------------------------------------------------------------------------------------


def bcl_contrast(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    """Both directions of two pairs: 92x92 maps of 76 channels, labels of 730x730."""
    side, full = 92 // math.isqrt(shrink), 730 // math.isqrt(shrink)
    label = labels(g, device, 4, full, full)
    present = torch.ones(4, CLASSES, dtype=torch.bool, device=device)
    features, vectors = randn(g, device, 4, 76, side, side, grad=True), randn(g, device, 4, CLASSES, 76, grad=True)

    def ours(f: Tensor, v: Tensor) -> Tensor:
        counts = bcl.label_counts(label, (side, side), CLASSES)
        return bcl.contrast(bcl.cosine(f, v), present, counts, 0.1)

    return Case(ours, lambda f, v: plain.bcl_contrast(f, label, v, present, 0.1), (features, vectors))


def plca_operands(
    g: torch.Generator, device: torch.device, shrink: int, shape: tuple[int, int, int] = (1, 92 * 92, 2048)
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Unit vectors (pairs, positions, channels) of both domains, labels, and the operations of one product of theirs."""
    b, n, d = shape[0], shape[1] // shrink, shape[2]
    source, target = (F.normalize(randn(g, device, b, n, d).relu_(), dim=2).requires_grad_() for _ in range(2))
    return source, target, labels(g, device, b, n), 2 * b * n * n * d


def plca_match(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    """DeepLab-V2 as published: one pair of 92x92 grids with 2048 channels."""
    return plca_case(*plca_operands(g, device, shrink))


def plca_match_daformer(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    """DAFormer: two pairs of 64x64 grids with 256 channels, of 512x512 crops."""
    return plca_case(*plca_operands(g, device, shrink, (2, 64 * 64, 256)))


def plca_case(source: Tensor, target: Tensor, label: Tensor, product: int) -> Case:

    def ours(s: Tensor, t: Tensor) -> Tensor:
        total, kept, *_ = association.match([s], [t], label, 1e-10, 256, False)
        return total / kept.sum().clamp(min=1)

    def dense(s: Tensor, t: Tensor) -> Tensor:
        similarity = s @ t.mT
        return plain.plca_association(similarity, similarity.mT, label)[0]

    def products() -> None:
        """Scores forward and again backward, and the gradients of both sides."""
        with torch.no_grad():
            for rows in source.split(256, dim=1):
                scores = rows @ target.mT
                scores = rows @ target.mT
                (scores @ target, scores.mT @ rows)

    return Case(ours, dense, (source, target), 4 * product, products)


def plca_aggregation(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    features, _, _, product = plca_operands(g, device, shrink)

    def ours(x: Tensor) -> Tensor:
        return plca.aggregated_features(x, alpha=0.5, floor=1e-10, tile=256).square().mean()

    def dense(x: Tensor) -> Tensor:
        scores = plain.plca_standardised(plain.plca_cosine(x, x))
        return plain.plca_aggregation(x, scores, 0.5).square().mean()

    return Case(ours, dense, (features,), 7 * product)


# --- SePiCo ----------------------------------------------------------------------------------------------------------


def sepico_cells(g: torch.Generator, device: torch.device, shrink: int) -> tuple[Tensor, Tensor]:
    """Two 640x640 crops at stride 8, width 512."""
    n = 2 * 80 * 80 // shrink
    return F.normalize(randn(g, device, n, 512).relu_(), dim=1).requires_grad_(), labels(g, device, n)


def sepico_statistics(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    key, label = sepico_cells(g, device, shrink)
    key = key.detach()
    mean = randn(g, device, CLASSES, 512).double() * 0.01
    old = sepico.Statistics(mean.new_full((CLASSES,), 100.0), mean, mean.square())

    def ours() -> Tensor:
        new, _ = sepico.merged(old, sepico.class_sums(key, label, mean))
        return new.variance.mean() + new.mean.mean()

    def dense() -> Tensor:
        _, mean, variance = plain.sepico_statistics(key, label, *old)
        return variance.mean() + mean.mean()

    return Case(ours, dense, ())


def sepico_proto(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    q, label = sepico_cells(g, device, shrink)
    mean, seen = randn(g, device, CLASSES, 512), torch.ones(CLASSES, dtype=torch.bool, device=device)
    return Case(
        lambda x: sepico.proto_contrast(x, label, mean, seen, 100.0),
        lambda x: plain.sepico_proto(x, label, mean, seen, 100.0),
        (q,),
    )


def sepico_dist(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    q, label = sepico_cells(g, device, shrink)
    mean, seen = randn(g, device, CLASSES, 512), torch.ones(CLASSES, dtype=torch.bool, device=device)
    variance = mean.square() / 100
    return Case(
        lambda x: sepico.dist_contrast(x, label, mean, variance, seen, 100.0),
        lambda x: plain.sepico_dist(x, label, mean, variance, seen, 100.0),
        (q,),
    )


def sepico_bank(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    q, label = sepico_cells(g, device, shrink)
    bank = F.normalize(randn(g, device, CLASSES, 200, 512).relu_(), dim=2)
    pushed = torch.full((CLASSES,), 200, device=device)
    return Case(
        lambda x: sepico.bank_contrast(x, label, bank, pushed, 100.0),
        lambda x: plain.sepico_bank(x, label, bank, pushed, 100.0),
        (q,),
    )


# --- PiPa, CLUDA -----------------------------------------------------------------------------------------------------


def pipa_pixel(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    """1024 anchors among the cells of two 512x512 crops at stride 4."""
    side = 128 // math.isqrt(shrink)
    maps = F.normalize(randn(g, device, 2 * side * side, 256), dim=1).requires_grad_()
    label = (labels(g, device, 2, side // 16, side // 16)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    predicted = torch.where(torch.rand(label.shape, generator=g).to(device) < 0.3, (label + 1) % CLASSES, label)
    keys = torch.rand(label.shape, generator=g).to(device)

    def ours(e: Tensor) -> Tensor:
        sizes = pipa.group_sizes(label, predicted, CLASSES)
        sizes = sizes * (sizes.sum(dim=-1, keepdim=True) > 100)
        groups = (sizes.sum(dim=-1) > 0).sum()
        quota = pipa.anchor_quotas(sizes, pipa.anchors_per_group(groups, 1024, 100))
        quota = quota * (sizes.sum(dim=-1, keepdim=True) > 0)
        index, valid = pipa.choose_anchors(label, predicted, keys, quota, 1024)
        return pipa.pixel_contrast(e[index], label.flatten()[index], valid, 0.1, 0.07)

    return Case(ours, None, (maps,))


def pipa_patch(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    """One direction: all cells of a 720x720 crop at stride 8 against three steps of the bank."""
    n, m = 90 * 90 // shrink, 9600 // shrink
    query, positive, keys = (F.normalize(randn(g, device, 1, k, 128), dim=2) for k in (n, n, m))
    tag, key_tag = labels(g, device, 1, n), labels(g, device, 1, m)
    weight = torch.full((1, n), 1 / n, device=device)
    return Case(
        lambda q: pipa.patch_contrast(q, positive, tag, weight, keys, key_tag, 0.1),
        lambda q: plain.pipa_patch(q, positive, tag, weight, keys, key_tag, 0.1),
        (query.requires_grad_(),),
    )


def cluda_operands(g: torch.Generator, device: torch.device, shrink: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two images of 64x64 cells, width 256."""
    m = 2 * 64 * 64 // shrink
    return randn(g, device, m, 256, grad=True), labels(g, device, m), torch.rand(m, generator=g).to(device)


def cluda_single(g: torch.Generator, device: torch.device, shrink: int) -> Case:
    features, label, weight = cluda_operands(g, device, shrink)
    return Case(lambda x: cluda.pixel_contrast(x, label, weight), lambda x: plain.cluda(x, label, weight), (features,))


CASES: dict[str, Callable[[torch.Generator, torch.device, int], Case]] = {
    "bcl contrast": bcl_contrast,
    "plca matcher": plca_match,
    "plca matcher, DAFormer": plca_match_daformer,
    "plca aggregation": plca_aggregation,
    "sepico statistics": sepico_statistics,
    "sepico proto": sepico_proto,
    "sepico dist": sepico_dist,
    "sepico bank": sepico_bank,
    "pipa pixel": pipa_pixel,
    "pipa patch": pipa_patch,
    "cluda": cluda_single,
}
