"""A model file is enough to use the model; what is none is refused in one line."""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tiny_project import RAW
from udaseg import params
from udaseg.artifacts import file_hash, write_json
from udaseg.classes import class_space
from udaseg.devices import choose
from udaseg.errors import UserError
from udaseg.models import load_model_file, save_model
from udaseg.models.trained import load
from udaseg.params import Size

MakeModel = Callable[..., Path]


def refused(path: Path, device: str = "cpu") -> str:
    with pytest.raises(UserError) as caught:
        load(path, choose(device, "--device"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(path: Path, **header: str | None) -> Path:
    """The file with other header values; None removes a key."""
    state, old = load_model_file(path)
    save_model(path, state, {key: value for key, value in (old | header).items() if value is not None})
    return path


@pytest.mark.parametrize("classes", ["cityscapes19", "camvid11", ["grass", "path"]])
def test_the_file_tells_network_classes_colours_and_size(make_model: MakeModel, classes: str | list[str]) -> None:
    path = make_model(classes=classes)
    trained, space = load(path), class_space(tuple(classes) if isinstance(classes, list) else classes)
    assert (trained.classes.names, trained.classes.colours) == (space.names, space.colours)
    assert (trained.classes.palette() == space.palette()).all()
    assert trained.size == Size(64, 32)
    assert not trained.student.training
    state, _ = load_model_file(path)
    loaded = trained.student.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], value) for name, value in state.items())
    assert trained.student.mean.flatten().tolist() == pytest.approx(RAW["benchmarks"]["streets"]["model"]["mean"])


def test_equal_results_give_equal_bytes(make_model: MakeModel) -> None:
    assert make_model("one").read_bytes() == make_model("two").read_bytes()


def test_a_teacher_in_the_file_is_left_out(make_model: MakeModel) -> None:
    path = make_model(method="self_training")
    state, _ = load_model_file(path)
    assert any(name.startswith("teacher.") for name in state)
    loaded = load(path).student.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items() if not name.startswith("teacher."))


def test_no_file_and_a_file_of_another_kind(tmp_path: Path) -> None:
    assert "found nothing at" in refused(tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("no weights")
    assert "no complete safetensors file" in refused(tmp_path / "notes.txt")


def test_weights_of_another_program(tmp_path: Path) -> None:
    save_model(tmp_path / "foreign.safetensors", {"weight": torch.zeros(2)}, {"format": "pt"})
    message = refused(tmp_path / "foreign.safetensors")
    assert "found no benchmark in its header" in message and "udaseg train" in message


def test_a_file_of_an_older_version_names_the_command_to_train_again(make_model: MakeModel) -> None:
    message = refused(changed(make_model(), model=None, colours=None, size=None))
    assert "lacks model, colours, size" in message
    assert "udaseg train --benchmark streets --method source_only --seed 0" in message


def test_a_file_cut_short(make_model: MakeModel) -> None:
    path = make_model()
    path.write_bytes(path.read_bytes()[:-10])
    assert "no complete safetensors file" in refused(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("colours", "[[1, 2, 3]]", "19 classes, 1 colours"),
        ("colours", "[[1, 2", "cannot be read"),
        ("colours", "7", "cannot be read"),
        ("model", "{", "cannot be read"),
        ("model", '{"backbones": 1}', "unknown key 'backbones'; did you mean 'backbone'?"),
        ("size", "big", "found 'big', expected a size like 512x256"),
    ],
)
def test_a_damaged_header(make_model: MakeModel, key: str, value: str, said: str) -> None:
    message = refused(changed(make_model(), **{key: value}))
    assert said in message and "its header cannot be read" in message and "params.yaml" not in message


def test_weights_that_do_not_fit_the_header(make_model: MakeModel) -> None:
    state, _ = load_model_file(make_model("small"))
    wide = changed(make_model("wide", width=24))
    save_model(wide, state, load_model_file(wide)[1])
    assert "expected shape (24," in refused(wide)


