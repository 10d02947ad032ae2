"""The model file: who writes it, who reads it, what its header means. Nobody else opens one.

model.safetensors holds the tensors of the student and, under "teacher.", of the averaged teacher (EMA), and a header of text
that is enough to use them without a params.yaml: class names and colours, the model block, the size of the target's images in
training, and how test images are looked at (whole, or in windows).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from udaseg.artifacts import MODEL
from udaseg.checking import build, essential
from udaseg.classes import ClassSpace
from udaseg.errors import UserError
from udaseg.models.build import build_model
from udaseg.models.files import load_model_file, load_state, read_metadata, save_model
from udaseg.models.segmenter import Segmenter
from udaseg.params import Model, Run, Size, Test

FORMAT = 2  # of the header; the first had no `format` and no `test`
TEACHER = "teacher."  # before the names of the teacher's tensors
OURS = ("benchmark", "method", "seed", "params_hash", "classes")
SELF_CONTAINED = ("model", "colours", "size")
WHOLE = Test("whole", None, None, flip=False, scales=(1.0,), teacher=False)


@dataclass(frozen=True)
class Trained:
    """Networks ready to predict, and what their answers mean.

    Attributes:
        student: what is scored as the headline; in evaluation mode, on `device`.
        teacher: the averaged one, where the method has one and it was asked for.
        classes: names and colours; subsets and things, which only training and scoring need, if it was read for a run.
        size: of the target's images during training.
        test: how test images are looked at.
        header: of the file, as text.
    """

    student: Segmenter
    teacher: Segmenter | None
    classes: ClassSpace
    size: Size
    test: Test
    header: dict[str, str]
    device: torch.device


def save(path: Path, run: Run, networks: Mapping[str, nn.Module]) -> None:
    """Write the networks of a finished training by prefix ("" the student, TEACHER); equal runs give equal bytes."""
    state = {
        prefix + name: value for prefix, network in networks.items() for name, value in network.state_dict().items()
    }
    save_model(path, state, header_of(run))


def header_of(run: Run) -> dict[str, str]:
    """What a model file says about itself. Where training began may be a private path and is left out."""
    return {
        "format": str(FORMAT),
        "benchmark": run.benchmark_name,
        "method": run.method_name,
        "seed": str(run.seed),
        "params_hash": run.hash,
        "classes": ",".join(run.classes.names),
        "colours": json.dumps(run.classes.colours),
        "model": json.dumps(essential(run.benchmark.model) | {"weights": "none"}, sort_keys=True),
        "size": str(run.benchmark.size.target),
        "test": json.dumps(essential(run.benchmark.test), sort_keys=True),
    }


def sign_again(path: Path, run: Run) -> None:
    """Bring an older header up to date; the tensors, and whose training it was, stay."""
    state, found = load_model_file(path)
    whose = {key: found[key] for key in ("benchmark", "method", "seed") if key in found}
    if (wanted := header_of(run) | whose) != found:
        save_model(path, state, wanted)


def load(path: Path, device: torch.device | str = "cpu") -> Trained:
    """Read a model.safetensors that `udaseg train` wrote, for use without its params.yaml. A teacher in it is left out.

    Raises:
        UserError: no such file, a file of another program or of a version that this one cannot read, a damaged one.
    """
    state, header = load_model_file(path)
    check_header(header, path)
    try:
        classes = read_classes(header)
        model: Model = build(Model, json.loads(header["model"]), "model")
        size = Size.parse(header["size"], "size")
        test: Test = build(Test, json.loads(header["test"]), "test") if "test" in header else WHOLE
    except (ValueError, TypeError, UserError) as error:
        said = str(error).removeprefix("params.yaml: ")
        raise UserError(f"{path}: its header cannot be read ({said}); train again, or fetch the file again") from None
    where = torch.device(device)
    student = network_of(model, len(classes), by_network(state)[""], path, where)
    return Trained(student, None, classes, size, test, header, where)


def load_run(run: Run, device: torch.device, path: Path | None = None) -> Trained:
    """Read the model of a run, with its teacher.

    Args:
        run: it must be the model of these parameters and classes.
        device: where to.
        path: the file, where that is not in the run's folder.

    Raises:
        UserError: no such file, or the model of another run; the message names the command that makes it.
    """
    path = path or run.folder / MODEL
    again = run.command("pretrain" if path == run.pretrained else "train")
    if not path.exists():
        raise UserError(f"{path}: not found; run `{again}` first")
    state, header = load_model_file(path)
    for key, expected in (("params_hash", run.hash), ("classes", ",".join(run.classes.names))):
        if header.get(key) != expected:
            raise UserError(f"{path}: {key}: found {header.get(key)}, expected {expected}; run `{again}` again")
    networks = {
        prefix: network_of(run.benchmark.model, len(run.classes), part, path, device)
        for prefix, part in by_network(state).items()
    }
    size, test = run.benchmark.size.target, run.benchmark.test
    return Trained(networks[""], networks.get(TEACHER), run.classes, size, test, header, device)


def begin_from(student: Segmenter, run: Run) -> None:
    """Load the source-only model that a run starts from into its student.

    Raises:
        UserError: it was trained with other parameters.
    """
    state, header = load_model_file(run.pretrained)
    expected = run.params.resolve(run.benchmark_name, "source_only", run.seed).hash
    if header.get("params_hash") != expected:
        raise UserError(
            f"{run.pretrained}: made with parameters {header.get('params_hash')}, expected {expected}; run `udaseg pretrain` again"
        )
    load_state(student, state, run.pretrained)


def read_header(path: Path) -> dict[str, str]:
    """What a model file says about itself, without reading its weights.

    Raises:
        UserError: not a whole safetensors file.
    """
    return read_metadata(path)


def network_of(model: Model, classes: int, state: Mapping[str, Tensor], path: Path, device: torch.device) -> Segmenter:
    network = build_model(model, classes)
    load_state(network, state, path)
    return network.to(device).eval()


def by_network(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a model file: the student's under "", the teacher's, if it has one, under TEACHER."""
    parts: dict[str, dict[str, Tensor]] = {"": {}}
    for name, value in state.items():
        prefix = TEACHER if name.startswith(TEACHER) else ""
        parts.setdefault(prefix, {})[name.removeprefix(prefix)] = value
    return parts


