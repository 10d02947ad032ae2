"""A folder of photographs without labels becomes a benchmark: two blocks more in params.yaml (docs/your-own-images.md).

params.yaml is edited as text, because it is written for people: what stood there stays, comments included.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import re
import shlex
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from udaseg import origins, params, yaml12
from udaseg.artifacts import write_text
from udaseg.checking import lookup
from udaseg.data import folder as folders
from udaseg.data.convert import fit
from udaseg.data.images import Unusable, size_of
from udaseg.errors import UserError
from udaseg.params import NAME, RESERVED, Benchmark, Dataset, Params, Size

log = logging.getLogger("udaseg")
MULTIPLE = 32  # of target sizes: what the deepest encoders shrink by
LAYOUT = (
    "params.yaml: found `datasets` or `benchmarks` in another layout than one indented entry after the other; lay them out "
    "like that, or add the blocks by hand (docs/your-own-images.md)"
)
METHOD = "self_training"  # of the commands shown: no contrastive method beats it surely (docs/results.md)


def new_target(path: Path, folder: Path, *, name: str, like: str) -> str:
    """Add data set and benchmark `name` to params.yaml: source, classes, model and training of `like`, target `folder`.

    Args:
        path: the parameter file.
        folder: photographs, at any depth.
        name: of both blocks.
        like: a benchmark of the file.

    Returns:
        what was added, and the next two commands.

    Raises:
        UserError: a name that is taken or no name, an unknown benchmark, no folder, no images in it, files that are no
            images, images all smaller than the training needs, a file that cannot be written or extended. It is unchanged then.
    """
    p = params.load(path)
    block = lookup(p.benchmarks, like, "benchmark")
    check_name(p, name)
    sizes = sizes_of(folder, name)
    size = target_size(sizes, block, folder)
    text = path.read_text(encoding="utf-8")
    dataset = {"format": "folder", "root": str(folder)}
    changes = {
        "target": f"{name}/train",
        "evaluate": [],
        "size": {"source": str(block.size.source), "target": str(size)},
    }
    new = with_benchmark(with_dataset(text, name, dataset), name, like, changes)
    check_new(p.raw, new, name, like, dataset, changes)
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: cannot be written; make it writable (`chmod u+w {path}`), then run this again")
    write_text(path.resolve(), new)
    return summary(p, folder, sizes, size, name, like)


def check_name(p: Params, name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"--name: found {name!r}, expected small letters, digits, _ and - as in my_town")
    if name in RESERVED:
        raise UserError(
            f"--name: found {name!r}, but the folder of that name below data/ or results/ holds something else; choose another name"
        )
    for kind, table in (("data set", p.datasets), ("benchmark", p.benchmarks)):
        if name in table:
            raise UserError(f"--name: found {name!r}, which is a {kind} of params.yaml already; choose another name")


def sizes_of(folder: Path, name: str) -> Counter[tuple[int, int]]:
    """(width, height) of the upright photographs -> how many; reads the files' first bytes only.

    Raises:
        UserError: no folder, no images, files that are none, two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: found no such folder; name the folder that holds your photographs")
    if str(folder).startswith("~") or re.search(r"\$\{?\w", str(folder)):
        raise UserError(
            f"{folder}: found ~ or $ in the path, which stand for a home folder and a variable in params.yaml; rename the folder"
        )
    found = folders.find_in_folder(f"datasets.{name}", Dataset("folder", str(folder)), folder)
    sizes: Counter[tuple[int, int]] = Counter()
    problems = []
    for item in found.splits["train"]:
        assert item.image
        try:
            sizes[size_of(item.image)] += 1
        except Unusable as problem:
            problems.append(f"{item.image.parent}{os.sep}{problem}")
    if problems:
        raise UserError(
            f"{folder}: {len(problems)} of {len(found.splits['train'])} files are named like images but cannot be used, "
            f"first {problems[0]}; or move them away"
        )
    for note in found.notes:
        log.info("%s", note)
    return sizes


def target_size(sizes: Counter[tuple[int, int]], like: Benchmark, folder: Path) -> Size:
    """The smallest size of the photographs' usual shape that holds a training crop, in multiples of 32.

    Raises:
        UserError: every photograph would have to be enlarged to it.
    """
    crop = like.train.crop
    shape = statistics.median(width / height for width, height in sizes.elements())
    height = max(crop.height, crop.width / shape)
    size = Size(*(MULTIPLE * math.ceil(round(side, 6) / MULTIPLE) for side in (height * shape, height)))
    if all(fit(width, height, size)[0] > width for width, height in sizes):
        largest = max(sizes, key=math.prod)
        raise UserError(
            f"{folder}: the largest photograph has {largest[0]}x{largest[1]} pixels, expected at least {size}: training works at "
            f"that size; use larger photographs, or a smaller `train.crop` in a benchmark of your own"
        )
    return size


