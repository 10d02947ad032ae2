"""A throw-away repository with the project's files and .test/params.yaml, in which the real commands run on a CPU."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

import forked
from udaseg import figures

ROOT = Path(__file__).parents[2]
TRAINED = "results/streets/self_training/seed0"
# jobs by rule: all of them, and what runs after a change of the selected method
METHODS = ("source_only", "self_training", "pipa")
FIGURES = ("iou_bars", "tsne")  # of one rule, and drawn in tests/figures: from scores, from features
EVERYTHING = {"prepare": 1, "pretrain": 1, "train": 3, "evaluate": 3, "analyse": 3, "compare": 1, "select": 1}
EVERYTHING |= {"figure": len(FIGURES), "report": 1}
ONE_METHOD = {"train": 1, "evaluate": 1, "analyse": 1, "compare": 1, "figure": len(FIGURES), "report": 1, "select": 1}
RESTART = "results/.restart/streets/self_training/seed0"


class Repository:
    """A git repository with the project's files; commands run in it with the code that lies in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "src"),
            "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc" / "tmp" / "site"),
            "UDASEG_GPU_POOL": "",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }

    def run(self, *command: str, expect: int | None = 0) -> str:
        """Output of a command; fails on an exit code other than `expect` (None: any)."""
        done = forked.run(command, self.folder, self.environment)
        text = done.stdout + done.stderr
        assert expect is None or done.returncode == expect, f"{command}: exit code {done.returncode}\n{text}"
        return text

    def git(self, *words: str) -> str:
        return self.run("git", *words)

    def snakemake(self, *words: str, expect: int | None = 0) -> str:
        return self.run("snakemake", "--cores", "2", *words, expect=expect)

    def dvc(self, *words: str, expect: int | None = 0) -> str:
        return self.run("dvc", *words, expect=expect)

    def udaseg(self, *words: str, expect: int | None = 0) -> str:
        return self.run(sys.executable, "-m", "udaseg", *words, expect=expect)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own, as a terminal does."""
        output = (self.folder / ".started").open("w")
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, start_new_session=True, stdout=output, stderr=output
        )

    def commit(self, message: str = "results") -> None:
        self.git("add", "-A")
        self.git("commit", "--quiet", "-m", message)

    @property
    def params(self) -> dict[str, Any]:
        return yaml.safe_load((self / "params.yaml").read_text())

    def set(self, path: str, value: Any) -> None:
        """Change one value of params.yaml, as in `set("run/threads", 2)`."""
        raw = self.params
        *parents, last = path.split("/")
        block = raw
        for key in parents:
            block = block[key]
        block[last] = value
        (self / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))

    def planned(self, *targets: str) -> dict[str, int]:
        """Rule -> number of jobs that Snakemake would run; `all` is left out."""
        text = self.snakemake("--dry-run", *targets)
        if "Nothing to be done" in text:
            return {}
        table = text[text.rindex("Job stats:") :]
        return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, re.M) if name not in ("all", "total")}

    def stale(self) -> set[str]:
        """Stages that DVC would run by themselves once it has looked at code and parameters, without what follows from them."""
        self.dvc("repro", "--quiet", "identity")
        return set(json.loads(self.dvc("status", "--json")))

    def records(self) -> dict[str, dict[str, Any]]:
        """Snakemake's record of each output."""
        found = {}
        for path in self.outputs():
            name = urlsafe_b64encode(path.encode()).decode()
            record = self / f".snakemake/metadata/{name}"
            if record.exists():
                found[path] = json.loads(record.read_text())
        return found

    def summary(self) -> list[dict[str, str]]:
        """Snakemake's table of outputs and inputs."""
        head, *rows = [
            line.split("\t") for line in self.snakemake("--detailed-summary").splitlines() if line.count("\t") > 5
        ]
        return [dict(zip(head, row, strict=True)) for row in rows]

    def outputs(self) -> list[str]:
        return [row["output_file"] for row in self.summary()]


def stages_run(text: str) -> list[str]:
    """Stages that a `dvc repro` ran, without the look at code and parameters."""
    return [name for name in re.findall(r"Running stage '([^']+)'", text) if name != "identity"]


def jobs_run(text: str) -> list[str]:
    """Rules that a `snakemake` finished."""
    return [name for name in re.findall(r"\(Rule: (\w+)\)", text) if name != "all"]


def identity_text(record: dict[str, Any]) -> str:
    """What Snakemake's record says decides a result."""
    (text,) = record["params"]
    return str(ast.literal_eval(text))


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and everything below it, as a machine that goes down."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=20)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C: SIGINT to the foreground process group."""
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=120)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def with_pipa(repository: Repository) -> None:
    """One method with a term beside the two without: small heads, both losses from the first step."""
    term = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]["pipa"]["pipa"]
    term["pixel"] |= {"width": 16, "anchors": 64}
    term["patch"] |= {"width": 16, "start": 0.0}
    repository.set("methods/pipa", repository.params["methods"]["self_training"] | {"terms": ["pipa"], "pipa": term})
    repository.set("run/methods", list(METHODS))


def with_two_figures(repository: Repository) -> None:
    """Few of the figures, in all three places that name them."""
    every = (repository / "dvc.yaml").read_text()
    listed = f"name: [{', '.join(figures.NAMES)}]"
    assert every.count(listed) == 1, "dvc.yaml draws other figures than udaseg.figures names"
    (repository / "dvc.yaml").write_text(every.replace(listed, f"name: [{', '.join(FIGURES)}]"))
    for path, line in (
        ("figures/__init__.py", f"NAMES = {FIGURES}\n"),
        ("report/report.py", f"FIGURES = {{name: FIGURES[name] for name in {FIGURES}}}\n"),
    ):
        with (repository / f"src/udaseg/{path}").open("a") as handle:
            handle.write(line)
    repository.commit("two figures")


def checkout(folder: Path) -> Repository:
    """A repository with the files of this working tree (committed or not, but not ignored) and the test parameters."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in sorted(set(listed.split("\0"))):
        if not name or name == "dvc.lock" or name.startswith(("results/", "figures/", "tests/")):
            continue
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copy(ROOT / ".test" / "params.yaml", folder / "params.yaml")
    repository = Repository(folder)
    with_pipa(repository)
    repository.git("init", "--quiet")
    repository.commit("start")
    return repository
