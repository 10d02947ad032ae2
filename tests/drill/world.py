"""Where rounds take place: the undisturbed reference of a seed, copies of it with results taken away, commands that run there."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml
from rounds import BENCHMARK, METHODS, Job, jobs

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "workflow")]

from repository import Repository, checkout  # noqa: E402

from udaseg import params  # noqa: E402
from udaseg.workflow import plan  # noqa: E402

STEPS = 30  # of a training: two seconds, in which its state is saved six times
LIMIT, SILENT = 1800, 180  # seconds that no command of the drill takes, nor goes on without a word
LEAST = 1.0  # seconds of computing in a time without a word that tell a busy machine from a hang
BARE = ("params.yaml", "data", "results", "figures", "docs/methods")  # what single steps need of a repository
DATA = f"data/{BENCHMARK}"
WRITTEN = ("data", "results", "figures")
# of run.json: what differs between equal runs
TOLD = ("seconds", "peak_memory_mb", "command", "revision", "dirty")


class Place(Repository):
    """A folder of one round, with its processes."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self.seed = seed

    @property
    def environment(self) -> dict[str, str]:
        code = next(folder for folder in (self / "src", ROOT / "src") if folder.is_dir())
        return super().environment | {
            "PYTHONPATH": str(code),
            "TMPDIR": str(temporary()),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "400",
            "DVC_NO_ANALYTICS": "1",
        }

    def files(self) -> list[str]:
        """Everything that the workflow keeps or hands from step to step, and that repeats itself bit by bit."""
        found = plan.cached(self.planned_by) + plan.scores(self.planned_by)
        found += [str(path.relative_to(self.folder)) for path in sorted((self / DATA).glob("*/*")) if path.is_file()]
        return sorted({*found, *self.data_files()})

    def data_files(self) -> list[str]:
        return [f"{folder}/{name}" for folder in self.sets() for name in ("images.zip", "labels.zip", "manifest.json")]

    def sets(self) -> list[str]:
        p = self.planned_by
        return sorted({f"{DATA}/{use.prepared}" for use in params.uses(p.benchmarks[BENCHMARK])})

    @property
    def planned_by(self) -> params.Params:
        return params.load(self / "params.yaml")

    def content(self) -> dict[str, str]:
        """File -> hash of what must be equal in it; missing files are left out."""
        found = {name: digest_of(self / name) for name in self.files() if (self / name).is_file()}
        for record in sorted((self / f"results/{BENCHMARK}").glob("*/*/run.json")):
            found[str(record.relative_to(self.folder))] = record_digest(record)
        return found

    def outputs_of(self, job: Job) -> list[str]:
        """Files of a job; those of a training with its record."""
        step, *name = job
        run = f"results/{BENCHMARK}/{name[0] if name else ''}/seed{self.seed}"
        copies = f"{BENCHMARK}/{name[0] if name else ''}-seed{self.seed}"
        if step == "prepare":
            return [f"{DATA}/data.json", *self.data_files()]
        if step == "pretrain":
            run = f"results/{BENCHMARK}/pretrained/seed{self.seed}"
        return {
            "pretrain": [f"{run}/{each}" for each in (*plan.TRAINED, "run.json")],
            "train": [f"{run}/{each}" for each in (*plan.TRAINED, "run.json")],
            "evaluate": [f"{run}/{each}" for each in (*plan.SCORED, *plan.EVALUATED)]
            + [f"results/.compared/{copies}/{each}" for each in plan.COMPARED],
            "analyse": [f"{run}/{each}" for each in ("features.npz", *plan.ANALYSED)]
            + [f"results/.analysed/{copies}/{each}" for each in plan.ANALYSED],
            "compare": [f"results/{BENCHMARK}/summary.{end}" for end in ("json", "csv", "md")],
            "figure": [f"figures/{BENCHMARK}/{name[0] if name else ''}.{end}" for end in ("png", "pdf")],
            "report": [f"results/{BENCHMARK}/report.html"],
            "select": [f"results/selected/{each}" for each in plan.SELECTED],
        }[step]

    def written_by_hand(self, job: Job) -> list[str]:
        """Outputs that the command itself writes; copies for DVC are the rules' work."""
        return [name for name in self.outputs_of(job) if "/.compared/" not in name and "/.analysed/" not in name]

    def take_away(self, missing: Iterable[Job], *, set_aside: bool) -> None:
        """Delete results; `set_aside` keeps what finished trainings leave in results/.trained."""
        for job in missing:
            for name in self.outputs_of(job):
                (self / name).unlink(missing_ok=True)
            if job[0] in ("train", "pretrain") and not set_aside:
                run = "pretrained" if job[0] == "pretrain" else job[1]
                shutil.rmtree(self / f"results/.trained/{BENCHMARK}/{run}", ignore_errors=True)

    def arguments(self, job: Job) -> list[str]:
        """`udaseg` command of a job, without the first word."""
        step, *name = job
        words = [step, *(name if step == "figure" else [])]
        words += [] if step == "select" else ["--benchmark", BENCHMARK]
        if step in ("train", "evaluate", "analyse"):
            words += ["--method", name[0]]
        if step in ("pretrain", "train", "evaluate", "analyse"):
            words += ["--seed", str(self.seed)]
        return words

    def processes(self) -> list[psutil.Process]:
        """Living processes that work in this folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                below = Path(process.cwd()).is_relative_to(self.folder)
                if below and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                    found.append(process)
        return found

    def wait_for_silence(self, seconds: float) -> list[psutil.Process]:
        """The processes that are still there after so many seconds."""
        end = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        return found


@functools.cache
def temporary() -> Path:
    """Private folder for temporary files of this drill, removed at its end. Its path is short, whatever TMPDIR is: loader
    processes open sockets in it, and an address has at most 107 letters."""
    folder = Path(tempfile.mkdtemp(prefix="drill-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def digest_of(path: Path) -> str:
    """Of the bytes; of a report what it shows, because it also tells how long trainings took and at which revision."""
    if path.suffix != ".html":
        return digest(path)
    text = path.read_text(encoding="utf-8")
    shown = re.findall(
        r'<tr><th scope="row">([^<]*)</th><td class="number" data-value="([^"]*)"|src="(data:image[^"]*)"', text
    )
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16] if shown else "empty"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def record_digest(path: Path) -> str:
    try:
        record = json.loads(path.read_text())
        return hashlib.sha256(json.dumps({k: v for k, v in record.items() if k not in TOLD}).encode()).hexdigest()[:16]
    except (ValueError, AttributeError):
        return digest(path)


# --- commands ---------------------------------------------------------------------------------------------------------


class Started:
    """A command at work: its process, its output."""

    def __init__(self, pid: int, log: Path, end: Any) -> None:
        self.pid, self.log, self._end, self._code = pid, log, end, None
        self.process = psutil.Process(pid)

    def running(self) -> bool:
        try:
            return self._code is None and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def computed(self) -> float:
        """Seconds of processor time of the command and all below it, those that have ended among them."""
        seconds = 0.0
        with contextlib.suppress(psutil.Error):
            for process in (self.process, *self.process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    seconds += sum(process.cpu_times()[:4])
        return seconds

    def wait(self) -> int | None:
        """Its exit code; None if it hangs."""
        began = spoke = time.monotonic()
        said, computed = 0, 0.0
        while self.running():
            now = time.monotonic()
            if (size := self.log.stat().st_size if self.log.exists() else 0) != said:
                said, spoke = size, now
            if now - spoke > SILENT and (used := self.computed()) - computed > LEAST:
                computed, spoke = used, now
            if now - began > LIMIT or now - spoke > SILENT:
                return None
            time.sleep(0.02)
        if self._code is None:
            self._code = self._end()
        return self._code

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Warm:
    """The process that forks for single steps (warm.py)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        assert "ready" in self._answer(), "the warm process did not start"

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        return dict(json.loads(self.process.stdout.readline()))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(self, place: Place, words: list[str], log: Path, limit: int | None = None) -> Started:
        request: dict[str, Any] = {"argv": words, "folder": str(place.folder), "log": str(log)}
        request["environment"] = {"TMPDIR": place.environment["TMPDIR"], "UDASEG_GPU_POOL": ""}
        pid = self._ask(request | ({} if limit is None else {"limit": limit}))["pid"]
        return Started(pid, log, lambda: self._ask({"wait": pid})["code"])

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=20)


