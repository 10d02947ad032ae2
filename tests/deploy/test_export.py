"""Exported programs agree with the model at one size and at any, or nothing is written."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from timm.layers import AvgPool2dSame, Conv2dSame
from tiny_model import write_model
from torch import nn
from torch.export import Dim

import udaseg
from tiny_project import ROOT
from udaseg.deploy import export as step
from udaseg.errors import UserError
from udaseg.models.trained import load
from udaseg.params import Size

MakeModel = Callable[..., Path]
PROGRAMS = ["model-64x32.pt2", "model-64x32.onnx", "model.pt2", "model.onnx"]
# beside the tiny model's test_resnet with segformer: every head and kind of encoder, as small as they come
NETWORKS: dict[str, dict[str, Any]] = {
    "mit": {"backbone": "pvt_v2_b0", "backbone_args": {"mlp_ratios": [4, 4, 4, 4], "depths": [1, 1, 1, 1]}},
    "daformer": {"head": "daformer", "dilations": [6]},
    "deeplab": {"head": "deeplabv2", "dilations": [6, 12], "backbone_args": {"output_stride": 8}},
}


def programs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".pt2", ".onnx", ".part"))


def agree(run: Callable[[torch.Tensor], torch.Tensor], model: Path, shape: tuple[int, int, int]) -> bool:
    network, (batch, height, width) = load(model).student, shape
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.predict(network.normalise(images), (height, width))
    return bool((run(images) - expected).abs().max() < 1e-4 * expected.abs().max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A model file with its programs beside it, and what the command said."""
    model = write_model(tmp_path_factory.mktemp("exported"), classes="camvid11")
    return model, step.export(model, None, size=None).splitlines()


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_give_the_logits_of_the_model(exported: tuple[Path, list[str]], program: str) -> None:
    model, _ = exported
    run = step.runner(Path(program).suffix, (model.parent / program).read_bytes())
    for shape in [(1, 32, 64)] if "64x32" in program else [(1, 70, 99), (4, 64, 201)]:  # the command tries others
        assert agree(run, model, shape)


def test_the_command_tells_what_it_wrote_and_how_it_was_checked(exported: tuple[Path, list[str]]) -> None:
    model, said = exported
    assert programs(model.parent) == sorted(PROGRAMS)
    assert [line.split(":")[0] for line in said] == [str(model.parent / program) for program in PROGRAMS]
    tried = "tried at 2x3x64x64, 2x3x97x131, 3x3x65x64"
    assert re.search(rf": within \d\.\de-\d\d of the model's largest logit, {tried}$", said[3])


