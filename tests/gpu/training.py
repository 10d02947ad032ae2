"""One part of `make gpu-check`: a short training through the command, stopped and gone on with, twice; a script."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tiny_project import Project, stand_in
from udaseg.artifacts import file_hash

STEPS = 60
RUN = ("train", "--benchmark", "streets", "--method", "self_training")
FOLDER = Path("results/streets/self_training/seed0")


def made(name: str, *, stop: bool) -> tuple[str, list[float]]:
    """Hash of the weights and losses of a training; `stop`: told to stop once it has saved, and begun again."""
    folder = Path(name).absolute()
    folder.mkdir()
    project = Project(folder, stand_in(folder))
    for key, value in {
        "init": {"default": "none"},
        "train/steps": STEPS,
        "train/log_every": 5,
        "train/save_every": 5,
    }.items():
        project.set(f"benchmarks/streets/{key}", value)
    checked(project.udaseg("prepare", "--benchmark", "streets"))
    if stop:
        process = subprocess.Popen(project.command(*RUN), cwd=folder, stderr=subprocess.DEVNULL)
        state = folder / "results/.restart/streets/self_training/seed0/state.pt"
        while not state.exists() and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        process.wait(timeout=60)
    checked(project.udaseg(*RUN))
    with (folder / FOLDER / "history.csv").open() as handle:
        losses = [float(row["source"]) for row in csv.DictReader(handle)]
    return file_hash(folder / FOLDER / "model.safetensors"), losses


def checked(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        sys.exit(done.stderr)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    (one, losses), (other, _) = made("whole", stop=False), made("stopped", stop=True)
    assert losses[-1] < losses[0], losses
    assert one == other, "stopped and gone on with, it has other weights"
    print(
        json.dumps(
            {"steps": STEPS, "first_loss": losses[0], "last_loss": losses[-1], "equal_bits_after_a_stop": one == other}
        )
    )
