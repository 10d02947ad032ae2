"""One file per paper. `create` picks it by the run's kind: a block with terms is the self-training step with them."""

from __future__ import annotations

import importlib
from typing import Any

from udaseg.errors import UserError
from udaseg.methods.base import Method
from udaseg.models import Segmenter
from udaseg.params import Run
from udaseg.recipes import first_line


def load(paper: str, what: str) -> Any:
    """METHOD or TERM, the class that a paper's file ends with.

    Raises:
        UserError: the file is missing, cannot be imported or does not name the class.
    """
    path = f"src/udaseg/methods/{paper}.py"
    try:
        return getattr(importlib.import_module(f"udaseg.methods.{paper}"), what)
    except ModuleNotFoundError as error:
        if error.name != f"udaseg.methods.{paper}":
            raise UserError(f"{path} cannot be imported: {first_line(error)}") from error
        raise UserError(f"{path}: not found; the recipe of {paper} belongs to a class there, {what}") from None
    except AttributeError as error:
        raise UserError(
            f"{path}: found no {what} in it ({first_line(error)}); its last line names the class"
        ) from error
    except Exception as error:  # a stranger's file may fail in any way
        raise UserError(f"{path} cannot be imported: {first_line(error)}") from error


def method_class(run: Run) -> type[Method]:
    method: type[Method] = load(run.kind, "METHOD")
    return method


def create(run: Run, student: Segmenter) -> Method:
    """The method of a run, around its student."""
    return method_class(run)(student, run)
