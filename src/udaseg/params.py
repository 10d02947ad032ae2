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
import re
import typing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from udaseg.checking import build, convert, essential, keys_of, lookup, reject_unknown
from udaseg.classes import ClassSpace, class_space
from udaseg.errors import UserError
from udaseg.recipes import Start, Variant, block_of, papers, terms
from udaseg.recipes.bcl import Bcl
from udaseg.recipes.plca import Plca
from udaseg.recipes.self_training import SelfTraining
from udaseg.recipes.source_only import Supervised

NAME = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")
RESERVED = ("raw", "reference", "selected")  # data/raw, results/reference, results/selected
WEIGHT_FILES = (".safetensors", ".pth", ".pt")
LICENSED = ("gta5", "synthia", "cityscapes", "dark_zurich", "acdc", "nighttime_driving", "bdd100k_night")


@dataclass(frozen=True)
class Size:
    """Width and height in pixels, written `256x128` in params.yaml."""

    width: int
    height: int
    written: ClassVar[str] = "a size like 512x256"

    @classmethod
    def parse(cls, text: str, where: str) -> Size:
        match = re.fullmatch(r"(\d+)x(\d+)", text) if isinstance(text, str) else None
        if not match or 0 in map(int, match.groups()):
            raise UserError(f"{where}: found {text!r}, expected a size like 512x256 (width x height in pixels)")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class RunBlock:
    benchmarks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    protocol: Literal["matched", "native"]
    threads: int
    workers: int
    gpus_per_run: int
    device: Literal["auto", "cpu", "cuda"]
    tensorboard: bool = False


@dataclass(frozen=True)
class Select:
    benchmark: str
    method: str


@dataclass(frozen=True)
class Tsne:
    per_class: int  # cells of a class in each domain
    perplexity: float
    iterations: int


@dataclass(frozen=True)
class Analysis:
    """How `udaseg analyse` samples and measures features: docs/analysis.md."""

    seed: int
    images: int  # of each domain at most
    per_class: int  # cells of a class in each domain at most
    least: int  # a class with fewer in a domain is left out
    neighbours: int  # of the k-NN classifier
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
    seed: int | None = None  # streets
    count: dict[str, int] = field(default_factory=dict)  # streets: scenes per split
    images: str | None = None  # folder: where the images are below root; `{split}` stands for the split
    labels: str | None = None  # folder: the same for labels, matched by stem; null: unlabelled
    classes: str | tuple[str, ...] = "cityscapes19"  # folder: what the label values mean after `ids`
    ids: dict[int, str] = field(default_factory=dict)  # folder: value in a label file -> class name; all others: error


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
    box_step: int = 8  # random boxes lie at multiples of it
    detail_weight: float = 0.1  # share of the detail logits' own loss
    context_weight: float = 0.0  # share of the context logits' own loss: an ablation
    fusion: Literal["hrda", "cluda"] = "hrda"  # cluda: enlarged first, weighted then
    windows_at_once: int | None = None  # of the teacher, to save memory; another number is another result


@dataclass(frozen=True)
class Model:
    backbone: str
    backbone_args: dict[str, Any]
    head: Literal["deeplabv2", "daformer", "segformer"]
    width: int
    dilations: tuple[int, ...]
    dropout: float
    weights: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch_norm: Literal["train", "eval"]
    positions: Literal["timm", "hub"] = "timm"  # how a plain ViT's position table is resized
    frozen: bool = False  # the encoder is not trained
    embedding: int | None = None  # of the stages in fusion heads; None: `width`
    hrda: Hrda | None = None  # two resolutions


@dataclass(frozen=True)
class Optimizer:
    name: Literal["adamw", "sgd"]
    lr: float
    head_factor: float
    weight_decay: float
    momentum: float
    no_decay: bool  # normalisation and position parameters of the encoder without weight decay
    layer_decay: float = 1.0  # rate of each layer of a plain ViT as a share of that above it


@dataclass(frozen=True)
class Schedule:
    warmup: float  # fraction of the run
    power: float
    horizon: float = 1.0  # where the decay would reach 0, as a multiple of the run (of the round)
    rounds: int = 1  # the decay begins again in each, with a new optimizer
    factor: float = 1.0  # on the rate, from round to round


@dataclass(frozen=True)
class RareClass:
    pixels: int  # a file qualifies for a class with more than this many pixels in its full-size label
    crop_pixels: int  # a crop is redrawn until it holds more than this many pixels of the class


@dataclass(frozen=True)
class Border:
    """Where the target gets no pseudo-labels (rectification border and bonnet), as fractions of its height and width."""

    top: float
    bottom: float
    left: float = 0.0
    right: float = 0.0
    of: Literal["crop", "image"] = "crop"  # image: margins of the whole image, cropped and flipped with it


@dataclass(frozen=True)
class Train:
    steps: int
    batch: int
    crop: Size
    accumulate: int
    precision: Literal["fp32", "bf16"]
    optimizer: Optimizer
    schedule: Schedule
    rare_class: RareClass
    border: Border
    save_every: int
    log_every: int
    validate_every: int = 0  # steps between two scorings of the networks in training; 0: never


