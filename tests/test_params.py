"""The parameter loader: every wrong file is answered in one line that names the place, what was found and expected."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from udaseg import params
from udaseg.checking import essential
from udaseg.errors import UserError
from udaseg.recipes.bcl import Bcl
from udaseg.recipes.plca import Plca
from udaseg.recipes.self_training import SelfTraining

ROOT = Path(__file__).parents[1]
RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    *parents, last = path.split("/")
    block = raw
    for key in parents:
        block = block[key]
    if value is ...:
        del block[last]
    else:
        block[last] = value
    return raw


@pytest.mark.parametrize("file", ["params.yaml", ".test/params.yaml"])
def test_shipped_files_resolve_every_run(file: str) -> None:
    p = params.load(ROOT / file)
    methods: dict[str, set[str]] = {}
    for benchmark in p.benchmarks:
        for method in p.methods:
            run = p.resolve(benchmark, method, 0)
            methods.setdefault(run.hash, set()).add(method)
            assert run.init in ("imagenet", "source_only", "none")
    # alike without their terms, or but for their native recipes; any others would be two recipes with one hash
    alike: list[set[str]] = [
        *({"self_training", "pipa-off", "cluda-off"}, {"plca", "plca-synthia"}, {"pipa-mild", "pipa-hrda"})
    ]
    for names in methods.values():
        assert len(names) == 1 or names in alike
    assert len(methods) == len(p.benchmarks) * (
        len(p.methods) - sum(len(group & {*p.methods}) - 1 for group in alike if group & {*p.methods})
    )


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("methods/self_training/treshold", 0.9, ["unknown key 'treshold'", "threshold"]),
        ("run/methds", [], ["unknown key 'methds'", "methods"]),
        ("bench", {}, ["unknown key 'bench'", "benchmarks"]),
        ("run/methods", ["sorce_only"], ["run.methods", "sorce_only", "source_only"]),
        ("run/benchmarks", ["street"], ["run.benchmarks", "streets"]),
        ("run/benchmarks", [], ["run.benchmarks", "at least one"]),
        ("run/seeds", [0, 0], ["run.seeds", "none twice"]),
        ("run/seeds", ["zero"], ["run.seeds[0]", "'zero'", "an integer"]),
        ("run/threads", True, ["run.threads", "True", "an integer"]),
        ("run/threads", ..., ["run", "`threads` is missing"]),
        ("run/device", "gpu", ["run.device", "'gpu'", "auto or cpu or cuda"]),
        ("methods/self_training/threshold", "high", ["methods.self_training.threshold", "'high'", "a number"]),
        ("methods/self_training/terms", ["sepicoo"], ["terms", "sepicoo"]),
        ("methods/Sepico", {}, ["'Sepico'", "small letters"]),
        ("methods/magic", {}, ["unknown method 'magic'"]),
        ("methods/source_only/init", "source_only", ["cannot start from itself"]),
        ("benchmarks/streets/size/source", "256", ["size.source", "'256'", "512x256"]),
        ("benchmarks/streets/source", "streets_gam/train", ["streets_gam", "streets_game"]),
        ("benchmarks/streets/source", "streets_game", ["dataset/split"]),
        ("benchmarks/streets/classes", "cityscapes20", ["cityscapes20", "cityscapes19"]),
        ("benchmarks/streets/train/steps", 0, ["at least 1"]),
        ("benchmarks/streets/train/accumulate", 3, ["multiple of accumulate"]),
        ("benchmarks/streets/train/optimizer/lr", "1e-4", ["optimizer.lr", "'1e-4'", "1.0e-5"]),
        ("benchmarks/streets/test/mode", "slide", ["window"]),
        ("select/method", "nothing", ["select.method", "nothing"]),
        ("datasets/camvid/format", "camvi", ["datasets.camvid.format", "camvid"]),
    ],
)
def test_wrong_values_are_named(path: str, value: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        params.parse(changed(path, value))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        params.load(tmp_path / "params.yaml")
    for text, words in [("run: [", "not valid YAML"), ("- 1", "expected keys"), ("", "expected keys")]:
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            params.load(tmp_path / "params.yaml")
        assert "\n" not in str(caught.value)


def test_imagenet_start_needs_weights() -> None:
    p = params.parse(changed("benchmarks/streets/init", {}))
    with pytest.raises(UserError, match=r"model\.weights is none"):
        p.resolve("streets", "oracle", 0)


def leaves(block: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(block, dict) and block:
        return [leaf for key, value in block.items() for leaf in leaves(value, (*path, str(key)))]
    return [path]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(leaves(RAW)),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
    ),
)
def test_any_value_anywhere_is_accepted_or_answered_in_one_line(path: tuple[str, ...], value: Any) -> None:
    raw = copy.deepcopy(RAW)
    block = raw
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    try:
        p = params.parse(raw)
    except UserError as error:
        assert str(error).startswith("params.yaml") and "\n" not in str(error)
    else:
        assert isinstance(p, params.Params)


def test_native_protocol_takes_the_methods_own_recipe() -> None:
    raw = changed("methods/self_training/native", {"steps": 7})
    assert (
        params.parse(raw).resolve("camvid_day2dusk", "self_training", 0).train.steps
        == RAW["benchmarks"]["camvid_day2dusk"]["train"]["steps"]
    )
    raw["run"]["protocol"] = "native"
    assert params.parse(raw).resolve("camvid_day2dusk", "self_training", 0).train.steps == 7


def test_hash_follows_what_decides_the_result_and_nothing_else() -> None:
    def of(raw: dict[str, Any], method: str = "self_training") -> str:
        return params.parse(raw).resolve("streets", method, 0).hash

    base = of(RAW)
    for path, value in [
        ("run/device", "cpu"),
        ("run/workers", 0),
        ("run/gpus_per_run", 4),
        ("benchmarks/streets/train/log_every", 7),
        ("benchmarks/streets/test/flip", True),
        ("methods/oracle/photometric", False),
    ]:
        changed_hash = (
            of(changed(path, value))
            if path != "methods/oracle/photometric"
            else of(
                {**RAW, "methods": {**RAW["methods"], "oracle": {**RAW["methods"]["oracle"], "photometric": False}}}
            )
        )
        assert changed_hash == base, path
    for path, value in [
        ("run/threads", 1),
        ("benchmarks/streets/train/steps", 401),
        ("benchmarks/streets/model/width", 32),
        ("datasets/streets_photo/seed", 9),
        ("methods/self_training/threshold", 0.9),
        ("methods/source_only/crop_max_ratio", 0.5),  # through pretraining
    ]:
        assert of(changed(path, value)) != base, path


def declared(cls: type) -> dict[str, Any]:
    """Key -> declared default of a block, as plain data."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = essential(field.default_factory())
        elif field.default is not dataclasses.MISSING:
            found[field.name] = essential(field.default)
    return found


