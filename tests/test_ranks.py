"""Batch normalisation, dropout, sums and gathering over ranks: processes with a part of a batch equal one with all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

SCRIPT = """
import os, socket, torch
from timm.layers import BatchNormAct2d, DropPath
from torch import nn
from udaseg import ranks

def part(world):
    ranks.join(torch.device("cpu"))
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3), DropPath(0.3), nn.Dropout(0.2), nn.Conv2d(4, 2, 1),
        BatchNormAct2d(2),
    )
    x, target = torch.randn(6, 3, 6, 5) * 3 + 1, torch.randn(6, 2, 4, 3)
    ranks.use_global_batch(net).train()
    assert ranks.world() == world
    mine = slice(ranks.rank() * 6 // world, (ranks.rank() + 1) * 6 // world)
    torch.manual_seed(1)  # as each step of a training does, on all ranks alike
    out = net(x[mine])
    every = ranks.gathered(out)  # a loss over pairs of the whole batch, as every rank sees it
    loss = (out * target[mine]).square().mean() + 1e-2 * (every.flatten(1) @ every.flatten(1).T).square().mean()
    loss.backward()
    ranks.average_gradients(list(net.parameters()))
    mean = ranks.total(loss.detach()) / world
    if ranks.rank() == 0:
        torch.save({"loss": mean, "grad": [p.grad for p in net.parameters()], "state": net.state_dict()}, f"{world}.pt")
    ranks.leave()

for world in (1, 2, 3):  # copies of a process that has imported everything and computed nothing
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        if (child := os.fork()) == 0:
            about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {key: str(value) for key, value in about.items()}
            code = 1
            try:
                part(world)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
"""


@pytest.fixture
def results(tmp_path: Path) -> list[dict]:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2, 3)]


def test_several_ranks_equal_one(results: list[dict]) -> None:
    one, *others = results
    for other in others:
        torch.testing.assert_close(one["loss"], other["loss"], rtol=1e-5, atol=1e-6)
        for a, b in zip(one["grad"], other["grad"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        for name, value in one["state"].items():
            torch.testing.assert_close(value, other["state"][name], rtol=1e-4, atol=1e-5)


def test_one_rank_keeps_its_layers() -> None:
    from udaseg import ranks

    net = nn.Sequential(nn.BatchNorm2d(2), BatchNormAct2d(2), nn.Dropout2d(0.1))
    assert [type(m) for m in ranks.use_global_batch(net)] == [nn.BatchNorm2d, BatchNormAct2d, nn.Dropout2d]  # type: ignore[arg-type]
