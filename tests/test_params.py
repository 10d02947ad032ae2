"""The parameter loader: every wrong file is answered in one line that names the place, what was found and expected."""

from __future__ import annotations

import copy
import dataclasses
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from udaseg import params, yaml12
from udaseg.checking import LARGEST_SEED, Range, essential, hints_of
from udaseg.data import prepare
from udaseg.errors import UserError
from udaseg.recipes import block_of, papers
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
        ("benchmarks/streets/train/accumulate", 3, ["multiple of accumulate"]),
        ("benchmarks/streets/train/optimizer/lr", "1e-4", ["optimizer.lr", "'1e-4'", "a number above 0"]),
        ("benchmarks/streets/train/border", {"top": 0.5, "bottom": 0.5}, ["train.border", "less than 1 together"]),
        (
            "benchmarks/streets/train/border",
            {"top": 0, "bottom": 0, "left": 0.6, "right": 0.6},
            ["left 0.6", "no column"],
        ),
        (
            "benchmarks/streets/evaluate",
            ["streets_photo/../x"],
            ["streets.evaluate", "'streets_photo/../x'", "camvid/test"],
        ),
        ("benchmarks/streets/target", "streets_photo/a/b", ["streets.target", "dataset/split"]),
        ("benchmarks/streets/source", "streets_game/..", ["streets.source", "dataset/split"]),
        ("benchmarks/streets/classes", ["road", "../car"], ["streets.classes", "'../car'", "plain words"]),
        ("benchmarks/streets/classes", ["road", "car\n"], ["streets.classes", "'car\\n'", "plain words"]),
        ("datasets/camvid/classes", ["road", "/car"], ["datasets.camvid.classes", "'/car'"]),
        ("datasets/my.set", {"format": "folder"}, ["datasets", "'my.set'", "no data set name"]),
        ("datasets/..", {"format": "folder"}, ["'..'", "no data set name"]),
        ("datasets/camvid/ids", {256: "road"}, ["datasets.camvid.ids", "256", "from 0 to 255"]),
        ("benchmarks/camvid-64x32", RAW["benchmarks"]["streets"], ["camvid-64x32", "<data set>-<size>"]),
        ("benchmarks/streets/size/source", "100000x100000", ["size.source", "100000x100000", "65535"]),
        ("benchmarks/streets/train/crop", "65535x65535", ["train.crop", "67,108,864 in all"]),
        ("benchmarks/streets/train/crop", f"{'9' * 5000}x1", ["train.crop", "a size like 512x256"]),
        ("benchmarks/streets/model", "x" * 10_000, ["streets.model", "xxx...", "expected a block"]),
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


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("run/threads", 10**18, "an integer from 1 to 4096"),
        ("run/threads", 0, "an integer from 1 to 4096"),
        ("run/workers", -1, "an integer from 0 to 1024"),
        ("run/gpus_per_run", -1, "an integer from 0 to 1024"),
        ("run/seeds", [-1], "an integer from 0 to 18446744073709551615"),
        ("run/seeds", [2**64], "an integer from 0 to 18446744073709551615"),
        ("analysis/seed", 2**32, "an integer from 0 to 4294967295"),
        ("analysis/least", 1, "an integer from 2 to 1000000000"),
        ("analysis/tsne/perplexity", 0, "a number above 0"),
        ("datasets/streets_game/count", {"train": 10**7}, "an integer from 0 to 1000000"),
        ("benchmarks/streets/model/width", 0, "an integer from 1 to 8192"),
        ("benchmarks/streets/model/dropout", 2, "a number of at least 0 and below 1"),
        ("benchmarks/streets/model/dilations", [0], "an integer from 1 to 4096"),
        ("benchmarks/streets/model/std", [0.2, 0.0, 0.2], "a number above 0 and at most 1"),
        ("benchmarks/streets/model/std", [-0.2, 0.2, 0.2], "a number above 0 and at most 1"),
        ("benchmarks/streets/model/mean", [123.7, 0.4, 0.4], "a number from 0 to 1"),
        ("benchmarks/streets/train/steps", 0, "an integer from 1 to 1000000000"),
        ("benchmarks/streets/train/optimizer/lr", 0, "a number above 0"),
        ("benchmarks/streets/train/optimizer/lr", -1e-3, "a number above 0"),
        ("benchmarks/streets/train/optimizer/lr", 10**400, "a number above 0"),
        ("benchmarks/streets/train/optimizer/lr", float("nan"), "a number above 0"),
        ("benchmarks/streets/train/optimizer/weight_decay", -0.1, "a number of at least 0"),
        ("benchmarks/streets/train/optimizer/momentum", 1.0, "a number of at least 0 and below 1"),
        ("benchmarks/streets/train/schedule/warmup", 1.5, "a number from 0 to 1"),
        ("benchmarks/streets/train/border/top", -1, "a number of at least 0 and below 1"),
        ("benchmarks/streets/train/rare_class/pixels", -1, "an integer from 0 to 1000000000"),
        ("benchmarks/streets/test/scales", [0.0], "a number above 0 and at most 16"),
        ("methods/self_training/threshold", 2, "a number from 0 to 1"),
        ("methods/self_training/teacher_horizon", -0.5, "a number of at least 0"),
        ("methods/self_training/rare_class_temperature", 0, "a number of at least 1e-06"),
        ("methods/self_training/blur/sigma", [1.15, 0.15], "a list of 2 x a number above 0, the smaller first"),
        ("methods/self_training/jitter/strength", 0.6, "a number from 0 to 0.5"),
        ("methods/bcl/temperature", -1, "a number above 0"),
        ("methods/bcl/scale", [1.4, 1.0], "a list of 2 x a number above 0 and at most 16, the smaller first"),
        ("methods/bcl/native/steps", 0, "an integer from 1 to 1000000000"),
        ("methods/bcl/native/momentum", 2, "a number from 0 to 1"),
        ("methods/plca/association", -1, "a number of at least 0"),
        ("methods/plca/max_pixels", 0, "an integer from 1 to 1000000000"),
        ("methods/sepico/sepico/width", 0, "a number above 0 and at most 64"),
        ("methods/sepico-night/day_reference/frequency", [0.0], "a number above 0 and at most 1"),
        ("methods/pipa/pipa/patch/iou", [1.0, 0.1], "a list of 2 x a number from 0 to 1, the smaller first"),
        ("methods/pipa/pipa/pixel/anchors", 0, "an integer from 1 to 1000000000"),
        ("methods/cluda/cluda/source", -1.0, "a number of at least 0"),
    ],
)
def test_a_number_out_of_its_range_is_named_with_key_value_and_range(path: str, value: Any, expected: str) -> None:
    """What trained silently before, or ended in a traceback."""
    with pytest.raises(UserError) as caught:
        params.parse(changed(path, value))
    message = str(caught.value)
    key, found = path.replace("/", "."), value
    while isinstance(found, list) and "list" not in expected:
        found = next(each for each in found if not 0 < each <= 1) if len(found) > 1 else found[0]
    found = next(iter(found.values())) if isinstance(found, dict) else found
    assert message.startswith(f"params.yaml: {key}".replace("native.momentum", "momentum")), message
    assert f": found {found!r}"[:70] in message and f"expected {expected}" in message, message
    assert "\n" not in message and len(message) < 300


