"""What the waiting person is told: from Snakemake's own messages of what begins and ends."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.logging import LogEvent

from udaseg import params
from udaseg.workflow import growing

ROOT = Path(__file__).parents[2]


def job(number: int, rule: str, method: str = "") -> SimpleNamespace:
    return SimpleNamespace(
        jobid=number, rule=SimpleNamespace(name=rule), wildcards={"benchmark": "streets", "method": method, "seed": "0"}
    )


def told(handler: growing.Growing, event: LogEvent, **about: object) -> None:
    record = logging.makeLogRecord({"event": event} | about)
    handler.handle(record)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(growing.time, "monotonic", lambda: now[0])
    return now


def test_minutes_left_follow_what_was_timed(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job(0, "pretrain"), job(1, "train", "bcl"), job(2, "train", "pipa"), job(3, "evaluate", "bcl")]
    handler = growing.Growing(params.load(ROOT / "params.yaml"), jobs)
    told(handler, LogEvent.JOB_STARTED, jobs=[0])
    clock[0] = 60.0
    told(handler, LogEvent.JOB_FINISHED, job_id=0)
    told(handler, LogEvent.PROGRESS, done=1, total=4)
    assert capsys.readouterr().err == "job 2 of 4, about 5 min left\n"  # two of 2.6 x 60 s, and 6 s
    told(handler, LogEvent.JOB_STARTED, jobs=[1])
    clock[0] = 180.0
    told(handler, LogEvent.JOB_FINISHED, job_id=1)
    told(handler, LogEvent.PROGRESS, done=2, total=4)
    assert capsys.readouterr().err == "job 3 of 4, about 2 min left\n"  # one as long as the one that was timed
    told(handler, LogEvent.PROGRESS, done=4, total=4)
    assert capsys.readouterr().err == ""


def test_the_table_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    p = params.load(ROOT / "params.yaml")
    old = tmp_path / "results/streets/pipa/seed0/metrics.json"  # of a run that is made anew
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"miou": 99.0}))
    jobs = [job(0, "evaluate", "oracle"), job(1, "evaluate", "bcl"), job(2, "evaluate", "pipa")]
    handler = growing.Growing(p, jobs)
    for number, method, score in ((0, "oracle", 38.0), (1, "bcl", 30.126)):
        path = Path(f"results/streets/{method}/seed0/metrics.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"miou": score}))
        told(handler, LogEvent.JOB_FINISHED, job_id=number)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "streets so far, mIoU %: oracle 38.00"
    assert second == "streets so far, mIoU %: bcl 30.13, oracle 38.00"  # in the order of params.yaml


def test_the_ladder_comes_first() -> None:
    order = sorted(params.load(ROOT / "params.yaml").run.methods, key=growing.urgency, reverse=True)
    assert set(order[:3]) == {"source_only", "self_training", "oracle"}
