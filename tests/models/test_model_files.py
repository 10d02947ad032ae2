"""Model files: equal bytes for equal weights, whole or absent, strict on loading."""

import os
from unittest.mock import ANY

import pytest
import torch
from safetensors import safe_open

from udaseg.errors import UserError
from udaseg.models import build_model, load_model_file, load_state, save_model
from udaseg.models.trained import check_format

HEADER = {"method": "sepico", "params": "a1b2", "classes": "road,sky", "benchmark": "streets", "seed": "0"}


def test_round_trip_restores_every_tensor(block, tmp_path):
    model, other = build_model(block(), 5), build_model(block(), 5)
    path = tmp_path / "new" / "model.safetensors"
    save_model(path, model.state_dict(), HEADER)
    state, metadata = load_model_file(path)
    assert metadata == HEADER | {"sha256": ANY}
    load_state(other, state, path)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    assert state.keys() == model.state_dict().keys()


def test_equal_weights_give_equal_bytes(block, tmp_path):
    model = build_model(block(), 5)
    contents = set()
    for turn in range(6):  # the library's own header comes in another order nearly every time
        path = tmp_path / f"{turn}.safetensors"
        order = list(HEADER) if turn % 2 else list(reversed(HEADER))
        save_model(path, model.state_dict(), {key: HEADER[key] for key in order})
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_the_file_is_plain_safetensors_with_aligned_data(tmp_path):
    model = torch.nn.Linear(3, 2)
    save_model(tmp_path / "m.safetensors", model.state_dict(), {"k": 'quotes " and ü'})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert file.metadata() == {"k": 'quotes " and ü', "sha256": ANY}
        assert torch.equal(file.get_tensor("weight"), model.weight)
    assert int.from_bytes((tmp_path / "m.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_tensors_that_share_storage_are_saved(tmp_path):
    flat = torch.arange(6.0)
    model = torch.nn.Module()
    model.a, model.b = torch.nn.Parameter(flat[:4].view(2, 2).T), torch.nn.Parameter(flat[2:])
    save_model(tmp_path / "m.safetensors", model.state_dict(), {})
    state, metadata = load_model_file(tmp_path / "m.safetensors")
    assert torch.equal(state["a"], torch.tensor([[0.0, 2], [1, 3]])) and torch.equal(state["b"], flat[2:])
    assert metadata.keys() == {"sha256"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(path, torch.nn.Linear(2, 2).state_dict(), {"turn": "1"})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(path, torch.nn.Linear(2, 2).state_dict(), {"turn": "2"})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_unreadable_files_are_user_errors(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(UserError, match=r"found nothing at .*m\.safetensors, expected a model file"):
        load_model_file(path)
    save_model(path, torch.nn.Linear(20, 20).state_dict(), {})
    whole = path.read_bytes()
    for content in (whole[:-7], whole[:5], b"", b"<html>not found</html>" * 9):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"found {len(content)} bytes that are no complete safetensors file"):
            load_model_file(path)


def test_any_flipped_bit_is_noticed(tmp_path):
    """Of header and tensors alike, with no other file to compare with."""
    path = tmp_path / "m.safetensors"
    save_model(path, torch.nn.Linear(4, 3).state_dict(), HEADER | {"format": "3"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError):
            check_format(load_model_file(path)[1], path)
    path.write_bytes(whole)
    check_format(load_model_file(path)[1], path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{" * 100_000, "nested too deeply|expecting|Expecting"),
        (b"[1, 2]", "a header without names"),
        (b'{"__metadata__": 7}', "a header without names"),
        (b'{"__metadata__": {"k": 7}}', "a header without names"),
        (b'{"a": {}, "a": {}}', "the key 'a' twice"),
        (b'{"__metadata__": {"k": "1", "k": "2"}}', "the key 'k' twice"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"w": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}', "no complete safetensors"),
        (b'{"w": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}', "no complete safetensors"),
        (b'{"w": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}', "no complete safetensors"),
        (b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', "no complete safetensors"),
        (b'{"w": NaN}', "found NaN"),
    ],
)
def test_odd_headers_are_user_errors(tmp_path, text, said):
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"1234")
    with pytest.raises(UserError, match=said) as caught:
        load_model_file(path)
    assert "no complete safetensors file" in str(caught.value) and "\n" not in str(caught.value)
    for length in (2**63, 2**32, len(text) + 5, 0, 1):  # a length that lies
        path.write_bytes(length.to_bytes(8, "little") + text + b"1234")
        with pytest.raises(UserError, match="no complete safetensors file"):
            load_model_file(path)


def test_load_state_names_the_first_difference_and_changes_nothing(block):
    model = build_model(block(), 5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wider = {k: v + 1 for k, v in build_model(block(), 7).state_dict().items()}
    with pytest.raises(
        UserError,
        match=r"x\.safetensors: tensor head\.classify\.weight: "
        r"found shape \(7, 16, 1, 1\), expected shape \(5, 16, 1, 1\)",
    ):
        load_state(model, wider, "x.safetensors")
    lacking = {k: v + 1 for k, v in before.items() if k != "head.classify.bias"}
    with pytest.raises(UserError, match=r"tensor head\.classify\.bias: found no such tensor, expected shape \(5,\)"):
        load_state(model, lacking, "x.safetensors")
    with pytest.raises(UserError, match=r"tensor extra: found shape \(1,\), expected no such tensor"):
        load_state(model, {**before, "extra": torch.zeros(1)}, "x.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
