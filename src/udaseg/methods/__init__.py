"""One file per paper. `create` picks it by the run's kind: a block with terms is the self-training step with them."""

from __future__ import annotations

import importlib

from udaseg.methods.base import Method
from udaseg.models import Segmenter
from udaseg.params import Run


def method_class(run: Run) -> type[Method]:
    method: type[Method] = importlib.import_module(f"udaseg.methods.{run.kind}").METHOD
    return method


def create(run: Run, student: Segmenter) -> Method:
    """The method of a run, around its student."""
    return method_class(run)(student, run)
