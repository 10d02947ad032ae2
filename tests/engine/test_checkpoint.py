"""The restart state on its sad paths."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.previous.pt", "state.pt", "step"]
    assert (tmp_path / "step").read_text() == "2\n"  # for whoever looks in from outside


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


def test_a_damaged_newest_does_not_take_the_place_of_the_good_one(tmp_path: Path) -> None:
    """At the next save the newest becomes the one before: were that the damaged one, a crash then would lose all."""
    for k, damage in enumerate((lambda path: path.write_bytes(b"x"), lambda path: (path.unlink(), path.mkdir()))):
        folder = tmp_path / str(k)
        save(folder, 1)
        save(folder, 2)
        damage(folder / "state.pt")
        state = checkpoint.load(folder, PRINT)
        assert state is not None and state["step"] == 1
        save(folder, 3)
        (folder / "state.pt").write_bytes(b"x")
        state = checkpoint.load(folder, PRINT)
        assert state is not None and state["step"] == 1, "the good one is still there"


@pytest.mark.parametrize("damage", ["bytes", "folder", "other content"])
def test_only_damaged_states_are_an_error_whose_advice_works(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "run"
    save(folder, 1)
    path = folder / "state.pt"
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "bytes":
        path.write_bytes(b"x")
    else:
        buffer = io.BytesIO()
        torch.save([1, 2], buffer)
        path.write_bytes(checkpoint.FORMAT + hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(UserError, match=f"cannot be read: .*delete {folder} to train from step 0"):
        checkpoint.load(folder, PRINT)
    shutil.rmtree(folder)
    assert checkpoint.load(folder, PRINT) is None


def test_no_silent_start_from_zero_behind_a_damaged_state(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "state.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"state\.previous\.pt \(belongs to other code\)"):
        checkpoint.load(tmp_path, {**PRINT, "code": "new"})


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


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary name cannot be guessed from the target's and the process's."""
    names = set()
    for _ in range(2):
        with writing(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
            names.add(temporary.name)
    assert len(names) == 2 and not any(str(os.getpid()) == part for name in names for part in name.split("."))


@pytest.mark.parametrize("refusal", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_read_only_checkout_has_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    for call in ("mkdir", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, call, refuse)
            with pytest.raises(UserError, match=r"cannot be written|no space left"), run_lock(tmp_path / "run"):
                pass


def test_a_folder_in_place_of_the_lock(tmp_path: Path) -> None:
    (tmp_path / "run/lock").mkdir(parents=True)
    with pytest.raises(UserError, match="a file lies where a folder belongs"), run_lock(tmp_path / "run"):
        pass


def test_a_folder_serves_one_process(tmp_path: Path) -> None:
    with (
        run_lock(tmp_path / "run"),
        pytest.raises(UserError, match=r"in use by process \d+ on"),
        run_lock(tmp_path / "run"),
    ):
        pass
    with run_lock(tmp_path / "run"):
        pass
