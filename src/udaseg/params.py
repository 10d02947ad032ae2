"""params.yaml as typed, frozen blocks, and one run (benchmark, method, seed) resolved from them.

Everything is checked before anything runs: an unknown key is answered with the nearest known one, a wrong type with what
was found and expected. This module imports no torch, so that every pipeline step can afford it.

A run's hash is over values, never over this code: a value that equals its declared default is left out, in every block, so
that a field added with a default changes no hash. For the same reason a declared default never changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from udaseg import yaml12
from udaseg.checking import (
    LARGEST_SEED,
    Count,
    Positive,
    Range,
    Ratio,
    Seed,
    Share,
    Weight,
    Width,
    build,
    convert,
    essential,
    hints_of,
    keys_of,
    lookup,
    nearest,
    reject_unknown,
    shown,
)
from udaseg.classes import OTHER, ClassSpace, class_space
from udaseg.errors import UserError
from udaseg.recipes import Start, Variant, block_of, papers, terms
from udaseg.recipes.bcl import Bcl
from udaseg.recipes.plca import Plca
from udaseg.recipes.self_training import SelfTraining
from udaseg.recipes.source_only import Supervised

NAME = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")
RESERVED = ("raw", "reference", "selected", "published")  # data/raw, results/{reference,selected,published}
WEIGHT_FILES = (".safetensors", ".pth", ".pt")
LICENSED = ("gta5", "synthia", "cityscapes", "dark_zurich", "acdc", "nighttime_driving", "bdd100k_night")


LARGEST_SIDE = 65535  # what a JPEG can hold
MOST_PIXELS = 2**26  # an image of the network: 67 million, 12 bytes each before the first layer
Side = Annotated[int, Range(least=1, most=LARGEST_SIDE)]
Processes = Annotated[int, Range(least=0, most=1024)]
Pixels = Annotated[int, Range(least=0, most=10**9)]


@dataclass(frozen=True)
class Size:
    """Width and height in pixels, written `256x128` in params.yaml."""

    width: Side
    height: Side
    written: ClassVar[str] = "a size like 512x256"

    @classmethod
    def parse(cls, text: str, where: str) -> Size:
        match = re.fullmatch(r"0*([0-9]{1,9})x0*([0-9]{1,9})", text) if isinstance(text, str) else None
        if not match or 0 in map(int, match.groups()):
            raise UserError(f"{where}: found {shown(text)}, expected a size like 512x256 (width x height in pixels)")
        width, height = int(match[1]), int(match[2])
        if max(width, height) > LARGEST_SIDE or width * height > MOST_PIXELS:
            raise UserError(
                f"{where}: found {text}, expected at most {LARGEST_SIDE} pixels a side and {MOST_PIXELS:,} in all"
            )
        return cls(width, height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class RunBlock:
    benchmarks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[Seed, ...]
    protocol: Literal["matched", "native"]
    threads: Annotated[int, Range(least=1, most=4096)]
    workers: Processes | Literal["auto"]
    gpus_per_run: Processes
    device: Literal["auto", "cpu", "cuda"]
    tensorboard: bool = False

    def loaders(self, *, cuda: bool) -> int:
        """Data-loading processes of one training process; `auto`: one on a CPU, for a GPU as many as its share of the cores, 8 at most."""
        if self.workers != "auto":
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(8, cores // max(1, self.gpus_per_run) - 1)) if cuda else 1


@dataclass(frozen=True)
class Select:
    benchmark: str
    method: str


@dataclass(frozen=True)
class Tsne:
    per_class: Count  # cells of a class in each domain
    perplexity: Positive
    iterations: Count


@dataclass(frozen=True)
class Analysis:
    """How `udaseg analyse` samples and measures features: docs/analysis.md."""

    seed: Annotated[int, Range(least=0, most=2**32 - 1)]  # as scikit-learn has it
    images: Count  # of each domain at most
    per_class: Count  # cells of a class in each domain at most
    least: Annotated[int, Range(least=2, most=10**9)]  # a class with fewer in a domain is left out
    neighbours: Count  # of the k-NN classifier
    tsne: Tsne


@dataclass(frozen=True)
class Dataset:
    """One data set as delivered. Which keys a format uses: docs/data.md."""

    format: Literal[
        "streets",
        "camvid",
        "gta5",
        "synthia",
        "cityscapes",
        "dark_zurich",
        "acdc",
        "nighttime_driving",
        "bdd100k_night",
        "folder",
    ]
    root: str | None = None
    exclude: tuple[str, ...] = ()
    look: Literal["game", "photo"] | None = None  # streets
    seed: Seed | None = None  # streets
    count: dict[str, Annotated[int, Range(least=0, most=10**6)]] = field(
        default_factory=dict
    )  # streets: scenes per split
    images: str | None = None  # folder: where the images are below root; `{split}` stands for the split
    labels: str | None = None  # folder: the same for labels, matched by stem; null: unlabelled
    classes: str | tuple[str, ...] = "cityscapes19"  # folder: what the label values mean after `ids`
    # folder: value in a label file -> class name; all others: error
    ids: dict[Annotated[int, Range(least=0, most=255)], str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """`root` with `~` and environment variables as they are on this machine; where there is no root, the current folder.

        Raises:
            UserError: a variable that is not set.
        """
        for name in re.findall(r"\$(?:\{([^}]*)\}|(\w+))", self.root or ""):
            if not os.environ.get(name[0] or name[1]):
                raise UserError(
                    f"params.yaml: datasets: root: found {shown(self.root)}, but the environment variable "
                    f"{name[0] or name[1]} is not set; set it (`export {name[0] or name[1]}=...`) or write the path"
                )
        return Path(os.path.expanduser(os.path.expandvars(self.root or "")))


@dataclass(frozen=True)
class Sizes:
    source: Size
    target: Size


@dataclass(frozen=True)
class Hrda:
    """Two resolutions (HRDA, ECCV 2022): docs/methods/hrda.md."""

    detail: Size  # of the detail crop, and of the windows with which the teacher and the test cover an image
    variant: Variant = (
        "paper"  # released: boxes that do not fit the cells of DeepLab-V2, attenuated logits in the context loss
    )
    box_step: Annotated[int, Range(least=1, most=1024)] = 8  # random boxes lie at multiples of it
    detail_weight: Share = 0.1  # share of the detail logits' own loss
    context_weight: Share = 0.0  # share of the context logits' own loss: an ablation
    fusion: Literal["hrda", "cluda"] = "hrda"  # cluda: enlarged first, weighted then
    windows_at_once: Count | None = None  # of the teacher, to save memory; another number is another result


@dataclass(frozen=True)
class Model:
    backbone: str
    backbone_args: dict[str, Any]
    head: Literal["deeplabv2", "daformer", "segformer"]
    width: Width
    dilations: tuple[Annotated[int, Range(least=1, most=4096)], ...]
    dropout: Annotated[float, Range(least=0, below=1)]
    weights: str
    mean: tuple[Share, Share, Share]  # of images in 0..1
    std: tuple[Ratio, Ratio, Ratio]
    batch_norm: Literal["train", "eval"]
    positions: Literal["timm", "hub"] = "timm"  # how a plain ViT's position table is resized
    frozen: bool = False  # the encoder is not trained
    embedding: Width | None = None  # of the stages in fusion heads; None: `width`
    embedding_norm: bool = False  # BatchNorm and ReLU after each: mmsegmentation's SegFormer
    hrda: Hrda | None = None  # two resolutions


@dataclass(frozen=True)
class Optimizer:
    name: Literal["adamw", "sgd"]
    lr: Positive
    head_factor: Positive
    weight_decay: Weight
    momentum: Annotated[float, Range(least=0, below=1)]
    no_decay: bool  # normalisation and position parameters of the encoder without weight decay
    layer_decay: Ratio = 1.0  # rate of each layer of a plain ViT as a share of that above it


@dataclass(frozen=True)
class Schedule:
    warmup: Share  # fraction of the run
    power: Weight  # 0: no decay
    horizon: Positive = 1.0  # where the decay would reach 0, as a multiple of the run (of the round)
    rounds: Count = 1  # the decay begins again in each, with a new optimizer
    factor: Positive = 1.0  # on the rate, from round to round


@dataclass(frozen=True)
class RareClass:
    pixels: Pixels  # a file qualifies for a class with more than this many pixels in its full-size label
    crop_pixels: Pixels  # a crop is redrawn until it holds more than this many pixels of the class


@dataclass(frozen=True)
class Border:
    """Where the target gets no pseudo-labels (rectification border and bonnet), as fractions of its height and width."""

    top: Annotated[float, Range(least=0, below=1)]
    bottom: Annotated[float, Range(least=0, below=1)]
    left: Annotated[float, Range(least=0, below=1)] = 0.0
    right: Annotated[float, Range(least=0, below=1)] = 0.0
    of: Literal["crop", "image"] = "crop"  # image: margins of the whole image, cropped and flipped with it


@dataclass(frozen=True)
class Train:
    steps: Count
    batch: Annotated[int, Range(least=1, most=65536)]
    crop: Size
    accumulate: Annotated[int, Range(least=1, most=65536)]
    precision: Literal["fp32", "bf16"]
    optimizer: Optimizer
    schedule: Schedule
    rare_class: RareClass
    border: Border
    save_every: Count
    log_every: Count
    validate_every: Annotated[int, Range(least=0, most=10**9)] = (
        0  # steps between two scorings of the networks in training; 0: never
    )
    gradient_norms: Annotated[int, Range(least=0, most=10**9)] = (
        0  # steps between two looks at the gradient of each loss, a multiple of log_every; 0: never
    )
    # which random change of the initial weights by 1e-7, to see how far rounding alone moves a score; 0: none
    nudge: Annotated[int, Range(least=0, most=10**9)] = 0
    # On a GPU: docs/performance.md. Another choice is another result, by rounding alone.
    compile: Literal["none", "default", "max-autotune"] = (
        "none"  # networks and losses by torch.compile; the last with CUDA graphs
    )
    checkpointing: bool = (
        False  # the encoder's blocks are made again in the backward pass: less memory, a third more time
    )
    most_rounds: Annotated[int, Range(least=0, most=1000)] = (
        0  # of static labels, in a run too short for the method's; 0: any
    )


@dataclass(frozen=True)
class Test:
    mode: Literal["whole", "slide"]
    window: Size | None
    stride: Size | None
    flip: bool
    scales: tuple[Annotated[float, Range(above=0, most=16)], ...]
    teacher: bool  # score the teacher too, where the method has one


@dataclass(frozen=True)
class Benchmark:
    source: str
    target: str
    evaluate: tuple[str, ...]
    size: Sizes
    classes: str | tuple[str, ...]
    init: dict[str, Start]
    model: Model
    train: Train
    test: Test


@dataclass(frozen=True)
class Unusable:
    """The block of a method whose paper cannot be used. It hinders no other; the steps that run it say why."""

    reason: str
    init: Start
    raw: dict[str, Any]
    terms: tuple[str, ...] = ()
    native: dict[str, Any] = field(default_factory=dict)
    contrast: ClassVar[tuple[str, ...]] = ()
    contrasts: ClassVar[bool] = False


Recipe = Supervised | SelfTraining | Bcl | Plca | Unusable


@dataclass(frozen=True)
class Params:
    run: RunBlock
    select: Select
    analysis: Analysis
    datasets: dict[str, Dataset]
    benchmarks: dict[str, Benchmark]
    methods: dict[str, Recipe]
    raw: dict[str, Any] = field(repr=False, compare=False)  # the file as read
    known: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)  # found out before
    home: Path = Path("results")  # below it lie the runs
    origin: Params | None = (
        None  # where values of the command line took the place of some: the parameters as they stand in the file
    )

    def resolve(self, benchmark: str, method: str, seed: int) -> Run:
        """Raises UserError for an unknown benchmark or method, or a start that the benchmark cannot give."""
        if found := self.known.get((benchmark, method, seed)):
            return typing.cast(Run, found)
        lookup(self.benchmarks, benchmark, "benchmark")
        lookup(self.methods, method, "method")
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"seed: found {shown(seed)}, expected 0 to {LARGEST_SEED}")
        run = Run(self, benchmark, method, seed)
        if run.init == "imagenet" and run.benchmark.model.weights == "none":
            raise UserError(
                f"params.yaml: {method} on {benchmark} starts from ImageNet weights, but benchmarks.{benchmark}.model.weights is "
                f"none; name the weights, or say `init: {{default: none}}` in the benchmark"
            )
        self.known[benchmark, method, seed] = run
        return run


@dataclass(frozen=True)
class Run:
    """One training run with everything that decides its result."""

    params: Params
    benchmark_name: str
    method_name: str
    seed: int

    @property
    def benchmark(self) -> Benchmark:
        return self.params.benchmarks[self.benchmark_name]

    @cached_property
    def method(self) -> Recipe:
        """The method's block; under `protocol: native` with what its `native` says of its own keys over it."""
        recipe = self.params.methods[self.method_name]
        if self.params.run.protocol == "matched" or not own_keys(recipe.native):
            return recipe
        raw = self.params.raw["methods"][self.method_name]
        return method_block(self.method_name, raw | own_keys(recipe.native))

    @property
    def kind(self) -> str:
        """The method's file: `self_training` of `self_training-dacs`; a block with terms is the self-training step too."""
        return "self_training" if isinstance(self.method, SelfTraining) else self.method_name.split("-")[0]

    @cached_property
    def classes(self) -> ClassSpace:
        return class_space(self.benchmark.classes)

    @cached_property
    def train(self) -> Train:
        """The benchmark's training block; under `protocol: native` with the method's own values over it."""
        block = dict(self.params.raw["benchmarks"][self.benchmark_name]["train"])
        where = f"benchmarks.{self.benchmark_name}.train"
        if self.params.run.protocol == "native" and self.method.native:
            block |= without(self.method.native, *own_keys(self.method.native))
            where = f"methods.{self.method_name}.native"
        return typing.cast(Train, build(Train, block, where))

    @property
    def init(self) -> Start:
        """Where the run starts. Under `matched` the benchmark may set it for all methods alike."""
        if self.params.run.protocol == "matched":
            given = self.benchmark.init
            return given.get(self.method_name, given.get("default", self.method.init))
        return self.method.init

    @property
    def from_imagenet(self) -> bool:
        """Whether the student's weights descend from ImageNet weights, directly or through pretraining on the source."""
        if self.init == "source_only":
            return self.pretraining.from_imagenet
        return self.init == "imagenet"

    @property
    def folder(self) -> Path:
        return self.params.home / self.benchmark_name / self.method_name / f"seed{self.seed}"

    @property
    def pretrained(self) -> Path:
        """The source-only model of this benchmark and seed: what `init: source_only` starts from."""
        return Path("results") / self.benchmark_name / "pretrained" / f"seed{self.seed}" / "model.safetensors"

    @property
    def pretraining(self) -> Run:
        """The training that made `pretrained`: by the file's parameters, whatever the command line changed of this run."""
        return (self.params.origin or self.params).resolve(self.benchmark_name, "source_only", self.seed)

    def command(self, step: str) -> str:
        """The command line of a step of this run, for messages."""
        method = "" if step == "pretrain" else f" --method {self.method_name}"
        return f"udaseg {step} --benchmark {self.benchmark_name}{method} --seed {self.seed}"

    @property
    def twins(self) -> list[Path]:
        """Folders of runs with the same recipe, in the order of run.methods: one training serves all (`sepico-off` ...)."""
        if self.kind == "source_only":
            return [self.pretrained.parent]
        others = [self.params.resolve(self.benchmark_name, name, self.seed) for name in self.params.run.methods]
        return [other.folder for other in others if other.hash == self.hash]

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Everything that decides the result, as plain data without what equals its default.

        Names of methods and places of files are left out, so that identical recipes are equal.
        """
        bench = without(essential(self.benchmark), "train", "test", "init", "evaluate")
        if names_a_file(bench["model"]["weights"]):
            bench["model"]["weights"] = "a file"  # where it lies is private, and what it holds decides (start_hash)
        used = {use.dataset: self.params.datasets[use.dataset] for use in uses(self.benchmark)[:2]}
        unused = {"native", "init", *(term for term in papers() if term not in self.method.terms)}
        # how often to look does not change the result
        train = without(essential(self.train), "save_every", "log_every", "validate_every", "gradient_norms")
        train["crop"] = dataclasses.asdict(self.train.crop)  # in two parts, as in the hashes of all earlier results
        return {
            "kind": self.kind,
            "benchmark": bench,
            "datasets": {name: without(essential(block), "root") for name, block in used.items()},
            "method": without(essential(self.method), *unused),
            "train": train,
            "init": self.init,
            "seed": self.seed,
            "threads": self.params.run.threads,
            "pretraining": None if self.init != "source_only" else self.pretraining.resolved,
        }

    @property
    def uncontrasted(self) -> dict[str, Any]:
        """`resolved` without what is contrast: equal for a run and its twin."""
        method = without(self.resolved["method"], *self.method.contrast)
        if "terms" in method:
            method["terms"] = [term for term in method["terms"] if not papers()[term].contrasts]
        return self.resolved | {"method": method}

    def check_usable(self) -> None:
        """Raises UserError where the paper's file is what hinders this run."""
        if isinstance(self.method, Unusable):
            raise UserError(f"params.yaml: methods.{self.method_name}: {self.method.reason}")

    @cached_property
    def hash(self) -> str:
        text = json.dumps(self.resolved, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def names_a_file(weights: str) -> bool:
    """Whether `weights` of a model block is the path of a file."""
    return "/" in weights or weights.endswith(WEIGHT_FILES)


def own_keys(native: dict[str, Any]) -> dict[str, Any]:
    """What `native` says of the method's own block; the rest is for the benchmark's training block."""
    return without(native, *keys_of(Train))


def without(block: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key not in keys}


@dataclass(frozen=True)
class Use:
    """One split of one prepared data set, as a benchmark uses it."""

    role: Literal["source", "target", "evaluate"]
    dataset: str
    split: str
    size: Size

    @property
    def prepared(self) -> str:
        """Folder name of the prepared data set below data/<benchmark>/."""
        return f"{self.dataset}-{self.size}"


def uses(benchmark: Benchmark) -> list[Use]:
    """Source, target and every evaluation split, in this order. Evaluation images have the target's size."""
    out = []
    for role, text in [
        ("source", benchmark.source),
        ("target", benchmark.target),
        *(("evaluate", e) for e in benchmark.evaluate),
    ]:
        dataset, _, split = text.partition("/")
        size = benchmark.size.source if role == "source" else benchmark.size.target
        out.append(Use(typing.cast(Any, role), dataset, split, size))
    return out


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a parameter file.

    Raises:
        UserError: no such file, not YAML, unknown or missing key, wrong type, a name that is not defined.
    """
    path = Path(path)
    try:
        raw = yaml12.read(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; run this at the top of a udaseg checkout or pass --params FILE"
        ) from None
    return parse(raw)


def changed(path: str | Path, changes: Sequence[str]) -> Params:
    """A parameter file with other values, as `["benchmarks.streets.train.steps=100"]`; the file stays as it is.

    Only the named place changes, whatever YAML anchors it shares.

    Raises:
        UserError: as `load`; a change without `=`, a key that is not there, a value of the wrong type.
    """
    raw: Any = load(path).raw
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(
                f"--set: found {shown(change)}, expected key=value as in benchmarks.streets.train.steps=100"
            )
        raw = with_value(raw, key.split("."), yaml12.parse(text, f"--set {key}"), "")
    try:
        return parse(raw)
    except UserError as error:
        raise UserError(f"--set: {str(error).removeprefix('params.yaml: ')}") from None


def with_value(block: Any, keys: Sequence[str], value: Any, where: str) -> Any:
    """A copy of nested blocks with one value replaced. A last key that is not written may have a default: `parse` knows."""
    if not keys:
        return value
    if not isinstance(block, dict):
        raise UserError(f"--set: {where}: found {shown(block)}, a value, expected a block with the key {keys[0]}")
    if len(keys) > 1 and keys[0] not in block:
        raise UserError(f"--set: {where or 'params.yaml'}: unknown key {shown(keys[0])}{nearest(keys[0], block)}")
    inner = f"{where}.{keys[0]}".lstrip(".")
    return {**block, keys[0]: with_value(block.get(keys[0]), keys[1:], value, inner)}


def parse(raw: Any) -> Params:
    """Turn the parsed YAML into Params (see `load`)."""
    if not isinstance(raw, dict):
        raise UserError(f"params.yaml: found {type(raw).__name__}, expected keys {', '.join(keys_of(Params)[:-4])}")
    top = {key: raw[key] for key in raw if key != "methods"}
    hints = hints_of(Params)
    known = [name for name in hints if name not in ("raw", "known", "home", "origin")]
    reject_unknown(raw, known, "params.yaml")
    for name in known:
        if name not in raw:
            raise UserError(f"params.yaml: key `{name}` is missing; expected {', '.join(known)}")
    values = {name: convert(hints[name], top[name], name) for name in known if name != "methods"}
    if not isinstance(raw["methods"], dict):
        raise UserError(f"params.yaml: methods: found {shown(raw['methods'])}, expected a block for each method")
    values["methods"] = {name: method_block(name, block) for name, block in raw["methods"].items()}
    params = Params(**values, raw=raw)
    check_names(params)
    return params


def method_block(name: str, block: Any) -> Recipe:
    kind, where = str(name).split("-")[0], f"params.yaml: methods.{name}"
    check_name(name, "method")
    lookup(papers(), kind, "method", f"methods.{name}")
    given = block if isinstance(block, dict) else {}
    named = given["terms"] if isinstance(given.get("terms"), list) else []
    for paper in (kind, *given, *(term for term in named if isinstance(term, str))):
        if paper in papers() and (reason := papers()[paper].broken):
            return Unusable(reason, given.get("init", "none"), given)
    recipe = typing.cast(Recipe, build(block_of(kind), block, f"methods.{name}"))
    if recipe.terms and not isinstance(recipe, SelfTraining):
        raise UserError(f"{where}.terms: found {list(recipe.terms)}, but {kind} takes none; say []")
    for term in recipe.terms:
        lookup(dict.fromkeys(terms()), term, "term", f"methods.{name}.terms")
        if isinstance(recipe, SelfTraining) and recipe.block(term) is None:
            raise UserError(
                f"{where}: the term {term} has no block of its own; add `{term}: {{...}}`, as in methods.{term}"
            )
    if len(set(recipe.terms)) < len(recipe.terms):
        raise UserError(f"{where}.terms: found {list(recipe.terms)}, expected none twice")
    return recipe


def check_train(train: Train, where: str) -> None:
    if train.batch % train.accumulate:
        raise UserError(
            f"params.yaml: {where}: found batch {train.batch} and accumulate {train.accumulate}, expected batch to be a "
            f"multiple of accumulate"
        )
    if train.gradient_norms % train.log_every:
        raise UserError(
            f"params.yaml: {where}: found gradient_norms {train.gradient_norms} and log_every {train.log_every}, expected a multiple of "
            f"log_every, in whose rows they stand"
        )
    if train.compile != "none" and train.gradient_norms:
        raise UserError(
            f"params.yaml: {where}: found compile: {train.compile} and gradient_norms {train.gradient_norms}, but a compiled graph gives "
            f"its gradient once; say compile: none, or gradient_norms: 0"
        )
    if train.compile != "none" and train.checkpointing:
        raise UserError(
            f"params.yaml: {where}: found compile: {train.compile} and checkpointing: true, expected one of them; say compile: none, "
            f"or checkpointing: false"
        )
    border = train.border
    for first, second, line in (("top", "bottom", "row"), ("left", "right", "column")):
        sides = getattr(border, first), getattr(border, second)
        if sum(sides) >= 1:
            raise UserError(
                f"params.yaml: {where}.border: found {first} {sides[0]} and {second} {sides[1]}, which leave no {line}; "
                f"expected less than 1 together"
            )


def check_name(name: Any, what: str) -> None:
    """Raises UserError unless `name`, of a `what` of params.yaml, can stand in paths, targets and stage names."""
    if not NAME.fullmatch(str(name)):
        raise UserError(
            f"params.yaml: {what.replace(' ', '')}s: {shown(name)} is no {what} name; use small letters, digits, _ and - as in my_town"
        )


def check_classes(names: tuple[str, ...], where: str) -> None:
    """Raises UserError for a class name that is no word, that leads somewhere as a path, or that means something else here."""
    if "void" in names:  # its pixels would be scored, and `ids` could not tell it from pixels without a class
        raise UserError(
            f"params.yaml: {where}.classes: found 'void', which is no class but what pixels without one are called; leave it out, and give "
            f"the values of label files in `ids`, as in {{0: void, 1: road}}"
        )
    if OTHER in names:
        raise UserError(
            f"params.yaml: {where}.classes: found {OTHER!r}, which names the classes that a benchmark lacks; choose another name"
        )
    for name in names:
        if not name.strip() or not name.isprintable() or name.startswith("/") or ".." in re.split(r"[/\\]", name):
            raise UserError(
                f"params.yaml: {where}.classes: found {shown(name)}, expected plain words as in traffic light"
            )


def check_stages(run: RunBlock) -> None:
    """Raises UserError where two runs would be one stage of DVC, which joins benchmark, method and seed with `-`."""
    named: dict[str, tuple[str, str]] = {}
    for benchmark in run.benchmarks:
        for method in run.methods:
            other = named.setdefault(f"{benchmark}-{method}", (benchmark, method))
            if other != (benchmark, method):
                raise UserError(
                    f"params.yaml: run: {other[1]} on {other[0]} and {method} on {benchmark} would both be the stage "
                    f"train@{benchmark}-{method}-{run.seeds[0]} of dvc.yaml; rename one of the benchmarks"
                )


def check_names(params: Params) -> None:
    """Every name that one block uses is defined in another."""
    for name in params.run.benchmarks:
        lookup(params.benchmarks, name, "benchmark", "run.benchmarks")
    for name in params.run.methods:
        lookup(params.methods, name, "method", "run.methods")
    lookup(params.methods, "source_only", "method", "methods")
    lookup(params.benchmarks, params.select.benchmark, "benchmark", "select.benchmark")
    lookup(params.methods, params.select.method, "method", "select.method")
    for group in ("benchmarks", "methods", "seeds"):
        values = getattr(params.run, group)
        if len(set(values)) != len(values) or not values:
            raise UserError(
                f"params.yaml: run.{group}: found {list(values)}, expected at least one entry and none twice"
            )
    check_stages(params.run)
    for name, dataset in params.datasets.items():
        check_name(name, "data set")
        if isinstance(dataset.classes, tuple):
            check_classes(dataset.classes, f"datasets.{name}")
    for name, benchmark in params.benchmarks.items():
        where = f"benchmarks.{name}"
        check_name(name, "benchmark")
        prepared = re.fullmatch(r"(.+)-[0-9]+x[0-9]+", name)  # `udaseg prepare <data set> --size ...` writes there
        if name in RESERVED or (prepared and prepared[1] in params.datasets):
            raise UserError(
                f"params.yaml: benchmarks: {name!r} is no benchmark name: the folder of that name below data/ or results/ holds "
                f"something else (so for {', '.join(RESERVED)} and <data set>-<size>); choose another"
            )
        names = class_space(benchmark.classes, where).names
        check_classes(names, where)
        commas = [label for label in names if "," in label]
        if commas:  # in the header of a model file a comma parts the names
            raise UserError(f"params.yaml: {where}.classes: found {commas[0]!r}, expected names without a comma")
        for use in uses(benchmark):
            lookup(params.datasets, use.dataset, "data set", f"{where}.{use.role}")
            if not use.split.isprintable() or not re.fullmatch(r"[^./\\\s][^/\\]*", use.split):
                raise UserError(
                    f"params.yaml: {where}.{use.role}: found {shown(use.dataset + (use.split and f'/{use.split}'))}, expected "
                    f"dataset/split as in camvid/test"
                )
        for method in benchmark.init:
            if method != "default":
                lookup(params.methods, method, "method", f"{where}.init")
        if benchmark.init.get("source_only", benchmark.init.get("default")) == "source_only":
            raise UserError(
                f"params.yaml: {where}.init: source_only cannot start from itself; say imagenet or none for it"
            )
        if benchmark.test.mode == "slide" and not (benchmark.test.window and benchmark.test.stride):
            raise UserError(
                f"params.yaml: {where}.test: mode slide needs window and stride, as in window: 1024x1024, stride: 512x512"
            )
        window, stride = benchmark.test.window, benchmark.test.stride
        if window and stride and (stride.width > window.width or stride.height > window.height):
            raise UserError(
                f"params.yaml: {where}.test: found stride {stride} beyond window {window}, which leaves gaps; "
                f"expected a stride of at most the window"
            )
        if not benchmark.test.scales:
            raise UserError(
                f"params.yaml: {where}.test.scales: found none, expected factors above 0; [1.0] is the image as it is"
            )
        check_train(benchmark.train, f"{where}.train")
    for name, recipe in params.methods.items():
        where, own = f"methods.{name}.native", own_keys(recipe.native)
        known = [key for key in keys_of(type(recipe)) if key not in ("native", "terms", "init")]
        reject_unknown(own, [*keys_of(Train), *known], f"params.yaml: {where}")
        if own:
            method_block(name, params.raw["methods"][name] | own)
        if changes := without(recipe.native, *own):
            for each in params.raw["benchmarks"].values():
                block = each["train"] | changes
                check_train(build(Train, block, where), where)
    if params.methods["source_only"].init == "source_only":
        raise UserError(
            "params.yaml: methods.source_only.init: source_only cannot start from itself; say imagenet or none"
        )
    p = params.analysis
    if p.per_class < p.least:
        raise UserError(
            f"params.yaml: analysis: found per_class {p.per_class} and least {p.least}, expected per_class at least `least`"
        )
