"""A dress rehearsal: every benchmark on licensed data once, from delivered files to its page, on generated stand-ins.

The stand-ins lie as the data sets are delivered, with their names, encodings and image sizes, but few images; networks have the
smallest encoder of their kind and train for two steps. So every road is walked that the real data will take (formats, sizes, crops,
windows, labels of full size, tables), and nothing is learned. A published checkpoint with random weights is imported and scored too.

    python tests/rehearsal/rehearsal.py [--folder DIR] [--steps 2] [BENCHMARK ...]      (make rehearsal B=gta2cityscapes)

It says how long each step took and ends with exit code 1 where one failed. docs/reproduce.md tells what to expect.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests/data"), str(ROOT / "tests/models")]

import delivered  # noqa: E402
import official_files  # noqa: E402

from udaseg import cli, params  # noqa: E402
from udaseg.data import formats  # noqa: E402
from udaseg.params import LICENSED, uses  # noqa: E402

SIZES = {  # docs/data.md
    "gta5": (1914, 1052),
    "synthia": (1280, 760),
    "cityscapes": (2048, 1024),
    "dark_zurich": (1920, 1080),
    "acdc": (1920, 1080),
    "nighttime_driving": (1920, 1080),
    "bdd100k_night": (1280, 720),
}
METHODS = ["source_only", "self_training"]
SMALLEST = {"pvt_v2_b5": "pvt_v2_b0", "resnet101c": "resnet50c"}


def deliver(kind: str, root: Path) -> None:
    """The small stand-in of tests/data at true size: scenes of blocks, each of one class, in colours of their own."""
    width, height = SIZES[kind]

    def blocks(path: Path, allowed: Any, size: tuple[int, int] = (width, height)) -> np.ndarray:
        rng = np.random.default_rng([1, *path.name.encode()])
        grid = rng.permuted(np.resize(np.array(allowed, np.uint8), 12 * 16)).reshape(12, 16)  # every class is there
        return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.NEAREST))

    photograph = delivered.photograph
    with contextlib.ExitStack() as stack:
        for name, value in {
            "photograph": lambda path, seed=0: photograph(path, (width, height), seed),
            "values": blocks,
            "mapped": lambda kind, ids: ids,  # what must come out is what tests/data asks
        }.items():
            stack.callback(setattr, delivered, name, getattr(delivered, name))
            setattr(delivered, name, value)
        labels = delivered.DELIVER[kind](root)
    formats.EXPECTED[kind] = {split: len(labels.get(split, ())) for split in formats.EXPECTED[kind]}


def parameters(benchmark: str, steps: int) -> dict[str, Any]:
    """params.yaml with the smallest encoder, two methods, one seed and few steps; sizes, crops and tests stay."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["run"] |= {"benchmarks": [benchmark], "methods": METHODS, "seeds": [0], "workers": 0, "device": "cpu"}
    raw["select"] = {"benchmark": benchmark, "method": METHODS[-1]}
    raw["analysis"] |= {
        "images": 2,
        "least": 4,
        "tsne": {**raw["analysis"]["tsne"], "perplexity": 5, "iterations": 250},
    }
    block = copy.deepcopy(raw["benchmarks"][benchmark])
    block["model"] |= {
        "backbone": SMALLEST.get(block["model"]["backbone"], block["model"]["backbone"]),
        "weights": "none",
    }
    block["train"] |= {"steps": steps, "precision": "fp32", "save_every": steps, "log_every": 1}
    raw["benchmarks"][benchmark] = block | {"init": {"default": "none"}}
    return dict(raw)


def check(p: params.Params, benchmark: str) -> str:
    """What must be there at the end; returns the table."""
    home = Path("results", benchmark)
    pixels = SIZES[p.datasets[uses(p.benchmarks[benchmark])[2].dataset].format]
    for method in METHODS:
        metrics = json.loads((home / method / "seed0/metrics.json").read_text())
        assert 0 < metrics["pixels"] <= metrics["images"] * pixels[0] * pixels[1], metrics["pixels"]
        assert metrics["pixels"] > 0.3 * metrics["images"] * pixels[0] * pixels[1], (
            "labels were not scored at full size"
        )
    table = (home / "summary.md").read_text()
    assert all(f"| {method} " in table for method in METHODS) and "published checkpoint" in table
    page = (home / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 9 and "published checkpoint" in page
    return table


def checkpoint(p: params.Params, benchmark: str) -> Path:
    """A file as the authors publish it, for the network of the benchmark."""
    model, maker = p.benchmarks[benchmark].model, official_files.Maker()
    deeplab = model.head == "deeplabv2"
    official_files.resnet_c(maker) if deeplab else official_files.mit(maker)
    head = official_files.deeplab if deeplab else official_files.daformer
    if getattr(model, "hrda", None) is None:
        head(maker)
    else:
        head(maker, "decode_head.head.")
        attention = official_files.deeplab if deeplab else official_files.plain_fusion
        attention(maker, "decode_head.scale_attention.")
    return official_files.write(Path("latest.pth"), official_files.uda(maker.state, maker.state))


def rehearse(benchmark: str, steps: int) -> str:
    """All steps in the working folder.

    Raises:
        AssertionError: a step failed, or left something else than it should.
    """
    Path("params.yaml").write_text(yaml.safe_dump(parameters(benchmark, steps), sort_keys=False))
    p = params.load()
    began = time.perf_counter()
    for kind in sorted({p.datasets[use.dataset].format for use in uses(p.benchmarks[benchmark])} & set(LICENSED)):
        deliver(kind, Path("data/raw", kind))
    print(f"{benchmark}: stand-ins {time.perf_counter() - began:.0f} s", flush=True)
    file = str(checkpoint(p, benchmark))
    words = [["prepare", "--jobs", "2"]]
    words += [[step, "--method", method] for method in METHODS for step in ("train", "evaluate", "analyse")]
    words += [["import-checkpoint", file, "--like", benchmark, "--out", "published.safetensors"]]
    words += [["evaluate", "--model", "published.safetensors", "--method", METHODS[-1]]]
    for command in [*words, ["compare"], ["figure"], ["report"]]:
        if command[0] != "import-checkpoint":
            command = [*command, "--benchmark", benchmark]
        began = time.perf_counter()
        code = cli.main(command)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{benchmark}: udaseg {' '.join(command)}: {time.perf_counter() - began:.0f} s, {most:.1f} GB", flush=True
        )
        assert code == 0, f"udaseg {' '.join(command)}: exit code {code}"
    return check(p, benchmark)


def main() -> int:
    parser = argparse.ArgumentParser(description="Every benchmark on licensed data once, on generated stand-ins.")
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help="default: all on licensed data")
    parser.add_argument("--folder", type=Path, help="where to work; it stays (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=2, help="of each training (default: 2)")
    args = parser.parse_args()
    known = params.load(ROOT / "params.yaml")
    licensed = [
        name
        for name, b in known.benchmarks.items()
        if {known.datasets[use.dataset].format for use in uses(b)} & set(LICENSED)
    ]
    failed = []
    for benchmark in args.benchmarks or licensed:
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            home = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rehearsal-")))
            folder = home.resolve() / benchmark
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.chdir(folder):
                try:
                    os.symlink(ROOT / "docs", "docs")  # for the page
                    print(rehearse(benchmark, args.steps))
                except Exception as error:  # the others are rehearsed all the same
                    failed.append(benchmark)
                    print(f"{benchmark}: FAILED: {type(error).__name__}: {error}", flush=True)
        print(f"{benchmark}: {time.perf_counter() - began:.0f} s in all", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all is well")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
