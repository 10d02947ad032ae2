"""The command line: one sub-command for each step. It parses, calls and prints; the work lives elsewhere.

Exit codes: 0 done, 2 an error that the user can mend (one line says how), 75 stopped on request with its state saved.
Modules that need torch, Snakemake or DVC are imported only by the commands that use them.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from udaseg import __version__, startup
from udaseg.checking import LARGEST_SEED, Range, lookup, nearest, shown
from udaseg.errors import Interrupted, UserError, printable
from udaseg.figures import NAMES as FIGURES

if TYPE_CHECKING:
    from udaseg.params import Run
from udaseg.workflow import warm
from udaseg.workflow.leftovers import at_work

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: run the same command again and it goes on

# Which extra of pyproject.toml brings a module that only some steps need.
EXTRAS = {
    **dict.fromkeys(("scipy", "pooch"), "train"),
    **dict.fromkeys(
        ("matplotlib", "seaborn", "sklearn", "openTSNE", "threadpoolctl", "jinja2", "markdown_it"), "analysis"
    ),
    **dict.fromkeys(("snakemake", "dvc"), "workflow"),
}

OF_PARAMS = {name: f"a name under `{name}s:` in params.yaml" for name in ("benchmark", "method")}


# What the steps begin with importing; those of the workflow can be handed to a process that has it (workflow/warm.py).
IMPORTS = {
    **warm.MODULES,
    "verify": ("udaseg.workflow.verify",),
    "resign": ("udaseg.workflow.resign",),
    "predict": ("udaseg.deploy.predict",),
    "export": ("udaseg.deploy.export",),
    "submit": ("udaseg.deploy.submit",),
    "import-checkpoint": ("udaseg.models.official",),
}


class Printable(logging.Formatter):
    """Names of files in messages never steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class Help(argparse.HelpFormatter):
    """Wraps what is prose; an example stays one line, to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example: ") else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the words, with the nearest known one, and exits with 2."""

    steps: argparse._SubParsersAction[Parser] | None = None  # of the program itself

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        words = sys.argv[1:] if args is None else list(args)
        own = words[: words.index("--") if "--" in words else None]
        if self.steps:
            places = [place for place, word in enumerate(words) if not word.startswith("-")]
            if places and (step := words[places[0]]) not in self.steps.choices:
                self.error(f"unknown step {shown(step)}{nearest(step, self.steps.choices)}")
            own = words[: places[0] if places else None]
        if not any(action.nargs == argparse.REMAINDER for action in self._actions):
            known = [option for option in self._option_string_actions if option.startswith("--")]
            for name in (word.partition("=")[0] for word in own if word.startswith("--")):
                if not any(option.startswith(name) for option in known):
                    self.error(f"unknown option {shown(name)}{nearest(name, known)}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        for theirs, ours in (
            (r"argument ([^:]+): ", r"\1: "),
            (r"the following arguments are required: (.*)", r"\1 missing"),
            (r"unrecognized arguments: (.*)", r"found \1, which has no place here"),
        ):
            message = re.sub(f"^{theirs}", ours, message)
        text = printable(" ".join(message.split()))
        self.exit(EXIT_USER_ERROR, f"{self.prog}: {text} (see `{self.prog} --help`)\n")


def whole(least: int, most: int) -> Callable[[str], int]:
    """An option that is an integer from `least` to `most`."""
    allowed = Range(least=least, most=most)

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,30}", text) or not allowed.holds(int(text)):
            raise argparse.ArgumentTypeError(f"found {shown(text)}, expected an integer {allowed}")
        return int(text)

    return read


def above_0(text: str) -> float:
    """An option that is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {shown(text)}, expected a number above 0")
    return value


def one_of(*known: str) -> Callable[[str], str]:
    """An option that is one of the words."""

    def read(text: str) -> str:
        if text not in known:
            hint = nearest(text, known).replace(f"; known: {', '.join(known)}", "")
            raise argparse.ArgumentTypeError(f"found {shown(text)}, expected {' or '.join(known)}{hint}")
        return text

    return read


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command; without `argv` it is that of this process, which ends here."""
    code = call(argv)
    if argv is None:
        startup.leave(code)
    return code


