"""The training loop. One run = (benchmark, method, seed); stopped at any moment, the same call goes on with the same bits.

Each step: a global batch (over ranks and accumulation), one backward pass for every dictionary of losses that the method
yields, one flattened gradient all-reduce, one optimizer step. Nothing in it waits for the device but the log.
"""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from udaseg import ranks
from udaseg.data.prepared import find_prepared
from udaseg.data.sampling import Pairs, Steps
from udaseg.engine import checkpoint, compiled, rounds, runtime
from udaseg.engine.gradients import Gradients
from udaseg.engine.optim import learning_rate, set_learning_rate
from udaseg.errors import Interrupted, UserError
from udaseg.methods import create
from udaseg.methods.base import Batch, Method
from udaseg.models import build_model, load_encoder_weights
from udaseg.models.backbones import is_convolutional, remake
from udaseg.models.trained import begin_from
from udaseg.params import Run, uses

ASK_EVERY = 10  # steps between two questions to all ranks whether to stop: each waits for the device
log = logging.getLogger("udaseg")


def build(run: Run, device: torch.device) -> Method:
    """The method around its student, with the weights that the run starts from."""
    torch.manual_seed(run.seed)  # initial weights; every step seeds itself again
    student = build_model(run.benchmark.model, len(run.classes))
    if run.init == "imagenet":
        load_encoder_weights(student, run.benchmark.model, "imagenet")
    elif run.init == "source_only":
        begin_from(student, run)
        log.info("training starts from %s", run.pretrained)
    else:
        log.info("training starts from random weights (init: none)")
    if run.train.nudge:
        nudge(student, run.train.nudge)
    method = create(run, student)
    if run.train.checkpointing:
        remake(student.encoder)
    method = method.to(device).train()
    if device.type == "cuda" and is_convolutional(student.encoder):
        method = method.to(memory_format=torch.channels_last)
    ranks.use_global_batch(method)
    if run.train.compile != "none":
        compiled.compile_parts(method, run.train.compile)
    return method


@torch.no_grad()
def nudge(student: torch.nn.Module, draw: int) -> None:
    """Move every weight by about 1e-7 of itself, less than two kinds of CPU differ by after a step: how far does that carry a run?"""
    generator = torch.Generator().manual_seed(draw)
    for weight in student.parameters():
        weight.mul_(1 + 1e-7 * torch.randn(weight.shape, generator=generator))