def start(place: Place, command: list[str], log: Path, **environment: str) -> Started:
    """Start a command in a process group of its own, as a terminal does."""
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=place.folder,
            env=place.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Started(process.pid, log, process.wait)


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Two drills at once take turns here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- the reference ------------------------------------------------------------------------------------------------------


class Reference:
    """What an undisturbed run of a seed leaves, made once for the present code and kept in `home`."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.seed = home / f"seed{seed}-{of_code()}", seed

    def steps(self, warm: Warm) -> Place:
        """Made step by step, without a workflow tool: params.yaml, data, results, figures."""
        place = Place(self.home / "steps", self.seed)
        if not made(place.folder):
            whole = Place(place.folder.with_name("files"), self.seed)
            shutil.rmtree(whole.folder, ignore_errors=True)
            whole.folder.mkdir(parents=True)
            smaller(whole)
            copy(whole, place, BARE)
            seconds = {}
            for job in jobs():
                began = time.monotonic()
                command = warm.start(place, place.arguments(job), place / ".log")
                assert command.wait() == 0, command.text
                seconds[job[0]] = time.monotonic() - began
                for name in set(place.outputs_of(job)) - set(place.written_by_hand(job)):  # what the rules copy
                    method, _, _ = Path(name).parent.name.rpartition("-")
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(place / f"results/{BENCHMARK}/{method}/seed{self.seed}/{Path(name).name}", place / name)
            (place / ".seconds").write_text(json.dumps(seconds))
            marker(place.folder).touch()
        return place

    def ranks(self, place: Place) -> Place:
        """Like `place`, but `self_training` by two processes."""
        two = Place(self.home / "ranks", self.seed)
        if not made(two.folder):
            copy(place, two, BARE)
            two.take_away([("train", "self_training")], set_aside=False)
            command = start(two, torchrun(two, 0), two / ".log", UDASEG_GPU_POOL="0,1")
            assert command.wait() == 0, command.text
            marker(two.folder).touch()
        return two

    def whole(self) -> Place:
        """Made by Snakemake, recorded by DVC, committed."""
        place = Place(self.home / "whole", self.seed)
        if not made(place.folder):
            place.folder.mkdir(parents=True)
            smaller(place)
            place.snakemake()
            place.udaseg("record")
            place.commit()
            marker(place.folder).touch()
        return place


def torchrun(place: Place, way: int) -> list[str]:
    """Two processes train, started as the rules do (0) or by torchrun itself (1)."""
    train = ["-m", "udaseg", *place.arguments(("train", "self_training"))]
    if way == 0:
        return [sys.executable, "-m", "udaseg", "with-gpus", "2", "--", sys.executable, *train]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *train]


def smaller(place: Place) -> None:
    """Fill a folder with the project and the drill's parameters."""
    checkout(place.folder)
    place.set("run/methods", list(METHODS))
    place.set("run/seeds", [place.seed])
    place.set("run/workers", 1)
    place.set("run/device", "cpu")
    place.set("benchmarks/streets/train/steps", STEPS)
    place.set("benchmarks/streets/train/save_every", 5)
    place.set("benchmarks/streets/train/log_every", 5)
    place.commit("parameters of the drill")


def made(folder: Path) -> bool:
    """Whether `folder` has been made to the end; what is left of an interrupted making is removed."""
    if marker(folder).exists():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def marker(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.made")


def copy(place: Place, other: Place, names: Iterable[str] = (".",)) -> None:
    """A copy with modification times, links between files of it kept, sharing nothing with the original."""
    other.folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (place / name).exists():
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            target = other / name if name != "." else other.folder
            source = f"{place / name}/." if (place / name).is_dir() else str(place / name)
            if (place / name).is_dir():
                target.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", "--reflink=auto", source, str(target)], check=True)


def of_code() -> str:
    """Hash of all that a reference is made from."""
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CODE],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    found = [(name, digest(ROOT / name)) for name in sorted(set(names)) if name and (ROOT / name).is_file()]
    return hashlib.sha256(yaml.safe_dump(found).encode()).hexdigest()[:12]


CODE = (
    "src",
    "workflow",
    "Snakefile",
    "dvc.yaml",
    ".test",
    "params.yaml",
    "profiles",
    "docs/methods",
    "tests/drill/world.py",
)