def test_bounds_that_may_be_reached() -> None:
    for path, value in [
        ("run/seeds", [0, LARGEST_SEED]),
        ("run/workers", 0),
        ("benchmarks/streets/model/dropout", 0),
        ("benchmarks/streets/train/optimizer/weight_decay", 0),
        ("methods/self_training/threshold", 0),
        ("methods/self_training/threshold", 1),
        ("methods/self_training/teacher_horizon", 0),
        ("methods/self_training/jitter", {"p": 0, "strength": 0}),
        ("methods/pipa/pipa/pixel/weight", 0),
        ("methods/plca/association", 0),
        ("methods/bcl/scale", [1.0, 1.0]),
    ]:
        params.parse(changed(path, value))


def blocks(hint: Any) -> Iterator[type]:
    """Dataclasses below a type, each with the dataclasses of its fields."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
        for name, each in hints_of(hint).items():
            if name != "origin":  # the parameters once more
                yield from blocks(each)
    for each in typing.get_args(hint):
        yield from blocks(each)


def unbounded(hint: Any) -> list[Any]:
    """The numbers of a type that have no range."""
    if typing.get_origin(hint) is typing.Annotated and isinstance(hint.__metadata__[0], Range):
        return []
    if hint in (int, float):
        return [hint]
    return [each for arg in typing.get_args(hint) for each in unbounded(arg)]


def test_every_number_of_params_yaml_has_a_range() -> None:
    classes = {*blocks(params.Params), *(each for name in papers() for each in blocks(block_of(name)))}
    classes |= {each for name in papers() for each in blocks(papers()[name].block)}
    assert len(classes) > 25 and {params.Size, params.Tsne, params.Border} <= classes
    for cls in classes - {params.Unusable}:
        for name, hint in hints_of(cls).items():
            if name not in ("raw", "known"):
                assert not unbounded(hint), f"{cls.__name__}.{name}: {hint} has no range (udaseg.checking)"


def test_two_runs_of_one_stage_name_are_refused() -> None:
    """DVC joins benchmark, method and seed with `-`."""
    raw = changed("benchmarks/streets-sepico", RAW["benchmarks"]["streets"])
    raw["benchmarks"]["streets-sepico-pipa"] = RAW["benchmarks"]["streets"]
    raw["run"] |= {"benchmarks": ["streets", "streets-sepico"], "methods": ["source_only", "sepico-pipa", "pipa"]}
    with pytest.raises(
        UserError, match="sepico-pipa on streets and pipa on streets-sepico would both be the stage train@"
    ):
        params.parse(raw)
    raw["run"] |= {"benchmarks": ["streets", "streets-sepico-pipa"]}
    params.parse(raw)


def test_the_place_of_a_data_set_may_name_home_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it leads, hashes and recipes stay."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SETS", "/disk/sets")
    monkeypatch.delenv("NO_SUCH", raising=False)
    found = {}
    for root in ("~/camvid", "$SETS/camvid", "${SETS}/camvid", "data/raw/camvid", "a$/b"):
        p = params.parse(changed("datasets/camvid/root", root))
        found[root] = str(p.datasets["camvid"].folder)
        assert (
            p.resolve("camvid_day2dusk", "oracle", 0).hash
            == params.parse(RAW).resolve("camvid_day2dusk", "oracle", 0).hash
        )
        recipe = prepare.recipe_of(p.datasets["camvid"], params.Size(8, 8))
        assert recipe == prepare.recipe_of(params.parse(RAW).datasets["camvid"], params.Size(8, 8))
    assert [*found.values()] == ["/home/me/camvid", "/disk/sets/camvid", "/disk/sets/camvid", "data/raw/camvid", "a$/b"]
    with pytest.raises(UserError, match="'\\$NO_SUCH/camvid', but the environment variable NO_SUCH is not set"):
        params.parse(changed("datasets/camvid/root", "$NO_SUCH/camvid")).datasets["camvid"].folder  # noqa: B018


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_as_file_is_accepted_or_answered_in_one_line(key: str, value: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    for changed_text in (f"{text}\n{key}: {value}\n", text.replace("seed: 0", f"seed: {value}", 1), value):
        try:
            params.parse(yaml12.parse(changed_text, "params.yaml"))
        except UserError as error:
            assert str(error).startswith("params.yaml") and "\n" not in str(error)


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


def test_loaders_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto`: one on a CPU, as the cores of a process allow for a GPU; a number is a number."""
    raw = copy.deepcopy(RAW)
    raw["run"] |= {"workers": "auto", "gpus_per_run": 2}
    run = params.parse(raw).run
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert (run.loaders(cuda=False), run.loaders(cuda=True)) == (1, 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert run.loaders(cuda=True) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert run.loaders(cuda=True) == 1
    raw["run"]["workers"] = 3
    assert params.parse(raw).run.loaders(cuda=False) == 3
    raw["run"]["workers"] = "many"
    with pytest.raises(UserError, match=r"run.workers: found 'many', expected an integer from 0 to 1024 or auto"):
        params.parse(raw)