@dataclass(frozen=True)
class Test:
    mode: Literal["whole", "slide"]
    window: Size | None
    stride: Size | None
    flip: bool
    scales: tuple[float, ...]
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

    def resolve(self, benchmark: str, method: str, seed: int) -> Run:
        """Raises UserError for an unknown benchmark or method, or a start that the benchmark cannot give."""
        if found := self.known.get((benchmark, method, seed)):
            return typing.cast(Run, found)
        lookup(self.benchmarks, benchmark, "benchmark")
        lookup(self.methods, method, "method")
        if seed < 0:
            raise UserError(f"seed: found {seed}, expected 0 or more")
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
            return self.params.resolve(self.benchmark_name, "source_only", self.seed).from_imagenet
        return self.init == "imagenet"

    @property
    def folder(self) -> Path:
        return Path("results") / self.benchmark_name / self.method_name / f"seed{self.seed}"

    @property
    def pretrained(self) -> Path:
        """The source-only model of this benchmark and seed: what `init: source_only` starts from."""
        return Path("results") / self.benchmark_name / "pretrained" / f"seed{self.seed}" / "model.safetensors"

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
        train = without(
            essential(self.train), "save_every", "log_every", "validate_every"
        )  # how often to look does not change the result
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
            "pretraining": None
            if self.init != "source_only"
            else self.params.resolve(self.benchmark_name, "source_only", self.seed).resolved,
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
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; run this at the top of a udaseg checkout or pass --params FILE"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected a parameter file like params.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse(raw)


def parse(raw: Any) -> Params:
    """Turn the parsed YAML into Params (see `load`)."""
    if not isinstance(raw, dict):
        raise UserError(f"params.yaml: found {type(raw).__name__}, expected keys {', '.join(keys_of(Params)[:-2])}")
    top = {key: raw[key] for key in raw if key != "methods"}
    hints = typing.get_type_hints(Params)
    known = [name for name in hints if name not in ("raw", "known")]
    reject_unknown(raw, known, "params.yaml")
    for name in known:
        if name not in raw:
            raise UserError(f"params.yaml: key `{name}` is missing; expected {', '.join(known)}")
    values = {name: convert(hints[name], top[name], name) for name in known if name != "methods"}
    if not isinstance(raw["methods"], dict):
        raise UserError(f"params.yaml: methods: found {raw['methods']!r}, expected a block for each method")
    values["methods"] = {name: method_block(name, block) for name, block in raw["methods"].items()}
    params = Params(**values, raw=raw)
    check_names(params)
    return params


def method_block(name: str, block: Any) -> Recipe:
    kind, where = str(name).split("-")[0], f"params.yaml: methods.{name}"
    if not NAME.fullmatch(str(name)):
        raise UserError(
            f"params.yaml: methods: {name!r} is no method name; use small letters, digits, _ and - as in sepico-off"
        )
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
    numbers = (train.steps, train.batch, train.accumulate, train.save_every, train.log_every, train.schedule.rounds)
    if min(numbers) < 1 or train.batch % train.accumulate:
        raise UserError(
            f"params.yaml: {where}: steps, batch, accumulate, save_every, log_every, schedule.rounds must be at least 1 "
            f"and batch a multiple of accumulate"
        )
    if train.validate_every < 0:
        raise UserError(f"params.yaml: {where}.validate_every: found {train.validate_every}, expected 0 or more")


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
    for name, benchmark in params.benchmarks.items():
        where = f"benchmarks.{name}"
        if not NAME.fullmatch(str(name)) or name in RESERVED:
            raise UserError(
                f"params.yaml: benchmarks: {name!r} is no benchmark name; use small letters, digits, _ and - as in my_town, and none "
                f"of {', '.join(RESERVED)}, whose folders below data/ and results/ hold something else"
            )
        commas = [label for label in class_space(benchmark.classes, where).names if "," in label]
        if commas:  # in the header of a model file a comma parts the names
            raise UserError(f"params.yaml: {where}.classes: found {commas[0]!r}, expected names without a comma")
        for use in uses(benchmark):
            lookup(params.datasets, use.dataset, "data set", f"{where}.{use.role}")
            if not use.split:
                raise UserError(
                    f"params.yaml: {where}.{use.role}: found {use.dataset!r}, expected dataset/split as in camvid/test"
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
        if not benchmark.test.scales or min(benchmark.test.scales) <= 0:
            raise UserError(
                f"params.yaml: {where}.test.scales: found {list(benchmark.test.scales)}, expected factors above 0; "
                f"[1.0] is the image as it is"
            )
        check_train(benchmark.train, f"{where}.train")
        for method, recipe in params.methods.items():
            if recipe.native:
                own = own_keys(recipe.native)
                block = params.raw["benchmarks"][name]["train"] | without(recipe.native, *own)
                known = [key for key in keys_of(type(recipe)) if key not in ("native", "terms", "init")]
                reject_unknown(own, [*keys_of(Train), *known], f"params.yaml: methods.{method}.native")
                method_block(method, params.raw["methods"][method] | own)
                check_train(build(Train, block, f"methods.{method}.native"), f"methods.{method}.native")
    if params.methods["source_only"].init == "source_only":
        raise UserError(
            "params.yaml: methods.source_only.init: source_only cannot start from itself; say imagenet or none"
        )
    if min(params.run.seeds) < 0:
        raise UserError(f"params.yaml: run.seeds: found {list(params.run.seeds)}, expected 0 or more")
    if min(params.run.threads, 1 + params.run.workers, 1 + params.run.gpus_per_run) < 1:
        raise UserError("params.yaml: run: threads must be at least 1, workers and gpus_per_run at least 0")
    check_analysis(params.analysis)


def check_analysis(p: Analysis) -> None:
    counts = (p.images, p.neighbours, p.tsne.per_class, p.tsne.iterations, p.least - 1, p.seed + 1)
    if min(counts) < 1 or p.per_class < p.least or p.tsne.perplexity <= 0:
        raise UserError(
            "params.yaml: analysis: images, neighbours, tsne.per_class and tsne.iterations must be at least 1, least at "
            "least 2, per_class at least `least`, seed at least 0 and tsne.perplexity above 0"
        )
