"""Networks and losses of a method by torch.compile (`train.compile`).

Compiled are encoders and heads of student, teacher and frozen reference, the terms' own heads, and the losses that are one graph:
those of the segmenter and what a method or term names in its `one_graph`. Augmentation and sampling draw their numbers
from NumPy on the host and stay outside; so do the parts between, which are few and small. With `max-autotune` each part is one
CUDA graph, which wants equal shapes in every step: crops have them. Whole images have not: `plain`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from udaseg.methods.base import Method, Term
from udaseg.models import Segmenter

BACKEND = "inductor"


def compile_parts(method: Method, how: str) -> None:
    """Compile in place; nothing is compiled before its first call. `how`: `default` or `max-autotune`.

    Names of parameters stay, and averages still write into the tensors that are compiled.
    """
    options: dict[str, Any] = {"backend": BACKEND, "dynamic": False}
    if BACKEND == "inductor" and how != "default":
        options["mode"] = how
    for part in parts(method):
        part.compile(**options)
    named: list[tuple[nn.Module, str]] = [(network, "loss") for network in segmenters(method)]
    named += [(method, name) for name in method.one_graph]
    named += [(term, name) for term in terms(method) for name in term.one_graph]
    for owner, name in named:
        setattr(owner, name, torch.compile(getattr(owner, name), **options))


def segmenters(method: Method) -> list[Segmenter]:
    return [m for root in (method, *getattr(method, "frozen", ())) for m in root.modules() if isinstance(m, Segmenter)]


def terms(method: Method) -> list[Term]:
    return [m for m in method.modules() if isinstance(m, Term)]


def parts(method: Method) -> list[nn.Module]:
    """Encoders, heads, and the terms' modules with parameters."""
    owners = [*segmenters(method), *terms(method)]
    found = [child for owner in owners for child in owner.children() if any(True for _ in child.parameters())]
    return list(
        dict.fromkeys(child for child in found if callable(getattr(child, "forward", None)) and not is_held(child))
    )


def is_held(child: nn.Module) -> bool:
    """An average of a network is called by its `module`, which is compiled itself."""
    return type(child).__name__ == "Averaged"


@contextmanager
def plain(method: Method) -> Iterator[None]:
    """Inside, networks run as they are written: whole images have many sizes, and each would be compiled anew."""
    held = {part: part._compiled_call_impl for part in parts(method)}
    for part in held:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in held.items():
            part._compiled_call_impl = call
