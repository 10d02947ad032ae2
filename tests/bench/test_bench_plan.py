"""`udaseg bench plan`: its memory against what a step really takes, its operations, its table."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tiny_project import ROOT
from udaseg import params
from udaseg.bench import fake, plan
from udaseg.bench.losses import peak_memory
from udaseg.methods import create
from udaseg.models import build_model
from udaseg.models.backbones import remake

RAW: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())


def small(benchmark: str, method: str, crop: str, **train: Any) -> params.Run:
    raw = copy.deepcopy(RAW)
    block = raw["benchmarks"][benchmark]
    block["train"] = {**block["train"], "crop": crop, **train}
    block["size"] = {"source": crop, "target": crop}
    block["init"] = {"default": "none"}
    return params.parse(raw).resolve(benchmark, method, 0)


class Unwatched(plan.Meter):
    """Measures nothing."""

    def watched(self, modules: Any) -> Any:
        return nullcontext()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("benchmark", "method", "crop"),
    [
        ("streets", "self_training", "256x128"),
        ("camvid_day2dusk", "sepico", "128x128"),
        ("camvid_day2dusk-hrda", "mic", "256x256"),
    ],
)
def test_memory_is_what_a_step_takes(benchmark: str, method: str, crop: str, checkpointing: bool) -> None:
    run = small(benchmark, method, crop, precision="fp32")
    told = plan.cost(run)
    network = build_model(run.benchmark.model, len(run.classes))
    made = create(run, network).train()
    if checkpointing:
        remake(network.encoder)
    batch = fake.batch_of(made, "cpu")
    inputs = 0
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            inputs += value.numel() * value.element_size()
            value.uniform_() if value.is_floating_point() else value.fill_(name == "inside")
    with fake.deterministic():

        def step() -> None:
            plan.measure(made, batch, run.train.steps - 1, Unwatched())

        step()
        made.zero_grad(set_to_none=True)
        taken = peak_memory(step, torch.device("cpu")) + inputs
    expected = (told.gib_checkpointed if checkpointing else told.gib) * plan.GIB - plan.standing(made, plan.Meter())
    assert expected == pytest.approx(taken, rel=0.15)


def test_a_grouped_convolution_is_counted_as_one() -> None:
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(8, 1, 3, 3, requires_grad=True)
    with plan.Meter() as meter:
        y = torch.nn.functional.conv2d(x, weight, padding=1, groups=8)
        forward = meter.operations
        y.sum().backward()
    assert forward == 2 * (2 * 8 * 6 * 6) * 9 and meter.operations == 3 * forward


def test_operations_of_a_full_step() -> None:
    """DAFormer's self-training: 252.6 GFLOP an image and pass, 138.8 of them the encoder (tests/test_bench.py), backward twice."""
    p = params.load(ROOT / "params.yaml")
    found = plan.cost(p.resolve("gta2cityscapes", "source_only", 0))
    assert found.tflop == pytest.approx(2 * 3 * 0.2526, rel=0.03)
    assert found.parameters == 85_155_283 and found.steps == 40_000
    # 4 copies of the weights, and maps of two crops
    assert 16 * found.parameters / plan.GIB < found.gib_checkpointed < 0.7 * found.gib


def test_the_table_has_a_row_for_every_run() -> None:
    p = params.load(ROOT / "params.yaml")
    text = plan.bench_plan(p, ["streets"], ["source_only", "oracle", "cluda-hrda"], tflops=100.0, share=0.5, jobs=1)
    head, line, one, same, refused = text.splitlines()
    assert head.startswith("| benchmark | method | parameters |") and set(line) <= set("|-: ")
    assert one.replace("source_only", "oracle") == same and "11 GB" in one
    assert "refused" in refused
    run = p.resolve("streets", "source_only", 0)
    cells = plan.row(run, plan.Cost(10**6, 90.0, 5.0, 3.0, 1000, ""), 100.0, 0.5)
    assert cells == ("streets", "source_only", "1.0 M", "90.0", "5.0", "3.0", "11 GB", "11 GB", "0.5")


def test_cards_keep_room() -> None:
    assert [plan.smallest_card(gib) for gib in (9.0, 9.1, 20.9, 35, 36, 71.8, 72)] == [
        *("11 GB", "24 GB", "24 GB", "40 GB", "80 GB", "80 GB", "none")
    ]


def test_runs_that_take_the_same_are_traced_once() -> None:
    p = params.load(ROOT / "params.yaml")

    def key(benchmark: str, method: str) -> str:
        return plan.key_of(p.resolve(benchmark, method, 0))

    assert key("gta2cityscapes", "oracle") == key("cityscapes2darkzurich", "source_only")
    assert key("gta2cityscapes", "cluda-off") == key("cityscapes2acdc", "self_training")
    assert key("gta2cityscapes", "sepico") != key("cityscapes2acdc", "sepico"), "it looks at whole images"
    assert key("gta2cityscapes", "self_training") != key("synthia2cityscapes", "self_training"), "other classes"


def test_the_page_has_the_table() -> None:
    """The rows of docs/performance.md are those of the command; one that is cheap to trace is traced again."""
    p = params.load(ROOT / "params.yaml")
    lines = [line.strip("| ").split(" | ") for line in (ROOT / "docs/performance.md").read_text().splitlines()]
    first = lines.index(list(plan.HEAD))
    rows = {(row[0], row[1]): row for row in lines[first + 2 : lines.index(["<!-- end -->"])]}
    assert {name for name, _ in rows} <= set(plan.full_size(p)) and rows
    run = p.resolve("gta2cityscapes-dlv2", "source_only", 0)
    told = plan.row(run, plan.cost(run), 312.0, 0.2)
    found = rows["gta2cityscapes-dlv2", "source_only"]
    assert found[2] == told[2]
    for column in range(3, 6):
        assert float(found[column]) == pytest.approx(float(told[column]), rel=0.05, abs=0.11), plan.HEAD[column]
