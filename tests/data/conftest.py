"""Tests of data preparation never see the mirror unless they ask for it."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def without_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UDASEG_MIRROR", raising=False)