def test_no_cuda(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device: found cuda" in refused(make_model(), "cuda")
    assert load(make_model(), choose("auto", "--device")).device == torch.device("cpu")


def test_a_file_of_a_newer_version(make_model: MakeModel) -> None:
    message = refused(changed(make_model(), format="4"))
    assert "its header has format 4, this version reads up to 3" in message


def test_a_file_of_the_first_format_is_read(make_model: MakeModel) -> None:
    """It had neither a format nor a test protocol, and named the code."""
    trained = load(changed(make_model(), format=None, test=None, code_hash="0123", unknown="x"))
    assert trained.test.mode == "whole" and trained.header["unknown"] == "x"


def without_hash(path: Path, form: str) -> Path:
    """The file as versions wrote it that formed no hash of the content."""
    state, header = load_model_file(path)
    safetensors.torch.save_file(
        state, path, {key: form if key == "format" else v for key, v in header.items() if key != "sha256"}
    )
    return path


def test_a_file_of_the_second_format_is_read_and_one_of_the_third_needs_its_hash(make_model: MakeModel) -> None:
    assert load(without_hash(make_model(), "2")).header["format"] == "2"
    assert "damaged: its header has no sha256" in refused(without_hash(make_model(), "3"))


def test_a_flipped_bit_in_the_last_tensor(make_model: MakeModel) -> None:
    """Wherever the file was copied to; with its run.json beside it too, whatever its own hash says."""
    path = make_model()
    copy, whole = path.with_name("copy.safetensors"), path.read_bytes()
    copy.write_bytes(whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:])
    assert "damaged: its content has sha256" in refused(copy)
    made = {"benchmark": "streets", "method": "oracle", "seed": 3, "model_hash": file_hash(path)}
    write_json(path.with_name("run.json"), made)
    load(path)
    forged = changed(path, method="pipa")
    message = refused(forged)
    assert "damaged or replaced" in message and "`udaseg train --method oracle --benchmark streets --seed 3`" in message
    write_json(path.with_name("run.json"), {"method": "oracle"})  # an old one, without a hash
    load(path)


ODD = {
    "a file to open": ("model", {"backbone_args": {"checkpoint_path": "/etc/passwd"}}, "backbone_args.checkpoint_path"),
    "weights to fetch": ("model", {"backbone_args": {"pretrained": True}}, "backbone_args.pretrained"),
    "more weights": ("model", {"backbone_args": {"pretrained_cfg": {"url": "x"}}}, "backbone_args.pretrained_cfg"),
    "huge argument": ("model", {"backbone_args": {"stem_width": 10**9}}, "backbone_args.stem_width"),
    "deep argument": ("model", {"backbone_args": {"depths": [64, 64, 64, 64]}}, "up to 128 blocks"),
    "nested argument": ("model", {"backbone_args": {"layers": [[[1]]]}}, "backbone_args.layers"),
    "giant backbone": ("model", {"backbone": "vit_giant_patch14_dinov2"}, "tensor encoder"),
    "huge width": ("model", {"width": 10**9}, "model.width: found 1000000000"),
    "wide": ("model", {"width": 4096}, r"expected shape \(4096"),
    "text for a width": ("model", {"width": "8"}, "width: found '8'"),
    "negative width": ("model", {"width": -1}, "model.width: found -1"),
    "many dilations": ("model", {"dilations": [1] * 10**6}, "1000000 dilations"),
    "dropout": ("model", {"dropout": 2.0}, "dropout 2.0|dropout: found 2.0"),
    "std": ("model", {"std": [0.0, 1.0, 1.0]}, "std"),
    "no backbone": ("model", {"backbone": "../x"}, "expected a timm model name"),
    "a list": ("model", None, "model: found"),
    "classes": ("classes", ",".join(map(str, range(300))), "300 classes"),
    "classes alike": ("classes", ",".join(["road"] * 19), "19 different|different names"),
    "colour": ("colours", [[999, 0, 0]] * 19, "0 to 255"),
    "size": ("size", "100000x100000", "size: found 100000x100000"),
    "window": (
        "test",
        {"mode": "slide", "window": None, "stride": None, "flip": False, "scales": [1.0], "teacher": False},
        "slide",
    ),
    "nesting": ("model", "[" * 10**5, "nested too deeply"),
    "twice": ("model", '{"width": 1, "width": 2}', "the key 'width' twice"),
    "number": ("model", '{"width": NaN}', "found NaN"),
    "format": ("format", "x" * 1000, "its header has format x"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_headers_end_in_one_line_before_anything_is_built(make_model: MakeModel, name: str) -> None:
    key, value, said = ODD[name]
    path = make_model()
    if isinstance(value, dict) and key == "model":
        value = json.loads(load_model_file(path)[1]["model"]) | value
    path = changed(path, **{key: value if isinstance(value, str) else json.dumps(value)})
    began, held = time.process_time(), peak_kilobytes()
    assert re.search(said, refused(path))
    assert time.process_time() - began < 10 and peak_kilobytes() - held < 2**20  # of work, however busy the machine


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_the_file_tells_how_test_images_are_looked_at(make_model: MakeModel) -> None:
    trained = load(make_model())
    assert trained.test == params.parse(RAW).benchmarks["streets"].test
    path = changed(make_model("windows"), test='{"mode": "slides"}')
    assert "its header cannot be read (test.mode: found 'slides'" in refused(path)
