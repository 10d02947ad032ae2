"""Restart state: one file, complete or absent, tied to what made it.

It lies in an undeclared folder, because both workflow tools delete declared outputs before a job runs. Since it would also
outlive a change of parameters, code or data, it carries a fingerprint; a state with another one is ignored with a message.
The state before the newest is kept until the newest has been written. Beside them a line of text tells, to whoever looks in
from outside, how far the newest is.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch

from udaseg import ranks
from udaseg.artifacts import STEP, changing, write_text, writing
from udaseg.errors import UserError

FORMAT = b"udaseg-restart-1\n"
log = logging.getLogger("udaseg")


def save(folder: Path, state: dict[str, Any], fingerprint: dict[str, str]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dictionaries) as the newest of `folder`."""
    buffer = io.BytesIO()
    torch.save({"fingerprint": fingerprint, **state}, buffer)
    payload = buffer.getbuffer()
    newest = folder / "state.pt"
    with writing(newest) as temporary:
        with temporary.open("wb") as handle:
            handle.write(FORMAT + hashlib.sha256(payload).digest())
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        if newest.exists():
            os.replace(newest, folder / "state.previous.pt")
    write_text(folder / STEP, f"{state['step']}\n")


def load(folder: Path, fingerprint: dict[str, str]) -> dict[str, Any] | None:
    """The newest readable state with this fingerprint; None where there is none to go on from.

    Raises:
        UserError: the newest cannot be read, and none before it serves (never a silent start from zero).
    """
    newest = folder / "state.pt"
    damaged = []
    for path in (newest, folder / "state.previous.pt"):
        if not os.path.lexists(path):
            continue
        try:
            state = _read(path)
        except (OSError, ValueError) as error:
            damaged.append(f"{path} ({error.strerror if isinstance(error, OSError) else error})")
            continue
        found = state.pop("fingerprint")
        if found != fingerprint:
            changed = ", ".join(key for key in fingerprint if found.get(key) != fingerprint[key])
            if damaged:  # of these parameters, as likely as not
                damaged.append(f"{path} (belongs to other {changed})")
                continue
            log.info("%s belongs to other %s: ignored, training starts at step 0", path, changed)
            return None
        if damaged:
            log.info("%s is damaged; going on from %s", damaged[0], path)
            if ranks.rank() == 0:  # out of the way of the next save, which would put it in the place of the good one
                with changing(newest):
                    if newest.is_dir():
                        os.replace(newest, folder / "state.damaged")
                    else:
                        newest.unlink(missing_ok=True)
        return state
    if damaged:
        raise UserError(
            f"restart state cannot be read: {'; '.join(damaged)}; expected a state saved by udaseg train; "
            f"delete {folder} to train from step 0"
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            if handle.read(len(FORMAT)) != FORMAT:
                raise ValueError("not a restart state")
            digest, payload = handle.read(32), handle.read()
    except OSError as error:  # a folder, or a file of another user
        raise ValueError(str(error.strerror)) from None
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("incomplete or altered")
    try:
        state = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except Exception as error:  # of pickle, zipfile or torch, which share no type
        raise ValueError(" ".join(str(error).split())[:200]) from None
    if not isinstance(state, dict) or not isinstance(state.get("fingerprint"), dict):
        raise ValueError("not a restart state")
    return state