def with_dataset(text: str, name: str, dataset: dict[str, Any]) -> str:
    line = ", ".join(f"{key}: {written(value)}" for key, value in dataset.items())
    return appended(text, "datasets", [f"{name}: {{{line}}}"])


def written(value: str) -> str:
    """A text as YAML: in quotes where it would be taken for something else."""
    plain = re.fullmatch(r"[\w./][\w./ -]*", value) and value == value.strip()
    return value if plain and yaml12.parse(value, "") == value else json.dumps(value, ensure_ascii=False)


def with_benchmark(text: str, name: str, like: str, changes: dict[str, Any]) -> str:
    """`text` with a benchmark that merges the block `like`, which gets an anchor if it has none."""
    blocks = {key.value: value for key, value in yaml12.compose(text).value}
    key = next(key for key, _ in blocks["benchmarks"].value if key.value == like)
    colon = text.index(":", key.end_mark.index) + 1
    if given := re.compile(r" *[&*]([^\s,{}\[\]]+)").match(text, colon):
        anchor = given[1]
    else:
        anchor = like
        while re.search(rf"[&*]{anchor}(?![\w-])", text):
            anchor += "_benchmark"
        text = f"{text[:colon]} &{anchor}{text[colon:]}"
    size = changes["size"]
    lines = [
        f"{name}:   # by `udaseg new-target`: docs/your-own-images.md",
        f"  <<: *{anchor}",
        f"  target: {changes['target']}",
        "  evaluate: []   # photographs without labels cannot be scored",
        f"  size: {{source: {size['source']}, target: {size['target']}}}",
    ]
    return appended(text, "benchmarks", ["", *lines])


def appended(text: str, block: str, lines: list[str]) -> str:
    """`text` with `lines` at the end of a top-level block; comments and blank lines before the next block stay its own."""
    root = yaml12.compose(text)
    names = [key.value for key, _ in root.value]
    value = root.value[names.index(block)][1]
    if root.flow_style or value.flow_style:
        raise UserError(LAYOUT)
    after = [key.start_mark.index for key, _ in root.value[names.index(block) + 1 :]]
    end = after[0] if after else len(text)
    *_, last = re.finditer(r"^ +\S.*$", text[:end], re.MULTILINE)
    indent = " " * value.value[0][0].start_mark.column
    new = "".join(f"\n{indent}{line}".rstrip(" ") for line in lines)
    return text[: last.end()] + new + (text[last.end() :] or "\n")


def check_new(
    old: dict[str, Any], text: str, name: str, like: str, dataset: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Raises UserError unless `text` means what `old` does and the two blocks."""
    expected = copy.deepcopy(old)
    expected["datasets"][name] = dataset
    expected["benchmarks"][name] = expected["benchmarks"][like] | changes
    try:
        found = yaml12.parse(text, "params.yaml")
    except UserError:
        found = None
    if found != expected:
        raise UserError(LAYOUT)
    params.parse(found)


def summary(p: Params, folder: Path, sizes: Counter[tuple[int, int]], size: Size, name: str, like: str) -> str:
    block = p.benchmarks[like]
    crop = block.train.crop
    prepared = {given: fit(*given, size) for given in sizes}
    odd = sum(n for given, n in sizes.items() if prepared[given][0] < crop.width or prepared[given][1] < crop.height)
    method = METHOD if METHOD in p.methods else p.select.method
    model = f"results/{name}/{method}/seed0/model.safetensors"
    width, height = prepared[sizes.most_common(1)[0][0]]
    lines = [
        f"{name}: {sizes.total()} photographs, learned at {width}x{height} beside {block.source}, with model and training of {like}",
    ]
    if odd:
        lines.append(f"note: {odd} of them have another shape than most and get grey margins in training")
    first = []
    if missing := origins.lacking(block.model.weights):
        lines.append(f"note: {missing}; the training needs it")
        if origins.hint(block.model.weights):
            first = [f"  udaseg fetch-weights {block.model.weights}"]
    return "\n".join(
        [
            *lines,
            "next:",
            *first,
            f"  snakemake {model}",
            f"  udaseg predict {model} {shlex.quote(str(folder))} --out {name}-labels",
        ]
    )
