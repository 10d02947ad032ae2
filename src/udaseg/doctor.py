"""Looks over machine, packages, data, weights and workflow; a line for each, and for what is not well the next action.

Every check stands alone: one that fails is reported as such and hides no other. Nothing is fetched, made or changed.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from udaseg import origins, params, results
from udaseg.artifacts import MODEL, checked_hash
from udaseg.data import camvid, formats, prepare, prepared
from udaseg.errors import UserError
from udaseg.params import LICENSED, Dataset, Params, Use, uses
from udaseg.workflow import altered, bridges, guard, lease, plan

WIDTH = (60, 80, 120)  # columns at least, where nobody knows, and at most
INSTALL = "python -m pip install --no-deps --require-hashes -r requirements.lock"
LEAST_MEMORY = 4e9  # measured: 1 to 1.5 GB for one training of a small network on the CPU
LEAST_DISK = 1e9
PIXEL_BYTES = 4  # on the disk while a data set is prepared: two of the zips (streets and CamVid: 1.3 to 1.9), twice
RUN_BYTES = 3e8  # of one run: model, restart state, features, DVC's copies (small networks need 0.1 GB, MiT-B5 2 GB)
DVC_SECONDS = 30
MOST_BYTES = 8e9  # of models that are hashed here, a few seconds


@dataclass(frozen=True)
class Finding:
    mark: Literal["ok", "note", "problem"]
    text: str
    do: str = ""  # the next action


def doctor(path: Path) -> int:
    """Print what was found, for people, as wide as the screen.

    Returns:
        0 where nothing is a problem, else 1.
    """
    p, first = parameters(path)
    marks = [show(first)]
    with ThreadPoolExecutor() as pool:  # most of them wait for other programs
        jobs = [pool.submit(findings, check) for check in MACHINE]
        jobs += [pool.submit(findings, check, p) for check in PROJECT if p]
        for job in jobs:
            marks += [show(finding) for finding in job.result()]
    if not p:
        marks.append(show(Finding("note", "data, weights and results: not looked at without parameters")))
    counts = [f"{n} {mark}{'s' if n > 1 else ''}" for mark in ("problem", "note") if (n := marks.count(mark))]
    print(", ".join(counts) or "all is well")
    return int("problem" in marks)


def parameters(path: Path) -> tuple[Params | None, Finding]:
    try:
        p = params.load(path)
        if path == Path("params.yaml"):
            plan.load()
    except UserError as error:
        return None, Finding("problem", str(error), f"correct {path}, then run `udaseg doctor` again")
    names = ", ".join(p.run.benchmarks)
    return p, Finding("ok", f"{path}: {names}; {len(p.run.methods)} methods, seeds {list(p.run.seeds)}")


def findings(check: Callable[..., Iterator[Finding]], *of: Params) -> list[Finding]:
    """What a check says up to its end, or up to where it fails."""
    found = []
    try:
        for finding in check(*of):
            found.append(finding)
    except Exception as error:  # whatever it is, it must not hide the other checks
        what = f"the check of {check.__name__.replace('_', ' ')} failed: {type(error).__name__}: {error}"
        found.append(Finding("problem", what, "report this line at the project's page"))
    return found


def show(finding: Finding) -> str:
    indent = " " * 9
    least, usual, most = WIDTH
    width = min(max(shutil.get_terminal_size((usual, 24)).columns, least), most)
    print(
        textwrap.fill(
            " ".join(finding.text.split()),
            width,
            initial_indent=f"{finding.mark:<9}",
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
    if finding.do:
        print(
            textwrap.fill(
                finding.do,
                width,
                initial_indent=f"{indent}-> ",
                subsequent_indent=f"{indent}   ",
                break_long_words=False,
                break_on_hyphens=False,
            ),
            flush=True,
        )
    return finding.mark


# --- the machine ----------------------------------------------------------------------------------------------------


def packages() -> Iterator[Finding]:
    """Versions against what the package needs, and against requirements.lock, with which everything was tested."""
    needed = [Requirement(text) for text in importlib.metadata.requires("udaseg") or ()]
    extras = ("train", "analysis", "workflow")
    needed = [r for r in needed if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
    if bad := differing(needed):
        yield Finding("problem", f"packages: {'; '.join(bad)}", INSTALL)
    lock = Path("requirements.lock")
    if not lock.is_file():
        yield Finding("note", "no requirements.lock here", "run this at the top of a udaseg checkout")
        return
    lines = [
        line.rstrip(" \\") for line in lock.read_text().splitlines() if line[:1].isalnum()
    ]  # not comments, not hashes
    pins = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate()]
    others = differing(pins)
    python = f"Python {platform.python_version()}"
    if others:
        some = "; ".join(others[:3]) + ("; ..." if len(others) > 3 else "")
        yield Finding(
            "note", f"{python}; {len(others)} of {len(pins)} packages are not those of {lock}: {some}", INSTALL
        )
    else:
        yield Finding("ok", f"{python}; all {len(pins)} packages as in {lock}")


def differing(requirements: list[Requirement]) -> list[str]:
    out = []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            out.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            out.append(f"{requirement.name} {version}, expected {requirement.specifier}")
    return out


def devices() -> Iterator[Finding]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
    yield Finding("ok", f"PyTorch {torch.__version__}, built for {build}")
    listed = lease.pool()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            yield Finding("ok", f"GPU {number}: {about.name}, {about.total_memory / 1e9:.0f} GB")
    elif listed and torch.version.cuda:
        yield Finding(
            "problem",
            f"GPU {', '.join(listed)} is there (nvidia-smi or CUDA_VISIBLE_DEVICES), but PyTorch cannot use it",
            f"`nvidia-smi` shows the driver; install one for CUDA {torch.version.cuda} or newer",
        )
    elif listed:
        yield Finding("problem", f"GPU {', '.join(listed)} is there, but this PyTorch is for the CPU alone", INSTALL)
    else:
        yield Finding("ok", "no GPU: trainings run on the CPU, which is fine for the small benchmarks")


def memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    text = f"{total / 1e9:.0f} GB of memory; one training of a small network takes about 1.5 GB"
    yield (
        Finding("ok", text)
        if total >= LEAST_MEMORY
        else Finding("note", text, "run one at a time: snakemake --cores 1")
    )


# --- the project ----------------------------------------------------------------------------------------------------


def settings(p: Params) -> Iterator[Finding]:
    """What the parameters ask of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{cores} cores; one training takes {p.run.threads} threads, data loaders {p.run.workers}"
    if p.run.threads > cores:
        yield Finding("note", text, f"set run.threads: {cores} before the first training (it is part of the results)")
    else:
        yield Finding("ok", text)
    if p.run.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            yield Finding(
                "problem", "run.device is cuda, but no CUDA device is visible", "say `device: auto` in params.yaml"
            )
    if p.run.tensorboard and importlib.util.find_spec("tensorboard") is None:
        yield Finding("problem", "run.tensorboard needs the package tensorboard", "python -m pip install tensorboard")


