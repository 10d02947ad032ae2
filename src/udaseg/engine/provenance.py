"""run.json: what decided a run's result, and when, where and with what it was made.

The first half is its identity. A result belongs to these parameters, code and data if the hashes agree; the parts behind them
tell which file or key made it stale (`udaseg why`). No torch, until a record is written.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udaseg import __version__, identity, origins
from udaseg.artifacts import MODEL, RECORD, checked_hash, file_hash, read_record
from udaseg.errors import UserError
from udaseg.params import Run

if TYPE_CHECKING:
    import torch

SCHEME = 2  # of the hashes; 1 hashed whole folders of code as text
OTHER_SCHEME = (
    f"signed under another scheme than {SCHEME}, so its hashes cannot be compared; `udaseg resign RUN` takes it over where it "
    "was made, if its first steps still give the same bits"
)
HISTORY = "history.csv"
VOUCHED = {MODEL: "model_hash", HISTORY: "history_hash"}  # files of a training, and where run.json holds their hashes


def code_of(run: Run) -> dict[str, str]:
    """File -> digest of the code that decides a training: that of the loop, of the method and of its terms."""
    return identity.code("train", *method_modules(run))


def method_modules(run: Run) -> list[str]:
    """Modules that a training imports by name."""
    return [f"methods.{name}" for name in (run.kind, *run.method.terms)]


def fingerprint_of(run: Run) -> dict[str, str]:
    """Hashes of all that decides a training's result: run.json keeps them as `<name>_hash`.

    Raises:
        UserError: data or the weights that the run starts from are missing.
    """
    return {
        "params": run.hash,
        "code": identity.digest_of(code_of(run)),
        "data": data_hash(run),
        "start": start_hash(run),
    }


def data_hash(run: Run) -> str:
    """Hash of data/<benchmark>/data.json, which holds the hashes of all images and labels of the benchmark."""
    path = Path("data", run.benchmark_name, "data.json")
    if not path.exists():
        raise UserError(f"{path}: not found; run `udaseg prepare --benchmark {run.benchmark_name}` first")
    return file_hash(path)


def start_hash(run: Run) -> str:
    """Hash of the weights file that the run starts from, or "none".

    Raises:
        UserError: there is none, or the pretrained model is not the file that was trained.
    """
    if run.init == "none":
        return "none"
    if run.init == "imagenet":
        from udaseg.models.weights import find_weights

        try:
            return file_hash(find_weights(run.benchmark.model))
        except UserError as error:
            raise UserError(f"{error}{origins.hint(run.benchmark.model.weights)}") from None
    if not run.pretrained.exists():
        raise UserError(
            f"{run.pretrained}: not found; {run.method_name} starts from source-only weights (init: source_only): run "
            f"`{run.command('pretrain')}` first"
        )
    return checked_hash(run.pretrained, run.command("pretrain"))


def record(
    run: Run, fingerprint: dict[str, str], folder: Path, *, seconds: float, where: torch.device
) -> dict[str, Any]:
    """run.json of a training whose model and history lie in `folder`."""
    from udaseg.engine import runtime

    return {
        "benchmark": run.benchmark_name,
        "method": run.method_name,
        "seed": run.seed,
        **signature(run, fingerprint, folder),
        "protocol": run.params.run.protocol,
        "init": run.init,
        "steps": run.train.steps,
        "threads": run.params.run.threads,
        "seconds": round(seconds, 1),
        "peak_memory_mb": runtime.peak_memory_mb(where),
        "command": " ".join(["udaseg", *sys.argv[1:]]),
        **machine(where),
        **revision(),
    }


def signature(run: Run, fingerprint: dict[str, str], folder: Path) -> dict[str, Any]:
    """What ties a result to parameters, code and data: the hashes, and what the first two are over."""
    return {
        "scheme": SCHEME,
        **{f"{name}_hash": value for name, value in fingerprint.items()},
        **{key: file_hash(folder / name) for name, key in VOUCHED.items()},
        "code": code_of(run),
        "params": run.resolved,
    }


def is_done(folder: Path, fingerprint: dict[str, str]) -> bool:
    """Whether `folder` holds a finished run of these parameters, code and data, whole: every file is what was written."""
    if not all((folder / name).is_file() for name in (MODEL, RECORD, HISTORY)):
        return False
    try:
        made = read_record(folder / RECORD)
    except UserError:
        return False
    signed = {name: made.get(f"{name}_hash") for name in fingerprint}
    return fingerprint == signed and not damaged_files(folder, made)


def damaged_files(folder: Path, made: dict[str, Any]) -> list[str]:
    """Which of model and history are not what run.json says; a record from before the history had a hash tells its last step."""
    found = [] if made.get("model_hash") == file_hash(folder / MODEL) else [MODEL]
    expected, history = made.get("history_hash"), folder / HISTORY
    if expected != file_hash(history) if expected else last_step(history) != made.get("steps"):
        found.append(HISTORY)
    return found


def last_step(history: Path) -> int | None:
    """Of a history whose last line is whole; None where it is not."""
    text = history.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    step = lines[-1].partition(",")[0] if lines else ""
    whole = text.endswith("\n") and lines[-1].count(",") == lines[0].count(",") and step.isdecimal()
    return int(step) if whole else None


def machine(where: torch.device) -> dict[str, Any]:
    """Device and versions. A package that is upgraded makes no result stale; this tells with which one it was made."""
    import timm
    import torch
    import torchvision

    from udaseg import ranks

    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU {platform.machine()}"
    return {
        "device": name,
        "ranks": ranks.world(),
        "versions": {
            "udaseg": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
        },
    }


def revision() -> dict[str, Any]:
    """Git revision of the checkout that the package lies in, and whether what a result depends on is changed there: the code
    and params.yaml; null outside one."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *words],
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    package = Path(__file__).parents[1]
    tracked = [str(path) for path in (package, Path("params.yaml").resolve()) if is_inside(path, package.parents[1])]
    changed = git("status", "--porcelain", "--", *tracked)
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def is_inside(path: Path, folder: Path) -> bool:
    return folder in path.parents