def call(argv: Sequence[str] | None) -> int:
    if warm.VARIABLE in os.environ:
        code = warm.handed_over(sys.argv[1:] if argv is None else argv)
        if code is not None:
            return code
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal that lacks a letter, or a name that is no text, stops nothing
            stream.reconfigure(errors="backslashreplace")
    args = make_parser().parse_args(argv)
    first = os.environ.get("RANK", "0") == "0"  # under torchrun one process speaks for all
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, handlers=[handler])
    if mirror := os.environ.get("UDASEG_MIRROR"):
        os.environ["UDASEG_MIRROR"] = str(Path(mirror).resolve())
    try:
        with at_work(args.step):
            if argv is None:
                startup.import_at_once(IMPORTS.get(args.step, ()))
            code = args.call(args)
        return int(code or 0)
    except UserError as error:
        print(f"udaseg {args.step}: {printable(str(error))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Interrupted as error:
        print(f"udaseg {args.step}: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print(f"udaseg {args.step}: stopped; run the same command again", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `udaseg ... | head`
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        print(
            f"udaseg {args.step}: found no package {package}, expected the packages of this step: "
            f"python -m pip install 'udaseg[{EXTRAS[package]}]' (docs/install.md)",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    except (OSError, MemoryError, RuntimeError) as error:
        line = of_the_machine(error)
        if line is None:
            raise
        print(f"udaseg {args.step}: {printable(line)}", file=sys.stderr)
        return EXIT_USER_ERROR


def of_the_machine(error: Exception) -> str | None:
    """One line on what the file system, the memory or another process of the same training denied; None for a fault of ours."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; free some and run again (nothing finished is lost)"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        expected = "files that can be read in folders that can be written"
        if error.errno == errno.ENAMETOOLONG:
            expected = "at most 255 bytes between two slashes and 4095 in all"
        return f"{os.fsdecode(error.filename)}: {error.strerror}; expected {expected}; mend that, then run again"
    if isinstance(error, MemoryError) or re.search(r"out of memory|ALLOC_FAILED|allocate memory", str(error), re.I):
        what = "the GPU" if "CUDA" in str(error) or "CUBLAS" in str(error) or "CUDNN" in str(error) else "the machine"
        return (
            f"out of memory of {what}; run fewer jobs at once (other programs on it count too), or lower train.batch or train.crop "
            f"(in scoring: `test.mode: slide`; in predict and export: --size); nothing finished is lost, a training goes on from its "
            f"last saved step"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and re.search(
        r"gloo|NCCL|onnection (closed|reset|refused)", str(error)
    ):
        return "another process of this training has ended, and its line says why; the same command goes on from the last saved step"
    return None


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


# What `udaseg --help` shows under which heading, in this order.
GROUPS = {
    "for people": (
        *(
            "doctor",
            "table",
            "predict",
            "export",
            "publish",
            "submit",
            "new-target",
            "import-checkpoint",
            "fetch-weights",
        ),
        *("why", "verify", "resign", "import-run", "publish-methods", "bench"),
    ),
    "steps of the pipeline, which `snakemake` and `dvc repro` run": (
        *("prepare", "pretrain", "train", "evaluate", "analyse", "compare", "figure", "report", "select"),
    ),
    "between Snakemake and DVC (docs/workflow.md)": ("record", "sync", "stage", "identity", "with-gpus"),
}


def overview(texts: dict[str, str]) -> str:
    """The sub-commands in their groups, as wide as the screen."""
    width = max(40, shutil.get_terminal_size().columns - 2)
    lines = []
    for heading, names in GROUPS.items():
        lines += [f"{heading}:"]
        for name in names:
            lines += textwrap.wrap(f"  {name:<19}{texts[name]}", width, subsequent_indent=" " * 21)
        lines += [""]
    return "\n".join(
        [*lines, "udaseg STEP --help says more, with an example:", "  udaseg train --benchmark streets --method sepico"]
    )


def make_parser() -> Parser:
    parser = Parser(
        prog="udaseg",
        description="Unsupervised domain adaptation of semantic segmentation:\ntrain, score and compare methods.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="udaseg STEP ...",
    )
    parser.add_argument("--version", action="version", version=f"udaseg {__version__}")
    steps = parser.steps = parser.add_subparsers(
        prog="udaseg", dest="step", required=True, metavar="STEP", help=argparse.SUPPRESS, parser_class=Parser
    )
    texts: dict[str, str] = {}

    def add(name: str, call: object, text: str, example: str) -> Parser:
        texts[name] = text
        sub = steps.add_parser(
            name, description=text, epilog=f"example: udaseg {name} {example}".rstrip(), formatter_class=Help
        )
        sub.set_defaults(call=call)
        return sub

    def with_params(sub: Parser) -> Parser:
        sub.add_argument("--params", default="params.yaml", help="parameter file (default: params.yaml)")
        return sub

    def with_run(sub: Parser, method: bool = True, required: bool = True) -> Parser:
        sub.add_argument("--benchmark", required=required, help=OF_PARAMS["benchmark"])
        if method:
            sub.add_argument("--method", required=required, help=OF_PARAMS["method"])
        sub.add_argument("--seed", type=whole(0, LARGEST_SEED), default=0, help="of the run (default: 0)")
        return with_params(sub)

    sub = with_params(
        add("prepare", prepare, "Turn a data set as delivered into two zips and a manifest.", "camvid --size 256x192")
    )
    sub.add_argument("dataset", nargs="?", help="a name from `datasets` in params.yaml")
    sub.add_argument("--size", help="training size, as 256x192 (width x height)")
    sub.add_argument("--benchmark", help="prepare everything that this benchmark uses into data/<benchmark>/")
    sub.add_argument("--jobs", type=whole(1, 1024), default=os.cpu_count() or 1, help="processes (default: all cores)")
    sub.add_argument(
        "--show",
        type=whole(0, 1000),
        default=0,
        metavar="N",
        help="write a contact sheet of N images with their labels",
    )

    with_run(
        add(
            "pretrain", pretrain, "Train on the source alone: the start of `init: source_only`.", "--benchmark streets"
        ),
        method=False,
    )
    sub = with_run(
        add(
            "train",
            train,
            "Train one method. Stopped at any moment, the same command goes on.",
            "--benchmark streets --method self_training --seed 0",
        )
    )
    sub.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="another value than in params.yaml, as benchmarks.streets.train.steps=100; may stand several times. The run is trained and "
        "scored in scratch/, apart from all that is recorded",
    )
    sub.add_argument("--name", help="with --set: of its folder there (default: the values)")
    sub = with_params(
        add(
            "evaluate",
            evaluate,
            "Score a trained model on the benchmark's test images.",
            "--benchmark streets --method oracle\n         udaseg evaluate --benchmark gta2cityscapes --model model.safetensors",
        )
    )
    sub.add_argument("--benchmark", required=True, help=OF_PARAMS["benchmark"])
    sub.add_argument("--method", help="with --model: whose published number and runs stand beside it")
    sub.add_argument("--seed", type=whole(0, LARGEST_SEED), default=0, help="of the run (default: 0)")
    sub.add_argument("--model", help="a model file, scored as it is into results/published/")
    sub.add_argument("--name", help="with --model: of its folder there (default: the file's)")
    with_run(
        add(
            "analyse",
            analyse,
            "Sample pixel features of both domains; t-SNE and measures of compactness.",
            "--benchmark streets --method sepico",
        )
    )
    sub = with_params(
        add(
            "compare",
            compare,
            "Mean, spread and paired gains over seeds, beside published numbers.",
            "--benchmark streets",
        )
    )
    sub.add_argument("--benchmark", required=True, help=OF_PARAMS["benchmark"])
    sub.add_argument("--reference", action="store_true", help="of what lies in results/reference/ (committed)")
    sub = with_params(add("table", table, "Print the comparison of a benchmark's methods.", "streets"))
    sub.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help="default: all of `run.benchmarks`")
    sub.add_argument("--reference", action="store_true", help="of what lies in results/reference/ (committed)")
    sub = with_params(add("figure", figure, "Draw one figure of a benchmark, or all.", "tsne --benchmark streets"))
    sub.add_argument("name", nargs="?", type=one_of(*FIGURES), metavar="NAME", help=f"one of {', '.join(FIGURES)}")
    sub.add_argument("--benchmark", required=True, help=OF_PARAMS["benchmark"])
    sub = with_params(add("report", report, "Write the benchmark's page: one HTML file.", "--benchmark streets"))
    sub.add_argument("--benchmark", required=True, help=OF_PARAMS["benchmark"])
    with_params(add("select", select, "Copy the scores of the selected method to results/selected/.", ""))

    sub = add(
        "stage",
        stage,
        "Run one rule for one target (what dvc.yaml calls).",
        "evaluate results/streets/oracle/seed0/metrics.json",
    )
    sub.add_argument("rule")
    sub.add_argument("target")
    add("identity", identity, "Write what decides each result to results/.identity/, for DVC.", "")
    sub = add("why", why, "Tell which file of the code or key of params.yaml made a run stale.", "streets/pipa/0")
    sub.add_argument("run", help="benchmark/method/seed, or the run's folder; without a seed or method: all of `run`")
    sub = add(
        "verify",
        verify,
        "Hash data and models anew, score models again, and compare every number with what lies there.",
        "streets/pipa/0 results/reference/camvid_day2dusk",
    )
    sub.add_argument(
        "runs", nargs="*", metavar="RUN", help="as for `udaseg why`, or below results/reference; none: all of `run`"
    )
    sub = add(
        "resign",
        resign,
        "After a change of code that keeps the bits: make a run's first steps again, compare, and sign it anew.",
        "streets/pipa/0",
    )
    sub.add_argument("runs", nargs="*", metavar="RUN", help="as for `udaseg why`; none: all of `run`")
    sub.add_argument("--steps", type=whole(1, 10**9), default=100, help="make at most so many again (default: 100)")
    add("record", record, "After `snakemake`: let DVC record what was made.", "")
    add("sync", sync, "After `git clone`, `dvc pull`, `dvc checkout`: let Snakemake record what is there.", "")
    sub = add("with-gpus", with_gpus, "Hold N free GPUs of this machine while a command runs.", "1 -- python script.py")
    sub.add_argument("count", type=whole(0, 1024), metavar="N", help="how many; 0: none")
    sub.add_argument("command", nargs=argparse.REMAINDER)
    sub = with_params(
        add(
            "import-run",
            import_run,
            "Take a run made on another machine, after checking what made it.",
            "run_folder --reference",
        )
    )
    sub.add_argument("folder")
    sub.add_argument("--reference", action="store_true", help="into results/reference/ (committed), not results/")

    sub = with_params(
        add(
            "import-checkpoint",
            import_checkpoint,
            "Make a model file of a checkpoint that the authors of a paper published.",
            "latest.pth --like gta2cityscapes",
        )
    )
    sub.add_argument("file", help=".pth, or the .tar.gz that holds it")
    sub.add_argument("--like", required=True, metavar="BENCHMARK", help="whose classes, image size and test protocol")
    sub.add_argument("--out", help="the model file to write (default: beside it, ending in .safetensors)")
    both = sub.add_mutually_exclusive_group()
    both.add_argument("--student", dest="network", action="store_const", const="student", help="(default)")
    both.add_argument("--teacher", dest="network", action="store_const", const="teacher", help="the averaged network")
    sub.set_defaults(network="student")

    sub = add(
        "fetch-weights",
        fetch_weights,
        "Make a weights file that lies on no hub, from its public origin.",
        "mobilenetv2_100.tf2_imagenet",
    )
    sub.add_argument("name", metavar="NAME", help="as `weights` of a model block says")
    sub.add_argument("--file", help="the original, if it is here already (default: it is downloaded)")
    sub.add_argument("--out", help="the file to write (default: weights/<name>.safetensors in the mirror)")

    sub = add(
        "publish-methods",
        publish_methods,
        "One revision for each method, for `dvc metrics diff METHOD METHOD`.",
        "self_training sepico",
    )
    sub.add_argument("methods", nargs="*", metavar="METHOD", help="default: all of run.methods")

    sub = add(
        "predict",
        predict,
        "Label images with a trained model: class ids, colours, overlays.",
        "model.safetensors photos/ --out labels",
    )
    sub.add_argument("model", help="a model.safetensors of this program")
    sub.add_argument("images", nargs="+", help="images, or folders of them")
    sub.add_argument("--out", required=True, help="folder for the results")
    sub.add_argument("--size", help="size at which the network looks, as 512x256 (default: as in training)")
    sub.add_argument("--probabilities", action="store_true", help="also write the probabilities of all classes (.npy)")
    sub.add_argument("--device", default="auto", type=one_of("auto", "cpu", "cuda"), help="auto, cpu or cuda")
    sub = with_params(
        add(
            "publish",
            publish,
            "Pack a run for a hub: model, card, parameters, scores.",
            "streets/sepico/0 --out sepico.zip",
        )
    )
    sub.add_argument("run", metavar="RUN", help="benchmark/method/seed, or a run's folder")
    sub.add_argument("--out", required=True, help="a new folder, or an archive (.zip)")
    sub = add("export", export, "Write a model as torch.export and ONNX programs.", "model.safetensors --out exported")
    sub.add_argument("model", help="a model.safetensors of this program")
    sub.add_argument("--out", help="folder for the programs (default: beside the model)")
    sub.add_argument("--size", help="of the input, as 512x256 (default: as in training)")
    sub = add(
        "submit",
        submit,
        "Label the test images of a benchmark server and pack them as it wants them.",
        "model.safetensors data/raw/cityscapes/leftImg8bit/test \\\n         --server cityscapes --out submission.zip",
    )
    sub.add_argument("model", help="a model.safetensors of this program")
    sub.add_argument("images", help="folder with the test images")
    sub.add_argument(
        "--server", required=True, type=one_of("cityscapes", "dark_zurich"), help="cityscapes or dark_zurich"
    )
    sub.add_argument("--out", required=True, help="the archive to write (.zip)")
    sub.add_argument("--device", default="auto", type=one_of("auto", "cpu", "cuda"), help="auto, cpu or cuda")
    sub = with_params(
        add(
            "new-target",
            new_target,
            "Make a folder of unlabelled photographs a benchmark in params.yaml.",
            "path/to/photographs --name mine",
        )
    )
    sub.add_argument("folder", help="with photographs, at any depth")
    sub.add_argument("--name", required=True, help="of the new data set and benchmark")
    sub.add_argument("--like", default="streets", help="benchmark whose source, classes and model to take over")
    with_params(add("doctor", doctor, "Look over machine, data, weights and workflow; say what to do next.", ""))

    sub = add(
        "bench",
        bench,
        "Throughput and memory of a run's parts, or of each loss against its plain form, as JSON; what runs will take of a GPU.",
        "--benchmark streets --method self_training\n         udaseg bench losses\n         udaseg bench plan",
    )
    sub.add_argument(
        "what",
        nargs="?",
        default="step",
        type=one_of("step", "losses", "plan"),
        metavar="WHAT",
        help="step (default), or losses: at the papers' sizes, a few minutes; or plan: operations, memory and hours on a GPU, told without one",
    )
    with_run(sub, required=False)
    sub.add_argument("--steps", type=whole(1, 10**6), default=20, help="step: how many")
    sub.add_argument(
        "--shrink", type=whole(1, 10**6), default=1, help="losses: divide the positions by this, for a quick look"
    )
    sub.add_argument(
        "--all",
        action="store_true",
        help="plan: every method on every benchmark (default: run.methods and mic on the licensed data)",
    )
    sub.add_argument(
        "--tflops", type=above_0, default=312.0, help="plan: the card's peak (default: 312, an A100 in bf16)"
    )
    sub.add_argument(
        "--share", type=above_0, default=0.2, help="plan: which part of the peak is reached (default: 0.2)"
    )
    sub.add_argument(
        "--jobs", type=whole(1, 1024), default=os.cpu_count() or 1, help="plan: processes (default: all cores)"
    )
    parser.epilog = overview(texts)
    return parser
