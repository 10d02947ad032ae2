"""The last line of a workflow that ended early: what its trainings have saved, and how to go on."""

from __future__ import annotations

import atexit
import sys
import time
from pathlib import Path

from udaseg.artifacts import STEP

RESTART = Path("results/.restart")


def saved(since: float) -> str:
    """Trainings that have saved their state since then (a time stamp) and are not finished, with their steps."""
    found = []
    for path in sorted(RESTART.glob(f"*/*/seed*/{STEP}")):
        try:
            if path.stat().st_mtime >= since:
                benchmark, method, seed = path.parts[-4:-1]
                found.append(
                    f"{benchmark}/{method}/{seed.removeprefix('seed')} at step {path.read_text(encoding='utf-8').strip()}"
                )
        except (OSError, ValueError):  # finished meanwhile, or not ours
            continue
    more = f" and {len(found) - 4} more" if len(found) > 5 else ""
    return ", ".join(found[: 4 if more else 5]) + more


class LastWord:
    """Says so when this process ends, below all that Snakemake still has to say, if `wanted`."""

    def __init__(self) -> None:
        self.began = time.time() - 1  # file systems may round times
        atexit.register(self.say)
        self.wanted = False

    def say(self) -> None:
        if self.wanted:
            print(told(saved(self.began)), file=sys.stderr, flush=True)


def told(states: str) -> str:
    if states:
        return f"not finished, but saved: {states}; the same command goes on from there"
    return "not finished; nothing that was made is lost, the same command makes the rest"
