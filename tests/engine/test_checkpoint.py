"""The restart state on its sad paths."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from udaseg.artifacts import run_lock, writing
from udaseg.engine import checkpoint
from udaseg.errors import UserError

PRINT = {"parameters": "p", "code": "c", "data": "d"}


def save(folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder, {"step": step, "weights": {"w": torch.arange(100.0) + step}}, PRINT)


def test_newest_comes_back(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, PRINT) is None
    save(tmp_path, 1)
    save(tmp_path, 2)
    state = checkpoint.load(tmp_path, PRINT)
    assert state is not None and state["step"] == 2 and torch.equal(state["weights"]["w"], torch.arange(100.0) + 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.previous.pt", "state.pt"]


@pytest.mark.parametrize("damage", ["empty", "half", "tail", "flip", "foreign"])
def test_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "state.pt"
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "empty": b"",
            "half": data[:middle],
            "tail": data[:-1],
            "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "foreign": b"something else",
        }[damage]
    )
    state = checkpoint.load(tmp_path, PRINT)
    assert state is not None and state["step"] == 1


def test_only_damaged_states_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "state.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path, PRINT)


def test_other_fingerprint_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    with caplog.at_level("INFO", "udaseg"):
        assert checkpoint.load(tmp_path, {**PRINT, "code": "new"}) is None
    assert "other code: ignored" in caplog.text


@pytest.mark.parametrize("where", ["first", "later"])
def test_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "later":
        save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="no space left"):
        save(tmp_path, 2)
    monkeypatch.undo()
    state = checkpoint.load(tmp_path, PRINT)
    assert (state is None) if where == "first" else (state is not None and state["step"] == 1)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]


def test_writing_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), writing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_serves_one_process(tmp_path: Path) -> None:
    with (
        run_lock(tmp_path / "run"),
        pytest.raises(UserError, match=r"in use by process \d+ on"),
        run_lock(tmp_path / "run"),
    ):
        pass
    with run_lock(tmp_path / "run"):
        pass