def disk(p: Params) -> Iterator[Finding]:
    """Free space against a rough guess of what is left to make."""
    waiting = {(b, use) for b in p.run.benchmarks for use in uses(p.benchmarks[b]) if not is_prepared(p, b, use)}
    data = sum(images(p.datasets[use.dataset], use.split) * use.size.width * use.size.height for _, use in waiting)
    runs = sum(not (run.folder / "model.safetensors").exists() for b in p.run.benchmarks for run in plan.runs(p, b))
    need = data * PIXEL_BYTES + runs * RUN_BYTES
    free = shutil.disk_usage(".").free
    text = f"{free / 1e9:.0f} GB free on this disk; what is planned needs roughly {need / 1e9:.1f} GB"
    if free < LEAST_DISK:
        yield Finding("problem", text, "free some space, or put the checkout on another disk")
    elif free < need:
        yield Finding("note", text, "free some space, put the checkout on another disk, or plan less in `run:`")
    else:
        yield Finding("ok", text)


def data(p: Params) -> Iterator[Finding]:
    mirror = os.environ.get("UDASEG_MIRROR")
    if mirror and not Path(mirror).is_dir():
        yield Finding("problem", f"UDASEG_MIRROR: no folder {mirror}", "name an existing folder, or unset it")
    wanted = {use.dataset: (b, use) for b in p.run.benchmarks for use in uses(p.benchmarks[b])}
    for name in wanted:
        plans = [(b, use) for b in p.run.benchmarks for use in uses(p.benchmarks[b]) if use.dataset == name]
        if all(is_prepared(p, b, use) for b, use in plans):
            yield Finding("ok", f"data {name}: prepared for {', '.join(dict.fromkeys(b for b, _ in plans))}")
        else:
            yield looked(name, p.datasets[name])