class Loop:
    """What is alive during training; `state` is what survives a restart."""

    def __init__(
        self,
        run: Run,
        method: Method,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        restart: Path,
        fingerprint: dict[str, str],
    ) -> None:
        self.run, self.p, self.method, self.optimizer, self.device = run, run.train, method, optimizer, device
        self.restart, self.fingerprint = restart, fingerprint
        self.workers = run.params.run.loaders(cuda=device.type == "cuda")
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.step = 0  # steps done
        self.rate = 0.0
        self.index: list[int] = []  # pairs of the last micro-batch
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}  # losses since the last row of the history
        self.found = torch.zeros(
            len(run.classes), device=device
        )  # pseudo-labels of each class since then, of every 16th pixel
        # Set once a loss is not finite; the optimizer then moves nothing, and the next log stops the run.
        self.broken = torch.zeros((), device=device)
        self.gradients: Gradients | None = None  # in steps in which they are looked at one by one
        self.labels = ""  # hash of the round's labels of the target, where the method labels in rounds
        self.watch: Callable[[Loop, float], None] | None = (
            None  # told of every row of the history, and of images a second
        )
        if device.type == "cuda":
            optimizer.found_inf = self.broken  # type: ignore[attr-defined]  # read by the fused optimizers, on the device
        if state := checkpoint.load(restart, fingerprint):
            method.load_state_dict(state["method"])
            optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
            self.sums = {name: value.to(device) for name, value in state["sums"].items()}
            self.labels = state["labels"]
            log.info("going on from step %d of %d", self.step, self.p.steps)

    def fit(self, request: runtime.StopRequest, until: int | None = None) -> None:
        """Train to the end, or to step `until`, or until a stop is requested (then the state is saved and Interrupted raised)."""
        began, first, before = time.perf_counter(), self.step, self.seconds
        batches = None
        while self.step < (until or self.p.steps):
            if batches is None or rounds.begins(self.step, self.p.steps, self.method.rounds):
                batches = None  # its processes end before those of the next round start
                batches = self.begin_round()
            if rounds.begins(self.step, self.p.steps, self.p.schedule.rounds):
                self.optimizer.state.clear()
            self.advance(batches)
            elapsed = time.perf_counter() - began
            self.seconds = before + elapsed
            last = self.step == self.p.steps
            looking = last or self.step % self.p.log_every == 0
            if looking:
                self.stop_if_broken()
                self.log((self.step - first) * self.p.batch / elapsed)
            asking = ranks.world() == 1 or looking or self.step % ASK_EVERY == 0
            if asking and request.on_any_rank(self.device):
                self.save()
                raise Interrupted(f"stopped at step {self.step} of {self.p.steps}; the same command goes on from there")
            if self.step % self.p.save_every == 0 and not last:
                self.save()

    def begin_round(self) -> Iterator[dict[str, Tensor]]:
        """The pairs from here on. At the first step of a round the training images of the target are labelled anew."""
        if self.method.rounds:
            number = rounds.round_of(self.step, self.p.steps, self.method.rounds)
            if rounds.begins(self.step, self.p.steps, self.method.rounds):
                with compiled.plain(self.method):
                    self.labels = rounds.label(self.run, self.method, self.restart, number, self.device)
            else:
                rounds.check_labels(self.restart, number, self.labels)
        batches = iter(self.loader())
        if self.workers:
            # When a loading process dies torch raises wherever this one happens to be, in the middle of a step too;
            # without that it is noticed in `fetched`, between two steps.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches

    def fetched(self, batches: Iterator[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The micro-batches of one step, before any of them changes anything.

        Raises:
            UserError: what a loading process says to the user; or that one was killed, and then the state has been saved.
        """
        try:
            return [next(batches) for _ in range(self.p.accumulate)]
        except UserError as error:  # it comes wrapped in the process's traceback
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
        except (RuntimeError, OSError, EOFError) as error:
            if not (self.workers and is_of_a_killed_loader(error)):
                raise
            if ranks.world() == 1:  # else the other ranks are in the middle of a step
                self.save()
            raise UserError(
                f"a data-loading process was killed at step {self.step} of {self.p.steps}, most likely for want of memory (in a "
                f"container: of /dev/shm); lower run.workers in params.yaml, which changes no result, or run fewer trainings at "
                f"once, or lower train.batch or train.crop; the same command goes on from the last saved step"
            ) from None

    def advance(self, batches: Iterator[dict[str, Tensor]]) -> None:
        """One optimizer step."""
        items = self.fetched(batches)
        torch.manual_seed(step_seed(self.run.seed, self.step))  # dropout, drop-path: nothing to remember
        self.rate = learning_rate(self.step, self.p.steps, self.p.optimizer.lr, self.p.schedule)
        set_learning_rate(self.optimizer, self.rate)
        self.optimizer.zero_grad(set_to_none=True)
        if self.p.compile == "max-autotune":
            torch.compiler.cudagraph_mark_step_begin()  # what the graphs of the last step gave is free
        look = self.p.gradient_norms and (self.step + 1) % self.p.gradient_norms == 0
        self.gradients = Gradients(self.method.student) if look else None
        for item in items:
            self.backward(Batch.of(item, self.device))
        ranks.average_gradients(self.parameters)
        norms = torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None])
        self.broken.logical_or_(~torch.stack(norms).isfinite().all())
        self.broken.copy_(ranks.total(self.broken) > 0)  # exactly 1: what the fused optimizers take for "do not step"
        if self.device.type != "cuda":
            self.stop_if_broken()  # on CUDA the optimizer skips its step by itself, and the next look stops the run
        self.optimizer.step()
        self.method.after_step(self.step)
        self.step += 1

    def backward(self, batch: Batch) -> None:
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.p.precision == "bf16")
        self.index = batch.index
        passes = self.method.losses(batch, self.step)
        while True:
            with cast:
                losses = next(passes, None)
            if losses is None:
                self.count(batch.pseudo)
                return
            if not losses:
                continue
            total = torch.stack(list(losses.values())).sum() / self.p.accumulate
            self.broken.logical_or_(~total.detach().isfinite())
            if self.gradients:
                self.gradients.add(losses, 1 / self.p.accumulate)
            total.backward()
            for name, value in losses.items():
                value = value.detach() / self.p.accumulate
                self.sums[name] = self.sums[name] + value if name in self.sums else value
            del losses, total  # a pass's graph is gone before the next pass begins

    def count(self, pseudo: Tensor | None) -> None:
        if pseudo is not None:
            some = pseudo[:, ::4, ::4].flatten()
            self.found += (some == torch.arange(len(self.found), device=some.device)[:, None]).sum(1)

    def take_found(self) -> list[float]:
        """Pseudo-labels of each class since the last call; waits for the device."""
        found = self.found.tolist()
        self.found.zero_()
        return [float(n) for n in found]

    def stop_if_broken(self) -> None:
        if not self.broken:
            return
        names = [name for name, value in self.sums.items() if not value.isfinite()]
        raise UserError(
            f"training stopped at step {self.step}, pairs {self.index}: the loss is not finite "
            f"({', '.join(names) or 'its gradient, or on another rank'}); nothing was updated and {self.restart} holds the last good state; lower the learning rate or that term's weight"
        )

    def loader(self) -> DataLoader[dict[str, Tensor]]:
        source, target = (
            (find_prepared(self.run.benchmark_name, use), use.split) for use in uses(self.run.benchmark)[:2]
        )
        dataset = Pairs(
            self.method.views(),
            source,
            target,
            classes=self.run.classes,
            crop=self.p.crop,
            rare_class=self.p.rare_class,
            seed=self.run.seed,
            static=rounds.labels_path(self.restart, rounds.round_of(self.step, self.p.steps, self.method.rounds)),
        )
        steps = Steps(
            self.step,
            rounds.end(self.step, self.p.steps, self.method.rounds),
            batch=self.p.batch,
            accumulate=self.p.accumulate,
            rank=ranks.rank(),
            world=ranks.world(),
        )
        return DataLoader(
            dataset,
            batch_sampler=steps,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        )

    def log(self, speed: float) -> None:
        """One row of the history (means since the last); the one place that waits for the device."""
        since = self.step - (int(self.history[-1]["step"]) if self.history else 0)
        names = sorted(self.sums)
        values = ranks.total(torch.stack([self.sums[name].float() for name in names])) / (ranks.world() * since)
        means = dict(zip(names, values.tolist(), strict=True))
        pulls = self.gradients.measured() if self.gradients else {}
        self.history.append({"step": self.step, "learning_rate": self.rate, **means, **pulls})
        self.sums = {}
        if self.watch:
            with compiled.plain(self.method):  # whole images have other sizes than crops
                self.watch(self, speed)

    def save(self) -> None:
        self.stop_if_broken()
        self.sums = {name: ranks.total(value) / ranks.world() for name, value in self.sums.items()}
        if ranks.rank() == 0:
            state = {
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "history": self.history,
                "sums": self.sums,
                "labels": self.labels,
            }
            checkpoint.save(self.restart, state, self.fingerprint)


def step_seed(seed: int, step: int) -> int:
    """A seed for torch's global generators, which take 64 bits: different for every step, the same on all ranks (`ranks.use_global_batch`)."""
    return (seed * 1_000_003 + step) * 1009 % 2**64


def is_of_a_killed_loader(error: Exception) -> bool:
    """Whether a loading process is gone, or the connection to one. What it raised itself arrives as "Caught ..."."""
    if isinstance(error, RuntimeError):
        return bool(re.search(r"DataLoader worker .*(exited|killed)|Pin memory thread exited", str(error)))
    return isinstance(error, EOFError | ConnectionError | FileNotFoundError) and "Caught" not in str(error)


def ignore_interrupts(worker: int) -> None:
    """Loader processes leave Ctrl-C to the trainer, which saves first; one thread each."""
    for number in runtime.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
