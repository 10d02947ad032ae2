"""`make gpu-check`: what only a GPU can show, in eight minutes, the most worth first; a script.

Needs torch, torchvision, timm and pytest, this checkout and no network. Each part has a time limit and its result is written at
once, into one JSON. Without a CUDA device the parts that can run on a CPU do, on a tiny network, and the others say why not.

    python tests/gpu/gpu_check.py [--out gpu-check.json] [--seconds 480]

The limits are those of a machine with a GPU; without one each part has ten times as long, and there is no end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NEEDED = ("torch", "torchvision", "timm", "pytest")
LEAST = 15  # seconds left with which a part is still begun
BENCH = "seconds_a_step"


@dataclass(frozen=True)
class Part:
    """What to run, and in how many seconds. `cuda`: only with a device; `cpu`: only without one."""

    name: str
    command: tuple[str, ...]
    seconds: int
    cuda: bool = False
    cpu: bool = False


def step(
    benchmark: str, precision: str, how: str, seconds: int, *, again: str = "", device: str = "cuda", steps: int = 10
) -> Part:
    words = ("{python}", str(HERE / "step.py"), benchmark, "self_training", precision, how, str(steps), device)
    name = f"step {benchmark} {precision} {how}{again}"
    return Part(name, words, seconds, cuda=device == "cuda", cpu=device == "cpu")


MIT, HRDA = "gta2cityscapes", "gta2cityscapes-hrda"
PARTS = (
    Part(
        "tests",
        (
            "{python}",
            "-m",
            "pytest",
            "-q",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            str(ROOT / "tests/engine/test_cuda.py"),
        ),
        120,
    ),
    step(MIT, "bf16", "none", 60),
    step(MIT, "bf16", "none", 60, again=" again"),
    step(MIT, "bf16", "default", 120),
    step(MIT, "bf16", "max-autotune", 150),
    step(HRDA, "bf16", "none", 60),
    Part("training", ("{python}", str(HERE / "training.py")), 90),
    step(MIT, "fp32", "none", 60),
    step(HRDA, "bf16", "default", 120),
    step(HRDA, "fp32", "none", 60),
    step("gta2cityscapes-dlv2", "bf16", "none", 60),
    step(HRDA, "bf16", "max-autotune", 150),
    step("streets", "fp32", "none", 60, device="cpu", steps=2),
    step("streets", "fp32", "none", 60, device="cpu", steps=2, again=" again"),
)


def check(out: Path, seconds: float, parts: Sequence[Part] = PARTS) -> dict[str, Any]:
    """Run the parts in their order; returns what is in `out`."""
    began = time.monotonic()
    result: dict[str, Any] = {"machine": machine(), "parts": {}, "seconds": 0.0, "verdict": {}}
    cuda = bool(result["machine"]["cuda_devices"])
    patience = 1 if cuda else 10
    seconds *= patience
    for part in parts:
        left = seconds - (time.monotonic() - began)
        if part.cuda and not cuda:
            found = {"skipped": "no CUDA device"}
        elif part.cpu and cuda:
            continue
        elif left < LEAST:
            found = {"skipped": f"the {seconds:.0f} s are over"}
        else:
            print(f"{part.name} ...", file=sys.stderr, flush=True)
            found = run(part, min(part.seconds * patience, left))
        result["parts"][part.name] = found
        result["seconds"] = round(time.monotonic() - began, 1)
        result["verdict"] = dict(verdict(result["parts"]))
        out.write_text(json.dumps(result, indent=2) + "\n")  # at once: whatever ends this, what was found is there
    return result


def machine() -> dict[str, Any]:
    import torch

    devices = (
        [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    import timm
    import torchvision

    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "cuda": torch.version.cuda,
        "cuda_devices": devices,
        "cores": os.cpu_count(),
    }


def run(part: Part, limit: float) -> dict[str, Any]:
    command = [sys.executable if word == "{python}" else word for word in part.command]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said, wrong = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return {"stopped": f"not done in {limit:.0f} s"}
    found: dict[str, Any] = {"took": round(time.monotonic() - began, 1)}
    last = said.strip().splitlines()[-1:] or [""]
    if process.returncode:
        return found | {"failed": (wrong.strip() or said.strip())[-2000:]}
    return found | (json.loads(last[0]) if last[0].startswith("{") else {"said": last[0]})


def verdict(parts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the parts say together."""
    yield "failed", [name for name, found in parts.items() if "failed" in found or "stopped" in found]
    yield "skipped", [name for name, found in parts.items() if "skipped" in found]
    for name, found in parts.items():
        base, eager = parts.get(name.removesuffix(" again"), {}), parts.get(" ".join([*name.split()[:3], "none"]), {})
        if name.endswith(" again") and BENCH in found and BENCH in base:
            yield (
                f"equal bits twice, {name.removesuffix(' again')}",
                found["sha256_of_the_weights"] == base["sha256_of_the_weights"],
            )
        elif name.startswith("step ") and found is not eager and BENCH in found and BENCH in eager:
            yield f"times faster than eager, {name}", round(eager[BENCH] / found[BENCH], 2)
            one, other = found["loss_of_the_first_step"], eager["loss_of_the_first_step"]
            yield f"relative difference of the first loss, {name}", abs(one - other) / max(abs(other), 1e-9)


if __name__ == "__main__":
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(
            f"gpu-check: {', '.join(missing)} cannot be imported by {sys.executable}; name another: make gpu-check PYTHON=..."
        )
        sys.exit(2)
    reader = argparse.ArgumentParser()
    reader.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    reader.add_argument("--seconds", type=float, default=480.0)
    options = reader.parse_args()
    done = check(options.out, options.seconds)
    print(json.dumps(done, indent=2))
    sys.exit(1 if done["verdict"]["failed"] else 0)
