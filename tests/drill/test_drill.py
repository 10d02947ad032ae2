"""The drill in short: a handful of rounds; that it notices what it looks for; that the committed rounds are those of the page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import judge
import psutil
import pytest
from rounds import Round, after, before, draw, jobs
from world import Place

import drill
from udaseg.engine import training

# Of seed 0, single steps: a stopped and a killed training, a full disk, a read-only folder, two at once, a damaged file.
SHORT = (("SIGINT", "train"), ("SIGKILL", "evaluate"), ("disk full", "analyse"), ("read-only folder", "report"))
SHORT += (("two at once", "train"), ("bit flipped", "compare"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[drill.Drill]:
    found = drill.Drill(tmp_path_factory.mktemp("drill"), 0)
    yield found
    found.close()


def number_of(fault: str, step: str) -> int:
    """The first round of seed 0 that hurts a step by hand in this way."""
    rounds = (draw(0, number) for number in range(5000))
    return next(r.number for r in rounds if r.start == "step" and (r.fault, r.job[0]) == (fault, step))


@pytest.mark.parametrize(("fault", "step"), SHORT)
def test_rounds(fault: str, step: str, small: drill.Drill) -> None:
    played = small.play(draw(0, number_of(fault, step)))
    assert played.outcome != "FAILED", played


def test_a_round_is_drawn_from_seed_and_number_alone() -> None:
    assert [draw(0, n) for n in range(50)] == [draw(0, n) for n in range(50)]
    assert draw(0, 17) != draw(1, 17)


def test_sockets_have_room_wherever_rounds_are_played(tmp_path: Path) -> None:
    place = Place(tmp_path / ("x" * 100), 0)
    assert len(place.environment["TMPDIR"]) <= training.LONGEST_TMPDIR


def test_200_rounds_hold_every_start_and_every_fault() -> None:
    rounds = [draw(0, n) for n in range(200)]
    starts = Counter(r.start for r in rounds)
    assert starts["snakemake"] >= 30 and starts["dvc"] >= 30 and starts["torchrun"] >= 10
    assert {drill.of_fault(r.as_json()) for r in rounds} >= {
        "SIGINT of group", "SIGTERM of driver", "SIGKILL of driver", "SIGKILL of job", "SIGKILL of rank", "SIGKILL of loader worker",
        "disk full", "file-size limit", "read-only folder", "two at once", "damaged restart state", "damaged model", "damaged images.zip",
        "damaged manifest.json", "damaged data.json", "damaged metrics.json", "damaged history.csv",
    }  # fmt: skip


def test_jobs_follow_what_they_read() -> None:
    order = jobs()
    assert all(order.index(other) < order.index(job) for job in order for other in before(job))
    assert after(("train", "self_training")) >= {("compare",), ("report",), ("select",), ("analyse", "self_training")}


# --- it notices ---------------------------------------------------------------------------------------------------------


class Sabotaged(drill.Playing):
    """A round whose repeated command is not what it should be."""

    program = ""

    def start(self, *, limit: int | None = None, other: bool = False) -> drill.Started:
        if self.count == 0:
            return super().start(limit=limit, other=other)
        self.count += 1
        return drill.start(self.place, [sys.executable, "-c", self.program], self.place / f".log.{self.count}")


TABLE = "results/streets/summary.csv"
SPEC = Round(0, 0, "step", ("compare",), (("compare",),), "bit flipped", "metrics.json", 0.0, False)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (f"open('{TABLE}', 'a').write('1')", "summary.csv differs"),
        (f"import os; os.remove('{TABLE}')", "summary.csv is missing"),
        ("import subprocess; subprocess.Popen(['sleep', '60'])", "left behind: process"),
        ("open('results/streets/.summary.csv.1.part', 'w')", "left behind: results/streets/.summary.csv.1.part"),
        ("import sys, traceback\ntry:\n  1 / 0\nexcept Exception: traceback.print_exc()", "a traceback"),
        ("import sys; sys.exit('udaseg compare: all is lost')", "ends without a word of what to do"),
        ("import sys; sys.exit('udaseg compare: x/y: damaged; run `udaseg select` again')", "the advice does not help"),
    ],
    ids=["wrong", "missing", "orphan", "half-a-file", "traceback", "no-advice", "advice-in-a-circle"],
)
def test_it_notices(
    program: str, said: str, small: drill.Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "GRACE", 1)
    Sabotaged.program = program
    place = Place(tmp_path / "round", 0)
    playing = Sabotaged(small, SPEC, place, drill.Folders(place))
    monkeypatch.setattr(
        playing, "hurt", lambda: small.warm.start(place, place.arguments(("compare",)), place / ".log.1")
    )
    monkeypatch.setattr(playing, "count", 1)
    try:
        with pytest.raises(drill.Failed, match=said):
            playing.play()
    finally:
        for process in place.processes():
            process.kill()
            psutil.wait_procs([process], timeout=10)


def test_a_traceback_in_a_log_is_ours_or_not() -> None:
    ours = 'Traceback (most recent call last):\n  File "/x/src/udaseg/cli.py", line 3, in main\nValueError: no\n'
    theirs = 'Traceback (most recent call last):\n  File "/x/snakemake/cli.py", line 3, in main\nOSError: disk\n\nudaseg x: y'
    assert judge.is_ours(ours) and not judge.is_ours(theirs)
    assert judge.traceback_in(ours) == "a traceback (/x/src/udaseg/cli.py:3: ValueError: no)"


# --- what is committed ----------------------------------------------------------------------------------------------------


def test_committed_rounds_are_those_of_the_page_and_ended_well() -> None:
    rows = drill.read(drill.ROUNDS)
    assert rows and drill.table(rows) in drill.PAGE.read_text()
    assert [row["round"] for row in rows if row["outcome"] == "FAILED"] == []
    for row in rows:  # each can be played again
        drawn = draw(row["seed"], row["round"]).as_json()
        assert {key: row[key] for key in drawn if key in row} == {key: drawn[key] for key in drawn if key in row}
