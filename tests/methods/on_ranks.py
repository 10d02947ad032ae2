"""Train methods on one, two and three CPU processes, those of several killed on the way and started again; a script of test_on_ranks.py.

Processes are forked from one that has imported everything and computed nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from udaseg import params
from udaseg.engine import trainer, training

KILLED_AT = 2  # steps done; saved after every one


def train(method: str, kill: bool) -> None:
    run = params.load("params.yaml").resolve("streets", method, 0)
    advance = trainer.Loop.advance

    def advance_or_die(loop: trainer.Loop, batches: object) -> None:
        if loop.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        advance(loop, batches)  # type: ignore[arg-type]

    if kill:
        trainer.Loop.advance = advance_or_die  # type: ignore[method-assign, assignment]
    training.train(run, run.folder)


def on_ranks(method: str, ranks: int, kill: bool) -> list[int]:
    """The ends of the processes, as waitpid tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        if (child := os.fork()) == 0:
            world = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": ranks,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            os.environ |= {key: str(value) for key, value in world.items()} if ranks > 1 else {}
            code = 1
            try:
                train(method, kill)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


for name in sys.argv[1:]:
    folder = Path("results/streets", name, "seed0")
    for number in (1, 2, 3):
        if number > 1:
            ends = on_ranks(name, number, kill=True)
            assert signal.SIGKILL in ends, ends
            assert (Path("results/.restart/streets", name, "seed0") / "state.pt").exists(), "nothing to go on from"
        assert on_ranks(name, number, kill=False) == [0] * number, (name, number)
        shutil.copy(folder / "history.csv", f"{name}-{number}.csv")
        shutil.rmtree(folder)
        shutil.rmtree("results/.trained", ignore_errors=True)