def test_the_header_of_the_model_goes_with_the_programs(exported: tuple[Path, list[str]]) -> None:
    model, _ = exported
    trained = load(model)
    proto = onnx.load(model.parent / "model.onnx")
    onnx.checker.check_model(proto)
    found = {prop.key: prop.value for prop in proto.metadata_props}
    assert {key: found[key] for key in trained.header} == trained.header
    assert json.loads(found["colours"])[0] == list(trained.classes.colours[0])
    sides = [dim.dim_param or dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"]
    extra = {"udaseg.json": ""}
    torch.export.load(model.parent / "model-64x32.pt2", extra_files=extra)
    assert json.loads(extra["udaseg.json"]) == trained.header


@pytest.mark.parametrize("name", NETWORKS)
def test_every_head_and_kind_of_encoder_has_programs_of_free_size(make_model: MakeModel, name: str) -> None:
    model = make_model(**NETWORKS[name])
    for ending, blob in step.program_of(load(model), (2, 64, 96), free=True).items():
        assert agree(step.runner(ending, blob), model, (1, 91, 75)), ending


def test_tensorflows_padding_is_rewritten_without_a_change(make_model: MakeModel) -> None:
    """mobilenetv2 of the CamVid benchmarks; its free program takes too long for a test."""
    network = load(make_model(backbone="mobilenetv2_035", backbone_args={"pad_type": "same"})).student
    rewritten = step.exportable(network)
    assert sum(isinstance(module, step.Same) for module in rewritten.modules()) == 5  # strides of 2
    assert not any(isinstance(module, step.Same) for module in network.modules())
    for size in ((64, 96), (65, 99), (70, 75)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert torch.equal(rewritten(images).logits, network(images).logits)


@pytest.mark.parametrize(
    "layer",
    [
        Conv2dSame(3, 4, 3, stride=2),
        Conv2dSame(3, 4, (5, 3), stride=(2, 3), dilation=(2, 1)),
        Conv2dSame(3, 4, 4),
        AvgPool2dSame(2, 1),
        AvgPool2dSame(3, 2, ceil_mode=True),
    ],
    ids=str,
)
def test_padding_in_integers_is_that_of_timm_and_can_be_traced_for_any_size(layer: nn.Module) -> None:
    sides = {2: Dim("height", min=8), 3: Dim("width", min=8)}
    program = torch.export.export(step.Same(layer), (torch.zeros(1, 3, 16, 24),), dynamic_shapes={"x": sides})
    torch.export.save(program, io.BytesIO())
    for size in ((16, 24), (17, 23), (9, 30), (12, 13)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(program.module()(x), layer(x))


def test_an_encoder_that_resizes_has_programs_of_fixed_size_only(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="udaseg")
    monkeypatch.setattr(step, "convert", lambda *_: {".pt2": b"", ".onnx": b""})
    monkeypatch.setattr(step, "runner", lambda *_: None)
    monkeypatch.setattr(step, "compare_program", lambda *_: 0.0)
    vit = {"backbone": "vit_tiny_patch16_224", "backbone_args": {"depth": 4, "embed_dim": 24, "num_heads": 2}}
    step.export(make_model(**vit), tmp_path / "out", size=Size(70, 40))
    assert programs(tmp_path / "out") == ["model-70x40.onnx", "model-70x40.pt2"]
    assert "only programs of fixed size: this network resizes images to multiples of 16" in caplog.text


def test_a_network_that_cannot_be_traced_for_any_size_has_programs_of_fixed_size_only_and_else_none(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise RuntimeError("no such\nshape")

    monkeypatch.setattr(step, "convert", refuses)
    with pytest.raises(step.FixedOnly, match=r"cannot be traced for any size \(RuntimeError: no such shape\)"):
        step.program_of(load(make_model()), (2, 64, 64), free=True)
    with pytest.raises(UserError) as caught:
        step.export(make_model(), tmp_path / "out", size=None)
    assert "cannot be traced at 64x32 (RuntimeError: no such shape); nothing was written" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_program_that_differs_is_an_error_and_leaves_nothing(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "convert", lambda *_: {".pt2": b"", ".onnx": b""})
    monkeypatch.setattr(step, "runner", lambda *_: lambda images: torch.ones(len(images), 19, *images.shape[2:]))
    with pytest.raises(UserError, match=r"model-64x32.pt2: differs from the model by .* at 1x3x32x64") as caught:
        step.export(make_model(), tmp_path / "out", size=None)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_program_that_fails_or_gives_no_numbers_is_an_error(make_model: MakeModel) -> None:
    network = load(make_model()).student
    with pytest.raises(UserError, match="differs from the model by nan"):
        step.compare_program("x", lambda images: torch.full((1, 19, 32, 64), torch.nan), network, [(1, 32, 64)])

    def fails(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no\nkernel")

    with pytest.raises(UserError, match=r"x: cannot run at 1x3x32x64 \(no kernel\)"):
        step.compare_program("x", fails, network, [(1, 32, 64)])


def test_a_folder_below_a_file_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    with pytest.raises(UserError, match=r"--out: found the file .*/notes, expected a folder"):
        step.export(make_model(), tmp_path / "notes/programs", size=None)


@pytest.mark.parametrize("package", step.PACKAGES)
def test_a_missing_package_names_the_extra(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package}, .* pip install 'udaseg\[export\]'"):
        step.export(make_model(), None, size=None)


@pytest.mark.parametrize("size", [(150, 100), (90, 200)])
def test_the_code_of_the_page_labels_as_predict(
    exported: tuple[Path, list[str]], size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = exported
    monkeypatch.chdir(tmp_path)
    (tmp_path / "programs").symlink_to(model.parent)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save("photo.jpg")
    (code,) = re.findall(r"```python\n(import numpy.*?)```", (ROOT / "docs/use.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    expected = udaseg.load(model, device="cpu").predict("photo.jpg").labels
    assert names["labels"].shape == expected.shape
    assert (names["labels"] == expected).mean() > 0.97  # but for the borders: labels are enlarged, not logits
