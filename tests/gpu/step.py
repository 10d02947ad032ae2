"""One part of `make gpu-check`: some steps of a run on random data and weights, in one JSON line; a script.

python tests/gpu/step.py BENCHMARK METHOD PRECISION COMPILE STEPS DEVICE
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udaseg import params
from udaseg.bench.fake import batch_of, without_weights
from udaseg.bench.step import host_waits
from udaseg.engine import runtime
from udaseg.engine.optim import build_optimizer
from udaseg.engine.trainer import Loop, build
from udaseg.methods.base import IMAGES, Method
from udaseg.methods.self_training import SelfTrainingMethod
from udaseg.models import build_model

ROOT = Path(__file__).parents[2]


def item_of(method: Method) -> dict[str, Tensor]:
    """Random pictures and labels in blocks, as the loader would deliver them."""
    draw = torch.Generator().manual_seed(0)
    batch, item = batch_of(method, "cpu"), {}
    for name, value in vars(batch).items():
        if not isinstance(value, Tensor):
            continue
        if name in IMAGES:
            item[name] = torch.randint(0, 256, value.shape, generator=draw, dtype=torch.uint8)
        elif name in ("label", "static"):
            rough = torch.randint(0, method.classes, (value.shape[0], 8, 8), generator=draw, dtype=torch.uint8)
            item[name] = torch.nn.functional.interpolate(rough[:, None].float(), value.shape[1:]).byte()[:, 0]
        else:
            item[name] = torch.ones_like(value) if name == "inside" else torch.zeros_like(value)
    return item | {"index": torch.tensor(batch.index)}


def measured(benchmark: str, method: str, precision: str, how: str, steps: int, name: str) -> dict[str, Any]:
    raw = copy.deepcopy(params.load(ROOT / "params.yaml").raw)
    block = raw["benchmarks"][benchmark]
    block["train"] = {**block["train"], "precision": precision, "compile": how}
    raw["run"]["device"] = name
    run = params.parse(raw).resolve(benchmark, method, 0)
    device = runtime.setup(run.params.run)
    made = build(without_weights(run), device)
    if isinstance(made, SelfTrainingMethod) and made.p.feature_distance and run.from_imagenet:
        reference = build_model(run.benchmark.model, len(run.classes))
        made.frozen = (reference.requires_grad_(False).eval().to(device),)
    item = item_of(made)
    if device.type == "cuda":
        item = {key: value.pin_memory() for key, value in item.items()}
    batches = itertools.cycle([item])
    with tempfile.TemporaryDirectory() as restart:
        loop = Loop(run, made, build_optimizer(made, run.train.optimizer, device), device, Path(restart), {})
        began = time.perf_counter()
        loop.advance(batches)
        first = sum(value.item() for value in loop.sums.values())
        ready = time.perf_counter() - began
        for _ in range(3 if device.type == "cuda" else 0):
            loop.advance(batches)
        synchronize(device)
        began = time.perf_counter()
        for _ in range(steps):
            loop.advance(batches)
        synchronize(device)
        seconds = (time.perf_counter() - began) / steps
        found = {
            "seconds_a_step": round(seconds, 5),
            "images_a_second": round(2 * run.train.batch / seconds, 2),
            "seconds_of_the_first_step": round(ready, 2),
            "loss_of_the_first_step": first,
            "peak_memory_mb": runtime.peak_memory_mb(device),
            "sha256_of_the_weights": digest(made),
        }
        if device.type == "cuda":
            found["host_waits_a_step"] = host_waits(lambda: loop.advance(batches))
    return found


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def digest(method: Method) -> str:
    found = hashlib.sha256()
    for value in method.student.state_dict().values():
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    *names, number, where = sys.argv[1:]
    print(json.dumps(measured(*names[:4], int(number), where)))  # type: ignore[arg-type]
