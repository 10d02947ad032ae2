"""What each sub-command does: it reads parameters, calls the step and prints what came out. The work lives elsewhere.

Modules that need torch, Snakemake or DVC are imported only by the commands that use them.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from udaseg.checking import lookup
from udaseg.errors import UserError
from udaseg.figures import NAMES as FIGURES

if TYPE_CHECKING:
    from udaseg.params import Run

# --- steps of the pipeline ------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    from udaseg import origins, params
    from udaseg.data import account
    from udaseg.data import prepare as step

    p = params.load(args.params)
    if bool(args.dataset) == bool(args.benchmark):
        raise UserError(
            "name one data set (udaseg prepare camvid --size 256x192) or one benchmark (--benchmark streets)"
        )
    if args.benchmark:
        lookup(p.benchmarks, args.benchmark, "benchmark")
        print(step.prepare_benchmark(p, args.benchmark, jobs=args.jobs))
        if missing := origins.lacking(p.benchmarks[args.benchmark].model.weights):
            logging.getLogger("udaseg").warning("%s (trainings that start from ImageNet need it)", missing)
        return
    if not args.size:
        raise UserError("--size is missing; say for example --size 256x128 (width x height)")
    dataset = lookup(p.datasets, args.dataset, "data set")
    size = params.Size.parse(args.size, "--size")
    folder = step.prepare_dataset(args.dataset, dataset, size, Path("data") / f"{args.dataset}-{size}", jobs=args.jobs)
    print(f"{account.of_dataset(folder)}\n{folder}")
    if args.show:
        print(step.contact_sheet(folder, args.show))


def pretrain(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.engine import training
    from udaseg.evaluation.validation import validate

    run = params.load(args.params).resolve(args.benchmark, "source_only", args.seed)
    training.train(run, run.pretrained.parent, validate)


def train(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.engine import training
    from udaseg.evaluation.validation import validate

    if args.set:
        train_scratch(args)
        return
    if args.name:
        raise UserError("--name: found it without --set; a run of params.yaml has its own place below results/")
    run = params.load(args.params).resolve(args.benchmark, args.method, args.seed)
    training.train(run, run.folder, validate)


def train_scratch(args: argparse.Namespace) -> None:
    """Train and score with values of the command line, below scratch/."""
    from udaseg import ranks
    from udaseg.engine import scratch, training
    from udaseg.evaluation import evaluate as step
    from udaseg.evaluation.validation import validate
    from udaseg.progress import Scoring

    run = scratch.changed(args.params, args.set, args.name).resolve(args.benchmark, args.method, args.seed)
    scratch.check_free(run)
    training.train(run, run.folder, validate)
    if run.benchmark.evaluate:
        text = step.evaluate_run(run, Scoring)
        print(text, end="\n" if text else "")
        describe(run)
    if ranks.rank() == 0:
        print(run.folder)


def evaluate(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.evaluation import evaluate as step
    from udaseg.progress import Scoring

    p = params.load(args.params)
    if args.model:
        from udaseg.deploy import score

        options = {"name": args.name, "method": args.method, "watcher": Scoring}
        print(score.evaluate_file(p, Path(args.model), args.benchmark, **options))
        return
    if not args.method:
        raise UserError("name --method, or --model with a model file to score as it is")
    run = p.resolve(args.benchmark, args.method, args.seed)
    print(step.evaluate_run(run, Scoring))
    describe(run)


def describe(run: Run) -> None:
    """The card of a model that was scored, once."""
    from udaseg.artifacts import RECORD
    from udaseg.deploy import card

    if os.environ.get("RANK", "0") == "0" and (run.folder / RECORD).exists():
        card.describe(run.folder, scored=True)


def analyse(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.analysis import analyse as step

    run = params.load(args.params).resolve(args.benchmark, args.method, args.seed)
    print(step.analyse_run(run))


def compare(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.comparison import compare as step

    p = params.load(args.params)
    lookup(p.benchmarks, args.benchmark, "benchmark")
    print(step.compare_benchmark(p, args.benchmark, reference=args.reference))
    if args.reference:
        from udaseg.comparison import evidence
        from udaseg.figures import draw

        print(evidence.write_evidence(p, args.benchmark))
        print(*draw.draw_evidence(p, args.benchmark), sep="\n")


def table(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.comparison import terminal

    p = params.load(args.params)
    for name in args.benchmarks:
        lookup(p.benchmarks, name, "benchmark")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(terminal.show(p, args.benchmarks, reference=args.reference, width=width))


def figure(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.figures import draw

    p = params.load(args.params)
    lookup(p.benchmarks, args.benchmark, "benchmark")
    for name in [args.name] if args.name else FIGURES:
        print(draw.draw(p, args.benchmark, name))


def report(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.report import report as step

    p = params.load(args.params)
    lookup(p.benchmarks, args.benchmark, "benchmark")
    print(step.write_report(p, args.benchmark))


def select(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.comparison import compare as step

    print(step.select(params.load(args.params)))


# --- bridges between Snakemake and DVC (docs/workflow.md) -----------------------------------------------------------


def stage(args: argparse.Namespace) -> int:
    from udaseg.workflow import bridges

    return bridges.stage(args.rule, args.target)


def record(args: argparse.Namespace) -> None:
    from udaseg.workflow import bridges

    bridges.record()


def identity(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.workflow import plan

    plan.write_identities(params.load())


def why(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.workflow import why as step

    print(step.why(params.load(), args.run))


def verify(args: argparse.Namespace) -> int:
    from udaseg import params
    from udaseg.progress import Scoring
    from udaseg.workflow import verify as step

    text, good = step.verify(params.load(), args.runs, Scoring)
    print(text)
    return 0 if good else 1


def resign(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.workflow import resign as step

    step.resign(params.load(), args.runs, args.steps)


def sync(args: argparse.Namespace) -> None:
    from udaseg.workflow import bridges

    bridges.sync()


def with_gpus(args: argparse.Namespace) -> int:
    from udaseg.workflow import lease

    return lease.with_gpus(args.count, args.command)


def import_run(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.workflow import imports

    print(imports.import_run(params.load(args.params), Path(args.folder), reference=args.reference))


def publish_methods(args: argparse.Namespace) -> None:
    from udaseg.workflow import publish

    print(publish.publish_methods(args.methods))


def import_checkpoint(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.models import official

    like = params.load(args.params).resolve(args.like, "source_only", 0)
    out = Path(args.out) if args.out else None
    print(official.import_checkpoint(Path(args.file), like, out, network=args.network))


def fetch_weights(args: argparse.Namespace) -> None:
    from udaseg import origins

    file, out = (Path(name) if name else None for name in (args.file, args.out))
    print(origins.fetch_weights(args.name, file, out))


# --- for people -----------------------------------------------------------------------------------------------------


def predict(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.deploy import predict as step

    size = params.Size.parse(args.size, "--size") if args.size else None
    images = [Path(name) for name in args.images]
    options = {"size": size, "probabilities": args.probabilities, "device": args.device}
    print(step.predict(Path(args.model), images, Path(args.out), **options))


def publish(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.deploy import publish as step
    from udaseg.workflow import why as names

    folder = Path(args.run)
    if not folder.is_dir():
        found = names.find_runs(params.load(args.params), args.run)
        if len(found) > 1:
            raise UserError(f"{args.run}: found {len(found)} runs, expected one, as streets/sepico/0")
        folder = found[0].folder
    print(step.publish(folder, Path(args.out)))


def export(args: argparse.Namespace) -> None:
    from udaseg import params
    from udaseg.deploy import export as step

    size = params.Size.parse(args.size, "--size") if args.size else None
    print(step.export(Path(args.model), Path(args.out) if args.out else None, size=size))


def submit(args: argparse.Namespace) -> None:
    from udaseg.deploy import submit as step

    print(step.submit(Path(args.model), Path(args.images), args.server, Path(args.out), device=args.device))


def new_target(args: argparse.Namespace) -> None:
    from udaseg.deploy import target as step

    print(step.new_target(Path(args.params), Path(args.folder), name=args.name, like=args.like))


def doctor(args: argparse.Namespace) -> int:
    from udaseg import doctor as step

    return step.doctor(Path(args.params))


def bench(args: argparse.Namespace) -> None:
    from udaseg import params

    p = params.load(args.params)
    if args.what == "plan":
        from udaseg.bench.plan import bench_plan, full_size

        benchmarks = [args.benchmark] if args.benchmark else list(p.benchmarks) if args.all else full_size(p)
        methods = (
            [args.method] if args.method else list(p.methods if args.all else dict.fromkeys((*p.run.methods, "mic")))
        )
        print(bench_plan(p, benchmarks, methods, tflops=args.tflops, share=args.share, jobs=args.jobs))
        return
    from udaseg.bench import step

    if args.what == "losses":
        from udaseg.bench.losses import bench_losses

        print(bench_losses(p, shrink=args.shrink))
        return
    if not (args.benchmark and args.method):
        raise UserError(
            "udaseg bench step: name --benchmark and --method, as in --benchmark streets --method self_training"
        )
    print(step.bench(p.resolve(args.benchmark, args.method, args.seed), steps=args.steps))