# A value that equals its default is in no hash. Were a default changed, runs that rely on it would keep their hash and change their
# result. New keys may come; what stands here stays.
FROZEN: dict[type, dict[str, Any]] = {
    params.RunBlock: {"tensorboard": False},
    params.Dataset: {
        "root": None, "exclude": [], "look": None, "seed": None, "count": {}, "images": None, "labels": None,
        "classes": "cityscapes19", "ids": {},
    },
    params.Schedule: {"horizon": 1.0, "rounds": 1, "factor": 1.0},
    SelfTraining: {"target_crop": "random", "day_reference": None},
    Bcl: {"native": {}},
    Plca: {"native": {}},
}  # fmt: skip


@pytest.mark.parametrize("cls", [*FROZEN], ids=lambda cls: cls.__name__)
def test_declared_defaults_never_change(cls: type) -> None:
    found = declared(cls)
    assert {key: found.get(key, "required now") for key in FROZEN[cls]} == FROZEN[cls]


def test_a_value_at_its_default_is_in_no_hash() -> None:
    """Written down or not, in nested blocks too; any other value is in it."""
    plain = params.load(ROOT / "params.yaml").resolve("streets", "bcl", 0).hash
    for path, default, other in (
        ("benchmarks/streets/train/schedule/horizon", 1.0, 1.5),
        ("benchmarks/streets/train/schedule/rounds", 1, 2),
        ("datasets/streets_game/exclude", [], ["x"]),
    ):
        assert params.parse(changed(path, default)).resolve("streets", "bcl", 0).hash == plain, path
        assert params.parse(changed(path, other)).resolve("streets", "bcl", 0).hash != plain, path
    assert params.parse(changed("benchmarks/streets/train/steps", 401)).resolve("streets", "bcl", 0).hash != plain
    for path in (
        "benchmarks/streets/train/log_every",
        "benchmarks/streets/train/save_every",
        "datasets/streets_game/root",
    ):
        value = "somewhere" if path.endswith("root") else 7
        assert params.parse(changed(path, value)).resolve("streets", "bcl", 0).hash == plain, path
    same = params.parse(changed("benchmarks/streets/train/optimizer/head_factor", 1.0))  # written as 1
    assert same.resolve("streets", "bcl", 0).hash == plain


def test_the_place_of_a_weights_file_is_in_no_hash() -> None:
    """It may be private; what it holds decides, and is compared by itself."""
    runs = [
        params.parse(changed("benchmarks/camvid_day2dusk/model/weights", text)).resolve("camvid_day2dusk", "oracle", 0)
        for text in ("/home/me/mit.pth", "elsewhere/mit.safetensors", "timm:in1k")
    ]
    assert runs[0].hash == runs[1].hash != runs[2].hash
    assert "/home/me" not in str(runs[0].resolved)


def test_twins_go_without_what_contrasts() -> None:
    p = params.load(ROOT / "params.yaml")
    twins = [
        ("pipa", "self_training"),
        ("pipa-mild", "pipa-off"),
        ("sepico-pipa", "sepico-off"),
        ("sepico-night", "sepico-night_off"),
    ]
    twins += [("cluda", "self_training"), ("bcl", "bcl-off"), ("plca-direct", "plca-off")]
    for method, twin in twins:
        one, other = (p.resolve("camvid_day2dusk", name, 0) for name in (method, twin))
        assert one.method.contrasts and not other.method.contrasts, method
        assert one.uncontrasted == other.uncontrasted, method
    for method, other in (("pipa", "sepico-off"), ("sepico", "self_training"), ("bcl", "plca-off")):
        assert p.resolve("streets", method, 0).uncontrasted != p.resolve("streets", other, 0).uncontrasted
