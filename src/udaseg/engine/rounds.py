"""Rounds of labels for the target's training images (BCL): made inside `train`, each complete or absent, resumable.

Round r of R begins at step ceil(r * steps / R). Its labels lie beside the restart state, whose hash of them tells that they
belong together; those of the round before are kept as long as a state of that round may be.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udaseg import ranks
from udaseg.artifacts import changing, file_hash, writing
from udaseg.classes import IGNORE
from udaseg.data.prepared import find_prepared
from udaseg.errors import UserError
from udaseg.methods.base import Method
from udaseg.params import Run, uses

log = logging.getLogger("udaseg")


def first_step(number: int, steps: int, rounds: int) -> int:
    return -(-number * steps // rounds)


def round_of(step: int, steps: int, rounds: int) -> int:
    """The round that `step` belongs to, from 0."""
    return step * rounds // steps


def begins(step: int, steps: int, rounds: int) -> bool:
    """Whether a round begins at `step`; more rounds than steps skip some."""
    return rounds > 0 and (step == 0 or round_of(step, steps, rounds) > round_of(step - 1, steps, rounds))


def end(step: int, steps: int, rounds: int) -> int:
    """The step behind the last one of the round that `step` belongs to."""
    return first_step(round_of(step, steps, rounds) + 1, steps, rounds) if rounds else steps


def labels_path(restart: Path, number: int) -> Path:
    return restart / f"labels{number}.npy"


def label(run: Run, method: Method, restart: Path, number: int, device: torch.device) -> str:
    """Label all training images of the target; returns the file's hash. All ranks call it together."""
    use = uses(run.benchmark)[1]
    prepared = find_prepared(run.benchmark_name, use)
    samples = prepared.samples(use.split)
    width, height = (max(sample.image_size[k] for sample in samples) for k in (0, 1))
    shape = (len(samples), height, width)
    home = labels_path(restart, number)

    def images() -> Iterator[tuple[int, Tensor]]:
        for n in range(ranks.rank(), len(samples), ranks.world()):
            image = torch.from_numpy(np.ascontiguousarray(prepared.image(samples[n]).transpose(2, 0, 1)))
            yield n, image.to(device).float() / 255

    shared = home.with_name(f".{home.name}.part")  # one name on all ranks
    if ranks.rank() == 0:
        with changing(home):
            home.parent.mkdir(parents=True, exist_ok=True)
            shared.unlink(missing_ok=True)
            with shared.open(
                "xb"
            ) as file:  # written, not mapped: a full disk is an error then, and does not end the process
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in samples:
                    file.write(bytes([IGNORE]) * (height * width))
    ranks.wait()
    labels = np.load(shared, mmap_mode="r+")
    log.info("round %d: labelling %d target images", number, len(samples))
    method.label_target(images, labels)
    labels.flush()
    ranks.wait()
    if ranks.rank() == 0:
        known = float((labels != IGNORE).mean())
        with writing(home) as temporary:
            shared.replace(temporary)
        log.info("round %d: %.1f %% of the pixels labelled", number, 100 * known)
        for old in restart.glob("labels*.npy"):
            if old not in (home, labels_path(restart, number - 1)):
                old.unlink()
    ranks.wait()
    return file_hash(home)


def check_labels(restart: Path, number: int, expected: str) -> None:
    """Raises UserError if the round's labels are not those that the restart state was trained with."""
    home = labels_path(restart, number)
    if not home.exists() or file_hash(home) != expected:
        raise UserError(
            f"{home}: {'damaged' if home.exists() else 'not found'}; expected the labels of round {number} that belong to the "
            f"restart state beside them; delete {restart} to train from step 0"
        )
