"""What a round of the drill is: drawn from seed and number alone, so that each can be played again by itself."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

from udaseg.figures import NAMES as FIGURES

BENCHMARK, METHODS = "streets", ("source_only", "self_training")
Job = tuple[str, ...]  # step, then what tells its runs apart

# How often each start comes in a row of rounds: 32, 32, 16 and 120 of 200.
STARTS = ("snakemake", "dvc", "step", "step", "torchrun", "step", "step", "step") * 2 + (
    "snakemake", "dvc", "step", "step", "step", "step", "snakemake", "dvc", "step",
)  # fmt: skip

STOPS = ("SIGINT", "SIGTERM", "SIGKILL")
DAMAGE = ("truncated", "emptied", "bit flipped")
FULL, LIMIT, READ_ONLY, TWO = "disk full", "file-size limit", "read-only folder", "two at once"
# fault, and who is hurt
OF_A_TOOL = (
    ("SIGINT", "group"), ("SIGINT", "group"), ("SIGTERM", "driver"), ("SIGKILL", "driver"), ("SIGKILL", "all"), ("SIGKILL", "all"),
    ("SIGKILL", "job"), ("SIGTERM", "job"), ("SIGKILL", "loader worker"), (FULL, ""), (FULL, ""), (READ_ONLY, ""), (TWO, ""),
    *((kind, "") for kind in DAMAGE),
)  # fmt: skip
OF_TORCHRUN = (
    ("SIGINT", "group"), ("SIGTERM", "driver"), ("SIGKILL", "driver"), ("SIGKILL", "all"), ("SIGKILL", "rank"), ("SIGKILL", "rank"),
    ("SIGTERM", "rank"), ("SIGKILL", "loader worker"),
)  # fmt: skip
OF_A_STEP = (
    ("SIGINT", "group"), ("SIGINT", "group"), ("SIGTERM", "driver"), ("SIGTERM", "driver"), ("SIGKILL", "all"), ("SIGKILL", "all"),
    ("SIGKILL", "driver"), ("SIGKILL", "loader worker"), (FULL, ""), (FULL, ""), (LIMIT, ""), (READ_ONLY, ""), (READ_ONLY, ""),
    (TWO, ""), *((kind, "") for kind in DAMAGE * 3),
)  # fmt: skip


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        seed, number: what all else is drawn from; `seed` is that of the trainings too.
        start: snakemake, dvc, torchrun or step.
        job: the step (start `step`, `torchrun`), or the one that a fault waits for.
        missing: jobs whose results are not there at the start.
        fault, place: what happens, and to whom or where.
        moment: when, as a part of the time that the undisturbed command takes; of a damaged file the part of it that is hit.
        again: whether the command is repeated at once, or when all processes of the first have ended.
    """

    seed: int
    number: int
    start: str
    job: Job
    missing: tuple[Job, ...]
    fault: str
    place: str
    moment: float
    again: bool

    def as_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        return found | {"job": " ".join(self.job), "missing": [" ".join(job) for job in self.missing]}


def jobs() -> list[Job]:
    """All jobs of the workflow, in an order in which they can run."""
    runs: list[Job] = [("train", "source_only"), ("train", "self_training")]
    of_runs: list[Job] = [(step, method) for step in ("evaluate", "analyse") for method in METHODS]
    figures: list[Job] = [("figure", name) for name in FIGURES]
    return [("prepare",), ("pretrain",), *runs, *of_runs, ("compare",), *figures, ("report",), ("select",)]


def before(job: Job) -> list[Job]:
    """The jobs whose results a job reads."""
    step, *name = job
    scored: list[Job] = [("evaluate", method) for method in METHODS]
    analysed: list[Job] = [("analyse", method) for method in METHODS]
    if step == "train":
        return [("prepare",), ("pretrain",)]
    if step in ("evaluate", "analyse"):
        return [("prepare",), ("train", name[0])]
    return {
        "prepare": [],
        "pretrain": [("prepare",)],
        "compare": scored,
        "figure": [("prepare",), ("compare",), *scored, *analysed],
        "report": [("compare",), *scored, *analysed, *(("figure", name) for name in FIGURES)],
        "select": [("train", METHODS[-1]), ("evaluate", METHODS[-1]), ("analyse", METHODS[-1])],
    }[step]


def after(job: Job) -> set[Job]:
    """The jobs that follow from one, directly or not."""
    found: set[Job] = set()
    for other in jobs():
        if any(each == job or each in found for each in before(other)):
            found.add(other)
    return found


# Results that a step reads and that may lie damaged: below the folder of the run of `self_training` where they start with @.
RUN = f"results/{BENCHMARK}/self_training"
READ = {
    "prepare": ["@images", "@labels", "@manifest", "@data"],
    "pretrain": ["@images", "@labels", "@manifest", "@data", "@state", "@state"],
    "train": ["@images", "@labels", "@manifest", "@data", "@pretrained", "@state", "@state", "@states"],
    "evaluate": ["@model", "@model", "@history", "@record", "@manifest", "@images", "@labels"],
    "analyse": ["@model", "@model", "@record", "@manifest", "@images", "@labels"],
    "compare": ["metrics.json", "metrics.json", "metrics.json"],
    "figure": ["@summary", "@history", "metrics.json", "tsne.npz", "analysis.json", "images.csv", "confusion.csv", "predictions.zip"],
    "report": ["@summary", "metrics.json", "analysis.json"],
    "select": ["metrics.json", "analysis.json", "iou.json", "confusion.csv", "@history"],
}  # fmt: skip


def draw(seed: int, number: int) -> Round:
    """Round `number` of a seed."""
    dice = random.Random(f"drill {seed} {number}")
    start = STARTS[number % len(STARTS)]
    fault, place = dice.choice({"step": OF_A_STEP, "torchrun": OF_TORCHRUN}.get(start, OF_A_TOOL))
    everything = jobs()
    trains: list[Job] = [job for job in everything if job[0] in ("pretrain", "train")]
    if start == "torchrun":
        job: Job = ("train", "self_training")
    elif place == "loader worker":
        job = dice.choice([("pretrain",), ("train", "self_training")])
    else:  # each step as often as another, whatever the number of its jobs; trainings more often
        step = dice.choice(["train", "train", *dict.fromkeys(job[0] for job in everything)])
        job = dice.choice([each for each in everything if each[0] == step])
    missing = {job}
    if start in ("snakemake", "dvc") and fault not in DAMAGE:
        if job[0] not in ("train", "pretrain", "prepare") and dice.random() < 0.3:
            missing.add(dice.choice(trains))
        missing |= {each for each in everything if dice.random() < 0.08}
        if dice.random() < 0.3:
            missing |= after(job)
    if fault in DAMAGE:
        place = dice.choice(READ[job[0]])
        if place.startswith("@state") and job[0] == "train":
            job = ("train", "self_training")  # the other takes the pretrained model, which has its recipe
            missing.add(job)
    elif fault in (FULL, READ_ONLY):
        place = dice.choice(
            ["data", "results"]
            if job[0] == "prepare"
            else ["results", "figures"]
            if job[0] == "figure"
            else ["results"]
        )
        place = "logs" if start in ("snakemake", "dvc") and fault == READ_ONLY and dice.random() < 0.2 else place
    order = tuple(each for each in everything if each in missing)
    return Round(seed, number, start, job, order, fault, place, round(dice.random(), 3), dice.random() < 0.5)