def check_header(header: Mapping[str, str], path: Path) -> None:
    """Raises UserError for a header that lacks what this version needs, or is of a newer one. Unknown keys are no matter."""
    if missing := [key for key in OURS if key not in header]:
        raise UserError(
            f"{path}: found no {missing[0]} in its header, expected a model.safetensors written by `udaseg train`; "
            f"weights alone do not tell classes and architecture"
        )
    found = header.get("format", "1")
    if not found.isdecimal() or int(found) > FORMAT:
        raise UserError(
            f"{path}: its header has format {found}, this version reads up to {FORMAT}; use the version of udaseg that wrote it"
        )
    if missing := [key for key in SELF_CONTAINED if key not in header]:
        raise UserError(
            f"{path}: written by an older version, its header lacks {', '.join(missing)}; train again: `udaseg train "
            f"--benchmark {header['benchmark']} --method {header['method']} --seed {header['seed']}`"
        )


def read_classes(header: Mapping[str, str]) -> ClassSpace:
    """Raises ValueError or TypeError for names and colours that do not belong together."""
    names = tuple(header["classes"].split(","))
    colours = tuple((int(r), int(g), int(b)) for r, g, b in json.loads(header["colours"]))
    if len(names) != len(colours):
        raise ValueError(f"{len(names)} classes, {len(colours)} colours")
    return ClassSpace(header["benchmark"], names, colours, tuple((name,) for name in names), (), {})
