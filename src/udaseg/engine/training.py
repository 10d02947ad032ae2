"""A training as people start it: its lock, whether it is done already, what it says on the way, what it leaves behind."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from udaseg import ranks
from udaseg.artifacts import IN_THE_WAY, MODEL, RECORD, read_record, run_lock, write_json, writing
from udaseg.deploy.card import describe
from udaseg.engine import provenance, runtime
from udaseg.engine.curves import LOGS, Curves
from udaseg.engine.history import write_history
from udaseg.engine.optim import build_optimizer
from udaseg.engine.provenance import HISTORY, fingerprint_of, is_done
from udaseg.engine.trainer import Loop, build
from udaseg.errors import UserError
from udaseg.methods.base import Method
from udaseg.methods.step.augment import BLUR_REACH
from udaseg.models import trained
from udaseg.params import Run
from udaseg.progress import duration

# bytes of a path that a socket can have, less what multiprocessing puts below TMPDIR: /pymp-xxxxxxxx/listener-xxxxxxxx
LONGEST_TMPDIR = (103 if sys.platform == "darwin" else 107) - 32
KEPT = Path("results/.trained")  # the last finished training of each run
Validate = Callable[[Run, Method, torch.device], dict[str, float]]  # names and scores of the networks in training
log = logging.getLogger("udaseg")


def train(run: Run, folder: Path, validate: Validate | None = None) -> None:
    """Train `run` and write history.csv, model.safetensors and, last, run.json into `folder`.

    Args:
        run: what to train.
        folder: where to.
        validate: what scores the networks on the way, every `train.validate_every` steps.

    Raises:
        UserError: whatever the user can mend (missing data, weights, device, a second process, a non-finite loss).
        Interrupted: a stop signal came; the state is saved.
    """
    run.check_usable()
    check_temporary(run.params.run.loaders(cuda=False))
    restart = Path("results/.restart", *folder.parts[1:])
    device = runtime.setup(run.params.run)
    try:
        if ranks.rank() == 0:
            with run_lock(restart):
                _train(run, folder, restart, device, validate)
        else:
            _train(run, folder, restart, device, validate)
    finally:
        ranks.leave()


def _train(run: Run, folder: Path, restart: Path, device: torch.device, validate: Validate | None) -> None:
    for leftover in restart.glob(".*.part"):  # of a killed save
        leftover.unlink(missing_ok=True)
    for name in (MODEL, HISTORY, RECORD):  # said now, not when hours of training are to be written
        if (folder / name).is_dir():
            raise UserError(f"{folder / name}: found a folder, expected a file or nothing; {IN_THE_WAY}")
    fingerprint = fingerprint_of(run)
    if is_done(folder, fingerprint):
        log.info(
            "%s is trained already with these parameters, code and data; to train again delete it and %s",
            *(folder, kept_place(folder)),
        )
        shutil.rmtree(restart, ignore_errors=True)
        return
    if (folder / RECORD).exists() and (folder / MODEL).exists() and ranks.rank() == 0:
        log.info("%s: not the result of these parameters, code and data, or not whole: it is made anew", folder)
    kept = kept_place(folder)
    for finished in (kept, *run.twins):
        if finished != folder and is_done(finished, fingerprint):
            if ranks.rank() == 0:
                adopt(finished, folder, run.method_name)
                shutil.rmtree(restart, ignore_errors=True)
            return
    if strange := sorted(set(run.benchmark.model.backbone_args) - trained.BACKBONE_ARGS):
        log.warning(
            "benchmarks.%s.model.backbone_args: %s: `predict`, `export` and `submit` will not read this model, because a file may not "
            "name that argument (docs/models.md)",
            *(run.benchmark_name, ", ".join(strange)),
        )
    method = build(run, device)
    check_crop(run, method, device)
    optimizer = build_optimizer(method, run.train.optimizer, device)
    try:
        loop = Loop(run, method, optimizer, device, restart, fingerprint)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        if not (restart / "state.pt").exists():
            raise
        raise UserError(  # of the same parameters, code and data, by other packages
            f"{restart}: the restart state does not fit the networks ({' '.join(str(error).split())[:160]}), as after an upgrade of "
            f"packages; delete that folder to train from step 0"
        ) from error
    loop.watch = watcher(run, folder, loop, validate)
    with runtime.stop_requests() as request:
        loop.fit(request)
    if ranks.rank() == 0:
        (folder / RECORD).unlink(missing_ok=True)  # what it vouches for is replaced now
        write_history(folder / HISTORY, loop.history)
        trained.save(folder / MODEL, run, method.scored())
        write_json(folder / RECORD, provenance.record(run, fingerprint, folder, seconds=loop.seconds, where=device))
        keep(folder)
        describe(folder)
        log.info("%s: %d steps in %s", folder, run.train.steps, duration(loop.seconds))
        shutil.rmtree(restart, ignore_errors=True)


def check_temporary(workers: int) -> None:
    """Whether loader processes can open their sockets, which lie in the temporary folder.

    Raises:
        UserError: its path is too long for that.
    """
    folder = tempfile.gettempdir()
    if workers and (length := len(os.fsencode(folder))) > LONGEST_TMPDIR:
        raise UserError(
            f"TMPDIR: the path {folder} has {length} bytes, expected at most {LONGEST_TMPDIR}, or loader processes cannot open sockets "
            f"in it; set TMPDIR to a folder with a shorter path, or run.workers in params.yaml to 0, which changes no result"
        )


def check_crop(run: Run, method: Method, device: torch.device) -> None:
    """Whether a step can be made of the crop: batch normalisation needs two values of a channel, blur a border to reflect.

    One image is sent through the student where that is in doubt: a micro-batch of one, or a crop below the deepest stride.

    Raises:
        UserError: it cannot.
    """
    p, student = run.train, method.student
    where = f"params.yaml: {run.method_name} on {run.benchmark_name}"
    blur = getattr(run.method, "blur", None)
    if blur and blur.p and (reach := math.ceil(BLUR_REACH * blur.sigma[1])) >= min(p.crop.width, p.crop.height):
        raise UserError(
            f"{where}: found train.crop {p.crop}, expected more than the {reach} pixels that blur.sigma {blur.sigma[1]} "
            f"reaches; raise train.crop or lower blur.sigma"
        )
    share = p.batch // p.accumulate // ranks.world()
    alone = share == 1 and ranks.world() == 1  # over several processes statistics are those of all
    small = min(p.crop.width, p.crop.height) < max(student.stage_strides)
    if not (alone or small) or share < 1:
        return
    buffers = {name: value.clone() for name, value in student.named_buffers()}
    try:
        with torch.no_grad():
            stages = student(torch.zeros(share, 3, p.crop.height, p.crop.width, device=device)).stages
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        if alone and isinstance(error, ValueError):  # torch's batch normalisation
            stages = None
        elif small:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{where}: found train.crop {p.crop}, which {run.benchmark.model.backbone} cannot take ({reason}); raise it to "
                f"{max(student.stage_strides)} pixels a side at least"
            ) from None
        else:
            raise
    finally:
        with torch.no_grad():
            for name, value in student.named_buffers():
                value.copy_(buffers[name])
    if stages is not None:  # a term's own head looks at the stage that its class is told from
        seen = stages[-1] if student.decoder_channels is None else stages[0]
        heads = any(isinstance(module, _BatchNorm) for module in getattr(method, "terms", torch.nn.Module()).modules())
        if not (alone and heads and seen[:, 0].numel() == 1):
            return
    raise UserError(
        f"{where}: found one image at a time (train.batch {p.batch} / accumulate {p.accumulate}) with train.crop {p.crop}, which "
        f"leaves batch normalisation one value of a channel; expected two: raise train.batch or train.crop, or lower accumulate"
    )


def adopt(finished: Path, folder: Path, method: str) -> None:
    """Take a finished training of the same parameters, code and data instead of making it again."""
    made = read_record(finished / RECORD)
    (folder / RECORD).unlink(missing_ok=True)
    for name in (HISTORY, MODEL):
        with writing(folder / name) as temporary:
            shutil.copyfile(finished / name, temporary)
    if KEPT in finished.parents:
        write_json(folder / RECORD, made)
        log.info(
            "%s: trained already with these parameters, code and data; taken from %s (delete that to train again)",
            *(folder, finished),
        )
    else:
        write_json(folder / RECORD, made | {"method": method, "taken_from": str(finished)})
        log.info("%s: taken from %s, which has the same recipe", folder, finished)
    keep(folder)
    describe(folder)


def kept_place(folder: Path) -> Path:
    return KEPT.joinpath(*folder.parts[1:])


def keep(folder: Path) -> None:
    """Set a finished training aside: both workflow tools delete a step's results before they run it.

    The model is a hard link, small files are copies, which what happens to the file in place does not reach.
    """
    for name in (MODEL, HISTORY, RECORD):
        with writing(kept_place(folder) / name, sync=False) as temporary:
            if name != MODEL or not linked(folder / name, temporary):
                shutil.copyfile(folder / name, temporary)


def linked(path: Path, place: Path) -> bool:
    """Whether `place` could be made a hard link to `path`; not on every file system."""
    try:
        os.link(path, place)
    except OSError:
        return False
    return True


class Watcher:
    """Says how far a training is, scores it where `train.validate_every` asks for it, and draws its curves where `run.tensorboard` does."""

    def __init__(self, curves: Curves | None, validate: Validate | None, classes: Sequence[str]) -> None:
        self.curves, self.validate = curves, validate
        self.collapse = Collapse(classes)

    def __call__(self, loop: Loop, speed: float) -> None:
        row, steps, every = loop.history[-1], loop.p.steps, loop.p.validate_every
        before = int(loop.history[-2]["step"]) if len(loop.history) > 1 else 0
        if self.validate and every and (loop.step // every > before // every or loop.step == steps):
            row |= self.validate(loop.run, loop.method, loop.device)
        if gone := self.collapse.look(loop.take_found()):
            log.warning(
                "step %d: vanished from the teacher's labels: %s; look at train.validate_every, or train with less confidence in rare "
                "classes",
                *(loop.step, ", ".join(gone)),
            )
        if self.curves:
            self.curves.add(row, speed)
        losses = {name: value for name, value in row.items() if name not in ("step", "learning_rate")}
        if ranks.rank() == 0 and sys.stderr.isatty():
            left = (steps - loop.step) * loop.p.batch / speed
            mean = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            text = bar(
                loop.step,
                steps,
                f"{duration(left)} left  {speed:.1f} images/s  {mean}",
                shutil.get_terminal_size().columns,
            )
            print(f"\r{text}", end="\n" if loop.step == steps else "", file=sys.stderr, flush=True)
        elif ranks.rank() == 0:
            log.info(
                "step %*d/%d  %s, %s left  %.1f images/s  %d MB  %s",
                len(str(steps)),
                loop.step,
                steps,
                duration(loop.seconds),
                duration((steps - loop.step) * loop.p.batch / speed),
                speed,
                runtime.peak_memory_mb(loop.device),
                "  ".join(f"{name} {value:.4f}" for name, value in losses.items()),
            )


def bar(done: int, steps: int, text: str, width: int) -> str:
    """One line for a terminal, `[#####.....]  50/100  ...`, exactly as wide as the screen but for its last column."""
    filled = 20 * done // steps
    line = f"[{'#' * filled}{'.' * (20 - filled)}] {done:>{len(str(steps))}}/{steps}  {text}"
    return line[: width - 1].ljust(width - 1)


class Collapse:
    """Notices when a class that the teacher found vanishes from its labels: what people then see is a score that falls."""

    MOST = 0.002  # share of the pixels from which a class counts as found
    LEAST = 0.01  # of its largest share: below, it has vanished
    WINDOWS = 3  # rows of the history in a run, so that a few crops without it are no alarm

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.largest = [0.0] * len(classes)
        self.gone = [0] * len(classes)
        self.named: set[int] = set()  # once in a run, also one that has come back and gone again

    def look(self, counts: Sequence[float]) -> list[str]:
        """Who has vanished, each said once, after another window in which the teacher gave so many pixels to each class."""
        total, said = sum(counts), []
        for k, n in enumerate(counts) if total else ():
            share = n / total
            self.largest[k] = max(self.largest[k], share)
            vanished = self.largest[k] >= self.MOST and share < self.LEAST * self.largest[k]
            self.gone[k] = self.gone[k] + 1 if vanished else 0
            if self.gone[k] == self.WINDOWS and k not in self.named:
                self.named.add(k)
                said.append(f"{self.classes[k]} ({100 * self.largest[k]:.1f} % of the pixels at most)")
        return said


def watcher(run: Run, folder: Path, loop: Loop, validate: Validate | None) -> Watcher:
    wanted = run.params.run.tensorboard and ranks.rank() == 0
    curves = Curves(LOGS.joinpath(*folder.parts[1:]), loop.step) if wanted else None
    return Watcher(curves, validate, run.classes.names)
