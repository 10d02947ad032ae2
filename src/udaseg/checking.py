"""Plain data, as YAML gives it, checked against dataclasses: every mistake is a UserError of one line.

A class with a `parse` method is written as one text; its attribute `written` tells how. What a number may be stands beside its
type: `lr: Annotated[float, Range(above=0)]`, or one of the names below (`Weight`, `Share` ...).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from udaseg.errors import UserError

LONGEST = 100  # characters of a value in a message


@dataclass(frozen=True)
class Range:
    """Bounds of a number: `least` and `most` may be reached, `above` and `below` may not."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {self.least} to {self.most}"
        words = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        found = [f"{word} {bound}" for word, bound in words.items() if bound is not None]
        return " and ".join(found[:1] + [each.removeprefix("of ") for each in found[1:]])


@dataclass(frozen=True)
class Ascending:
    """Of a pair: the first is not above the second."""

    def holds(self, value: tuple[float, float]) -> bool:
        return value[0] <= value[1]

    def __str__(self) -> str:
        return ", the smaller first"


LARGEST_SEED = 2**64 - 1  # of torch's generators
Seed = Annotated[int, Range(least=0, most=LARGEST_SEED)]
Count = Annotated[int, Range(least=1, most=10**9)]
Width = Annotated[int, Range(least=1, most=8192)]  # channels
Weight = Annotated[float, Range(least=0)]  # of a loss; 0: off
Share = Annotated[float, Range(least=0, most=1)]  # a fraction, a probability
Positive = Annotated[float, Range(above=0)]
Ratio = Annotated[float, Range(above=0, most=1)]  # a share that cannot be nothing
Temperature = Annotated[float, Range(least=1e-6)]  # of sampling: less overflows
Hue = Annotated[float, Range(least=0, most=0.5)]  # in turns
# range of a random factor on an image's sides
Factors = Annotated[
    tuple[Annotated[float, Range(above=0, most=16)], Annotated[float, Range(above=0, most=16)]], Ascending()
]


def keys_of(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Key -> type, with the ranges."""
    return typing.get_type_hints(cls, include_extras=True)


def shown(value: Any) -> str:
    """A value in a message, cut short where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def nearest(name: str, known: typing.Iterable[str]) -> str:
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name)[:LONGEST], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"


def lookup(table: typing.Mapping[str, Any], name: str, what: str, where: str = "") -> Any:
    if name not in table:
        prefix = f"params.yaml: {where}: " if where else ""
        raise UserError(f"{prefix}unknown {what} {shown(name)}{nearest(name, table)}")
    return table[name]


def reject_unknown(block: typing.Mapping[Any, Any], known: list[str], where: str) -> None:
    for key in block:
        if key not in known:
            raise UserError(f"{where}: unknown key {shown(key)}{nearest(str(key), known)}")


def build(cls: type, block: Any, where: str) -> Any:
    """An instance of dataclass `cls` from a mapping; `where` is the path shown in errors."""
    if not isinstance(block, dict):
        raise UserError(
            f"params.yaml: {where}: found {shown(block)}, expected a block with keys {', '.join(keys_of(cls))}"
        )
    hints = hints_of(cls)
    reject_unknown(block, list(hints), f"params.yaml: {where}")
    values = {}
    for f in dataclasses.fields(cls):
        if f.name in block:
            values[f.name] = convert(hints[f.name], block[f.name], f"{where}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"params.yaml: {where}: key `{f.name}` is missing")
    return cls(**values)


def essential(value: Any) -> Any:
    """A block as plain data, without what equals its declared default; nested blocks too.

    Numbers are of their declared type (1 and 1.0 are one value of a float), what is written as one text stays text.
    """
    if hasattr(type(value), "parse"):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {
            f.name: essential(getattr(value, f.name)) for f in dataclasses.fields(value) if not is_default(value, f)
        }
    if isinstance(value, dict):
        return {key: essential(each) for key, each in value.items()}
    return [essential(each) for each in value] if isinstance(value, list | tuple) else value


def is_default(block: Any, field: dataclasses.Field[Any]) -> bool:
    value = getattr(block, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return field.default is not dataclasses.MISSING and value == field.default


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that the annotation says, or a UserError that names found and expected."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)

    def wrong(hope: str = "") -> UserError:
        return UserError(f"params.yaml: {where}: found {shown(value)}, expected {describe(hint)}{hope}")

    if hint is Any:
        return value
    if origin is Annotated:
        try:
            found = convert(args[0], value, where)
        except UserError:
            if args[0] in (int, float):
                raise wrong() from None
            raise
        if not all(rule.holds(found) for rule in args[1:]):
            raise wrong()
        return found
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = None
        for option in (a for a in args if a is not type(None)):
            try:
                return convert(option, value, where)
            except UserError as error:
                inner = error if len(args) == 2 and typing.get_origin(option) is not Literal else None
        raise inner or wrong()
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise wrong(nearest(str(value), args))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong()
        if args[-1] is Ellipsis:
            return tuple(convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise wrong()
        return tuple(convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong()
        return {convert(args[0], k, where): convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hasattr(hint, "parse"):  # written as one text, as 512x256
        return hint.parse(value, f"params.yaml: {where}")
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise wrong() from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise wrong()
    if hint is float and not abs(value) < float("inf"):
        raise wrong()
    return value


def describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{describe(args[0])} {' '.join(map(str, args[1:]))}".replace(" ,", ",")
    if origin is Literal:
        return " or ".join(str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe(a) for a in args)
    if origin is tuple:
        inner = describe(args[0])
        return f"a list of {inner}" if args[-1] is Ellipsis else f"a list of {len(args)} x {inner}"
    if origin is dict:
        return f"a block {describe(args[0])}: {describe(args[1])}"
    names = {
        Any: "any value",
        int: "an integer",
        float: "a number",
        str: "text",
        bool: "true or false",
    }
    return names.get(hint) or getattr(hint, "written", None) or f"a block with keys {', '.join(keys_of(hint))}"
