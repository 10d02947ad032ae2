"""A model file is enough to use the model; what is none is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tiny_project import RAW
from udaseg import params
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
    message = refused(changed(make_model(), format="3"))
    assert "its header has format 3, this version reads up to 2" in message


def test_a_file_of_the_first_format_is_read(make_model: MakeModel) -> None:
    """It had neither a format nor a test protocol, and named the code."""
    trained = load(changed(make_model(), format=None, test=None, code_hash="0123", unknown="x"))
    assert trained.test.mode == "whole" and trained.header["unknown"] == "x"


def test_the_file_tells_how_test_images_are_looked_at(make_model: MakeModel) -> None:
    trained = load(make_model())
    assert trained.test == params.parse(RAW).benchmarks["streets"].test
    path = changed(make_model("windows"), test='{"mode": "slides"}')
    assert "its header cannot be read (test.mode: found 'slides'" in refused(path)
