"""The words of the command line: sub-commands, options, and what is said about those that are none."""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

from udaseg import __version__, commands
from udaseg.checking import LARGEST_SEED, Range, nearest, shown
from udaseg.errors import printable
from udaseg.figures import NAMES as FIGURES

EXIT_USER_ERROR = 2
OF_PARAMS = {name: f"a name under `{name}s:` in params.yaml" for name in ("benchmark", "method")}


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

    def add(name: str, text: str, example: str) -> Parser:
        texts[name] = text
        sub = steps.add_parser(
            name, description=text, epilog=f"example: udaseg {name} {example}".rstrip(), formatter_class=Help
        )
        sub.set_defaults(call=getattr(commands, name.replace("-", "_")))
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
        add("prepare", "Turn a data set as delivered into two zips and a manifest.", "camvid --size 256x192")
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
        add("pretrain", "Train on the source alone: the start of `init: source_only`.", "--benchmark streets"),
        method=False,
    )
    sub = with_run(
        add(
            "train",
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
            "Sample pixel features of both domains; t-SNE and measures of compactness.",
            "--benchmark streets --method sepico",
        )
    )
    sub = with_params(
        add(
            "compare",
            "Mean, spread and paired gains over seeds, beside published numbers.",
            "--benchmark streets",
        )
    )
    sub.add_argument("--benchmark", required=True, help=OF_PARAMS["benchmark"])
    sub.add_argument("--reference", action="store_true", help="of what lies in results/reference/ (committed)")
    sub = with_params(add("table", "Print the comparison of a benchmark's methods.", "streets"))
    sub.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help="default: all of `run.benchmarks`")
    sub.add_argument("--reference", action="store_true", help="of what lies in results/reference/ (committed)")
    sub = with_params(add("figure", "Draw one figure of a benchmark, or all.", "tsne --benchmark streets"))
    sub.add_argument("name", nargs="?", type=one_of(*FIGURES), metavar="NAME", help=f"one of {', '.join(FIGURES)}")
    sub.add_argument("--benchmark", required=True, help=OF_PARAMS["benchmark"])
    sub = with_params(add("report", "Write the benchmark's page: one HTML file.", "--benchmark streets"))
    sub.add_argument("--benchmark", required=True, help=OF_PARAMS["benchmark"])
    with_params(add("select", "Copy the scores of the selected method to results/selected/.", ""))

    sub = add(
        "stage",
        "Run one rule for one target (what dvc.yaml calls).",
        "evaluate results/streets/oracle/seed0/metrics.json",
    )
    sub.add_argument("rule")
    sub.add_argument("target")
    add("identity", "Write what decides each result to results/.identity/, for DVC.", "")
    sub = add("why", "Tell which file of the code or key of params.yaml made a run stale.", "streets/pipa/0")
    sub.add_argument("run", help="benchmark/method/seed, or the run's folder; without a seed or method: all of `run`")
    sub = add(
        "verify",
        "Hash data and models anew, score models again, and compare every number with what lies there.",
        "streets/pipa/0 results/reference/camvid_day2dusk",
    )
    sub.add_argument(
        "runs", nargs="*", metavar="RUN", help="as for `udaseg why`, or below results/reference; none: all of `run`"
    )
    sub = add(
        "resign",
        "After a change of code that keeps the bits: make a run's first steps again, compare, and sign it anew.",
        "streets/pipa/0",
    )
    sub.add_argument("runs", nargs="*", metavar="RUN", help="as for `udaseg why`; none: all of `run`")
    sub.add_argument("--steps", type=whole(1, 10**9), default=100, help="make at most so many again (default: 100)")
    add("record", "After `snakemake`: let DVC record what was made.", "")
    add("sync", "After `git clone`, `dvc pull`, `dvc checkout`: let Snakemake record what is there.", "")
    sub = add("with-gpus", "Hold N free GPUs of this machine while a command runs.", "1 -- python script.py")
    sub.add_argument("count", type=whole(0, 1024), metavar="N", help="how many; 0: none")
    sub.add_argument("command", nargs=argparse.REMAINDER)
    sub = with_params(
        add(
            "import-run",
            "Take a run made on another machine, after checking what made it.",
            "run_folder --reference",
        )
    )
    sub.add_argument("folder")
    sub.add_argument("--reference", action="store_true", help="into results/reference/ (committed), not results/")

    sub = with_params(
        add(
            "import-checkpoint",
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
        "Make a weights file that lies on no hub, from its public origin.",
        "mobilenetv2_100.tf2_imagenet",
    )
    sub.add_argument("name", metavar="NAME", help="as `weights` of a model block says")
    sub.add_argument("--file", help="the original, if it is here already (default: it is downloaded)")
    sub.add_argument("--out", help="the file to write (default: weights/<name>.safetensors in the mirror)")

    sub = add(
        "publish-methods",
        "One revision for each method, for `dvc metrics diff METHOD METHOD`.",
        "self_training sepico",
    )
    sub.add_argument("methods", nargs="*", metavar="METHOD", help="default: all of run.methods")

    sub = add(
        "predict",
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
            "Pack a run for a hub: model, card, parameters, scores.",
            "streets/sepico/0 --out sepico.zip",
        )
    )
    sub.add_argument("run", metavar="RUN", help="benchmark/method/seed, or a run's folder")
    sub.add_argument("--out", required=True, help="a new folder, or an archive (.zip)")
    sub = add("export", "Write a model as torch.export and ONNX programs.", "model.safetensors --out exported")
    sub.add_argument("model", help="a model.safetensors of this program")
    sub.add_argument("--out", help="folder for the programs (default: beside the model)")
    sub.add_argument("--size", help="of the input, as 512x256 (default: as in training)")
    sub = add(
        "submit",
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
            "Make a folder of unlabelled photographs a benchmark in params.yaml.",
            "path/to/photographs --name mine",
        )
    )
    sub.add_argument("folder", help="with photographs, at any depth")
    sub.add_argument("--name", required=True, help="of the new data set and benchmark")
    sub.add_argument("--like", default="streets", help="benchmark whose source, classes and model to take over")
    with_params(add("doctor", "Look over machine, data, weights and workflow; say what to do next.", ""))

    sub = add(
        "bench",
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