def is_prepared(p: Params, benchmark: str, use: Use) -> bool:
    """Whether what `use` needs is there, whole, and made by the recipe of these parameters."""
    try:
        found = prepared.find_prepared(benchmark, use)
        found.check()
    except UserError:
        return False
    recipe = prepare.recipe_of(p.datasets[use.dataset], use.size)
    return use.split in found.splits and found.manifest["recipe"] == recipe


def looked(name: str, dataset: Dataset) -> Finding:
    """What lies on the disk of a data set that is not prepared; nothing is fetched or unpacked."""
    try:
        root = dataset.folder
    except UserError as error:
        return Finding("problem", f"data {name}: {error}", "set it, then `udaseg doctor` again")
    if dataset.format == "camvid":
        mirror = Path(os.environ.get("UDASEG_MIRROR", ""), "data/camvid")
        if not any((place / "splits").is_dir() for place in (mirror, root)) and not list(root.rglob("trainannot")):
            do = "let `snakemake` fetch it (network), or set UDASEG_MIRROR to a folder with data/camvid (docs/data.md)"
            return Finding("note", f"data {name}: not on this machine (looked at {root} and UDASEG_MIRROR)", do)
    elif dataset.format in LICENSED:
        expected, splits = formats.EXPECTED[dataset.format], formats.scan(dataset.format, root) if root.is_dir() else {}
        if not any(len(items) == expected.get(split) for split, items in splits.items()):
            packed = formats.archives.find_archives(root, formats.DELIVERIES[dataset.format].archives)
            if packed:
                return Finding("ok", f"data {name}: {len(packed)} archives at {root}, unpacked by the next `snakemake`")
            there = sum(len(items) for items in splits.values())
            text = formats.absent(dataset.format, root, f"{there} images" if there else "nothing")
            return Finding("problem", f"data {text}", f"place the files at {root}, then `udaseg doctor` again")
    else:
        try:
            formats.find_delivered(name, dataset)
        except UserError as error:
            return Finding("problem", f"data {name}: {error}", "correct `datasets` in params.yaml (docs/data.md)")
    return Finding("ok", f"data {name}: found; prepared by the next `snakemake`")


def images(dataset: Dataset, split: str) -> int:
    """How many a split holds when complete; 0 where only a look at the files would tell."""
    known = {**formats.EXPECTED, "camvid": camvid.COUNTS, "streets": dataset.count}.get(dataset.format, {})
    return known.get(split, max(known.values(), default=0))


def weights(p: Params) -> Iterator[Finding]:
    """Encoder weights that planned runs start from."""
    models = {b: p.benchmarks[b].model for b in p.run.benchmarks if any(run.from_imagenet for run in plan.runs(p, b))}
    if not models:
        yield Finding("ok", "weights: none needed, all planned runs start at random")
        return
    from huggingface_hub import constants

    from udaseg.models.weights import find_weights

    constants.HF_HUB_OFFLINE = True  # look, do not fetch
    for benchmark, model in models.items():
        try:
            yield Finding("ok", f"weights of {benchmark}: {find_weights(model)}")
        except UserError as error:
            if model.weights.startswith("timm:") and "could not download" in str(error):
                text = f"weights of {benchmark}: {model.backbone} {model.weights} is not on this machine"
                do = "let the first training fetch it (network), or put it into UDASEG_MIRROR (docs/models.md)"
                yield Finding("note", text, do)
            else:
                known = model.weights in origins.ORIGINS
                do = f"udaseg fetch-weights {model.weights}" if known else "see docs/models.md"
                yield Finding("problem", f"weights of {benchmark}: {error}", do)


def git(p: Params) -> Iterator[Finding]:
    done = subprocess.run(["git", "status", "--porcelain", "--branch"], capture_output=True, text=True, check=False)
    if done.returncode:
        yield Finding("note", "no git checkout: results cannot say which revision made them", "git clone the project")
        return
    branch, *changes = done.stdout.splitlines()
    text = f"git: {branch.removeprefix('## ')}, {len(changes) or 'no'} changed files"
    yield Finding("note", text, "commit what results should be quoted with") if changes else Finding("ok", text)


