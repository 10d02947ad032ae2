"""What a person who waits wants to know: how far the workflow is, the minutes left, and the scores so far.

Snakemake tells its handlers of log messages what begins and ends; this is one more of them.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from snakemake.logging import LogEvent

from udaseg.artifacts import read_json
from udaseg.errors import UserError
from udaseg.params import Params

# Seconds of a job against those of the source-only training, until one of its kind has been timed: what they are on `streets`.
COSTS = {"prepare": 0.1, "pretrain": 1.0, "train": 2.6, "evaluate": 0.1, "analyse": 0.3, "figure": 0.07, "report": 0.04}
LADDER = ("source_only", "self_training", "oracle")  # what every other score is read against


def urgency(method: str) -> int:
    """Priority of a training: those come first that give the table its scale."""
    return 1 if method in LADDER else 0


@dataclass
class Kind:
    """Jobs of one rule; a source-only run is the pretrained model once more, and is none of the trainings."""

    cost: float
    left: int = 0
    seconds: list[float] = field(default_factory=list)

    def remaining(self, scale: float) -> float:
        return self.left * (sum(self.seconds) / len(self.seconds) if self.seconds else self.cost * scale)


class Growing(logging.Handler):
    """Prints a line after each job."""

    def __init__(self, p: Params, jobs: Iterable[Any]) -> None:
        """`jobs` of Snakemake that will run."""
        super().__init__(logging.INFO)
        self.p = p
        self.jobs = {job.jobid: job for job in jobs}
        self.kinds: dict[str, Kind] = {}
        for job in self.jobs.values():
            self.kind(job).left += 1
        self.began: dict[int, float] = {}
        self.waiting = {self.scored(job) for job in self.jobs.values() if job.rule.name == "evaluate"}

    def kind(self, job: Any) -> Kind:
        name = job.rule.name
        copied = name == "train" and job.wildcards.get("method") == "source_only"
        cost = COSTS["report"] if copied else COSTS.get(name, 0.01)
        return self.kinds.setdefault(f"{name} {copied}", Kind(cost))

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_STARTED:
            self.began |= {job: time.monotonic() for job in record.jobs}  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_FINISHED and (job := self.jobs.get(record.job_id)):  # type: ignore[attr-defined]
            kind = self.kind(job)
            kind.left -= 1
            kind.seconds.append(time.monotonic() - self.began.get(job.jobid, time.monotonic()))
            if job.rule.name == "evaluate":
                self.waiting -= {self.scored(job)}
                self.say(self.scores(job.wildcards["benchmark"]))
        elif event == LogEvent.PROGRESS and record.done < record.total:  # type: ignore[attr-defined]
            self.say(f"job {record.done + 1} of {record.total}{self.minutes()}")  # type: ignore[attr-defined]

    def minutes(self) -> str:
        """From what the finished jobs took; nothing before a training is done, because imports tell nothing of it."""
        timed = [kind for kind in self.kinds.values() if kind.seconds and kind.cost >= COSTS["pretrain"]]
        if not timed:
            return ""
        scale = sum(sum(kind.seconds) for kind in timed) / sum(kind.cost * len(kind.seconds) for kind in timed)
        seconds = sum(kind.remaining(scale) for kind in self.kinds.values())
        return f", about {max(1, round(seconds / 60))} min left"

    @staticmethod
    def scored(job: Any) -> tuple[str, str, int]:
        return job.wildcards["benchmark"], job.wildcards["method"], int(job.wildcards["seed"])

    def scores(self, benchmark: str) -> str:
        """One line of the table so far; a score from before that is about to be made anew is none of it."""
        found = []
        for method in self.p.run.methods:
            values = []
            for seed in self.p.run.seeds:
                if (benchmark, method, seed) in self.waiting:
                    continue
                try:
                    path = self.p.resolve(benchmark, method, seed).folder / "metrics.json"
                    values.append(float(read_json(path, "scores", "")["miou"]))
                except (UserError, KeyError, TypeError, ValueError):
                    continue
            if values:
                found.append(f"{method} {sum(values) / len(values):.2f}")
        return f"{benchmark} so far, mIoU %: {', '.join(found)}"

    @staticmethod
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
