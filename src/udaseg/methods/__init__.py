"""One file per paper. `create` picks it by the method's name: `sepico-off` is built by sepico.py."""

from __future__ import annotations

import importlib

from udaseg.methods.base import Method
from udaseg.models import Segmenter
from udaseg.params import Run


def create(run: Run, student: Segmenter) -> Method:
    """The method of a run, around its student."""
    method: Method = importlib.import_module(f"udaseg.methods.{run.kind}").METHOD(student, run)
    return method