def dvc(p: Params) -> Iterator[Finding]:
    """Whether dvc.lock describes the results that are here, and whether they are kept elsewhere too."""
    settings = "".join(f.read_text() for f in (Path(".dvc/config"), Path(".dvc/config.local")) if f.is_file())
    remotes = re.findall(r'remote "(.+?)"', settings)
    text = f"DVC remote: {', '.join(remotes) or 'none, models are kept on this disk alone'}"
    yield Finding("ok", text) if remotes else Finding("note", text, "dvc remote add -d store PATH, then dvc push")
    try:
        done = subprocess.run(
            [*bridges.DVC, "status", "--json"], capture_output=True, text=True, timeout=DVC_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("note", f"`dvc status` took more than {DVC_SECONDS} s (first look at large files)", "dvc status")
        return
    if done.returncode:
        yield Finding("note", f"`dvc status`: {bridges.last_line(done.stdout + done.stderr)}", "dvc status")
        return
    stale = json.loads(done.stdout)
    if nobodys := list(altered.altered(stale)):
        text = f"{len(nobodys)} results are not those of dvc.lock and no job has made them so, first {nobodys[0]}"
        yield Finding("note", text, "`udaseg verify` tells what is wrong; delete it, then `snakemake`")
    elif stale:
        do = "`snakemake -n` shows what is left to make; once it has nothing to do: `udaseg record`"
        yield Finding("note", f"{len(stale)} stages are not as dvc.lock says, first {next(iter(stale))}", do)
    else:
        yield Finding("ok", "dvc.lock describes all results here")


def files(p: Params) -> Iterator[Finding]:
    """Models, histories, scores and measures that are here against their records and themselves."""
    runs = [run for benchmark in p.run.benchmarks for run in plan.runs(p, benchmark)]
    hashed, looked, bad = 0, 0, []
    for run in runs:
        model = run.folder / MODEL
        hashed += model.stat().st_size if model.is_file() else 0
        looks: dict[str, Callable[[], object]] = {
            MODEL: partial(checked_hash, model, run.command("train")),
            "history.csv": partial(results.history, run),
            "metrics.json": partial(results.metrics, run),
            "analysis.json": partial(results.analysis, run),
        }
        for name, look in looks.items():
            if not (run.folder / name).exists() or (name == MODEL and hashed > MOST_BYTES):
                continue
            looked += 1
            try:
                look()
            except UserError as error:
                bad.append(str(error))
    for text in bad[:3]:
        yield Finding("problem", text, "`udaseg verify` looks at all files of all runs, and scores models again")
    if looked and not bad:
        some = f" (models up to {MOST_BYTES / 1e9:.0f} GB; `udaseg verify` looks at all)" if hashed > MOST_BYTES else ""
        yield Finding("ok", f"{looked} files of runs are what their records say{some}")


def snakemake(p: Params) -> Iterator[Finding]:
    """Snakemake's lock and records."""
    if bridges.locked():
        yield Finding(
            "note",
            "Snakemake's lock is held",
            "wait for the run that is at work here; was it killed: snakemake --unlock",
        )
    try:
        guard.check_records(plan.cached(p))
        yield Finding("ok", "Snakemake knows all results here")
    except UserError as error:
        yield Finding("problem", str(error), "udaseg sync")


def trainings(p: Params) -> Iterator[Finding]:
    """Runs that are done, left to do, or stopped in between."""
    for benchmark in p.run.benchmarks:
        runs = plan.runs(p, benchmark)
        trained = sum((run.folder / "model.safetensors").is_file() for run in runs)
        scored = sum((run.folder / "metrics.json").is_file() for run in runs)
        text = f"{benchmark}: {trained} of {len(runs)} runs trained, {scored} scored"
        done = trained == scored == len(runs)
        yield Finding("ok", text) if done else Finding("note", text, "snakemake")
    for state in sorted(Path("results/.restart").glob("*/*/seed*/state.pt")):
        run = Path("results", *state.parent.parts[2:])
        if is_held(state.with_name("lock")):
            yield Finding("ok", f"{run}: training now")
        else:
            age = ago(time.time() - state.stat().st_mtime)
            yield Finding(
                "note", f"{run}: stopped before its end, state saved {age} ago", f"snakemake {run}/model.safetensors"
            )


def is_held(lock: Path) -> bool:
    """Whether a training holds its folder (`artifacts.run_lock`)."""
    try:
        with lock.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


MACHINE: tuple[Callable[[], Iterator[Finding]], ...] = (packages, devices, memory)
PROJECT: tuple[Callable[[Params], Iterator[Finding]], ...] = (
    settings, disk, data, weights, git, dvc, snakemake, files, trainings,
)  # fmt: skip
