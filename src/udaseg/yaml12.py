"""The one reader of YAML: version 1.2, as DVC reads the same file, and strict.

PyYAML's own reader follows YAML 1.1: there `1e-5` is text, `0o17` is text, `yes` is true and `1:30` is 90. Here its parser gives
the events, and values are made of them as DVC's reader does (tests/test_yaml12.py compares the two). What a reader might pass
over in silence is refused: a key that stands twice, tags, dates, keys that are neither text nor integers, documents behind the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

from udaseg.errors import UserError

LARGEST_FILE = 4 * 2**20  # bytes
MOST_VALUES = 10**6  # with every alias written out
DEEPEST = 64  # blocks in blocks
LONGEST_NUMBER = 64  # characters
PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it: a tenth of the time

WORDS = {
    word: value for value, name in ((True, "true"), (False, "false")) for word in (name, name.title(), name.upper())
}
NOTHING = ("", "~", "null", "Null", "NULL")
FIRST = frozenset("-+.0123456789")  # of whatever is not text, words apart
INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9_]+)")
NUMBER = re.compile(
    r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|[-+]?\.[0-9_]+(?:[eE][-+][0-9]+)?"
)
SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}.*"
)
BASES = {"0b": 2, "0o": 8, "0x": 16}
MERGE = object()  # the key `<<`


def read(path: Path) -> Any:
    """What a YAML file says, as dictionaries, lists, texts, numbers, booleans and None.

    Raises:
        FileNotFoundError: no such file.
        UserError: it cannot be read, is too large, no UTF-8, no YAML, or says something that is refused (see above).
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected a parameter file like params.yaml"
        ) from None
    if len(data) > LARGEST_FILE:
        raise UserError(
            f"{path}: found more than {LARGEST_FILE // 2**20} MiB, expected a parameter file like params.yaml"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: found a byte that is no UTF-8; save the file as UTF-8") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Any:
    """The same of a text; `where` begins every message.

    Raises:
        UserError: see `read`.
    """
    try:
        return _Reader(text, where).document()
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{where}: not valid YAML: {_one_line(error.problem or error.context)}{line}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {_one_line(error)}") from None


def compose(text: str) -> yaml.MappingNode:
    """Keys and values of a file that has been read before, with their places in the text."""
    return cast(yaml.MappingNode, yaml.compose(text, Loader=yaml.SafeLoader))


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


class _Reader:
    """Builds values from the parser's events."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=PARSER))
        self.count = 0  # of values so far, aliases written out
        self.reached = 0  # the deepest block so far of the anchor under way
        self.anchors: dict[str, tuple[Any, int, int]] = {}  # name -> value, how many values it holds, how deep
        self.open: dict[str, int] = {}  # name -> line of an anchor whose value is not complete

    def refuse(self, event: Any, text: str) -> NoReturn:
        raise UserError(f"{self.where}: line {event.start_mark.line + 1}: {text}")

    def document(self) -> Any:
        next(self.events)  # the stream begins
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        version = getattr(event, "version", None)
        if version not in (None, (1, 2)):
            self.refuse(event, f"found %YAML {version[0]}.{version[1]}, expected YAML 1.2; delete that line")
        value = self.value(next(self.events), 0)
        next(self.events)  # the document ends
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            self.refuse(event, "found a second document, expected one; delete the line `---`")
        return value

    def value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, depth)
        if event.tag is not None:
            self.refuse(event, f"found the tag {event.tag!r}, expected plain values; delete it")
        self.down(event, depth)
        before, outside = self.count, self.reached
        if event.anchor is not None:
            self.open[event.anchor] = event.start_mark.line + 1
            self.reached = depth
        self.more(event, 1)
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            value = self.mapping(depth + 1)
        else:
            value = []
            while not isinstance(entry := next(self.events), yaml.SequenceEndEvent):
                value.append(self.value(entry, depth + 1))
        if event.anchor is not None:
            self.open.pop(event.anchor, None)  # gone where the value itself had an anchor of this name
            self.anchors[event.anchor] = (value, self.count - before, self.reached - depth)
            self.reached = max(self.reached, outside)
        return value

    def down(self, event: Any, depth: int) -> None:
        self.reached = max(self.reached, depth)
        if depth > DEEPEST:
            self.refuse(event, f"found more than {DEEPEST} blocks inside one another")

    def more(self, event: yaml.Event, values: int) -> None:
        self.count += values
        if self.count > MOST_VALUES:
            self.refuse(event, f"found more than {MOST_VALUES} values, with every alias written out")

    def alias(self, event: Any, depth: int) -> Any:
        name = event.anchor
        if name in self.open:
            self.refuse(event, f"*{name} stands inside what it refers to, &{name} of line {self.open[name]}")
        if name not in self.anchors:
            self.refuse(event, f"found *{name}, but no &{name} before it")
        value, size, height = self.anchors[name]
        self.more(event, size)
        self.down(event, depth + height)
        return value

    def mapping(self, depth: int) -> dict[str | int, Any]:
        """A block; what `<<` merges stands before its own keys, which win."""
        own: dict[str | int, Any] = {}
        merged: dict[str | int, Any] = {}
        lines: dict[object, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            is_merge = isinstance(event, yaml.ScalarEvent) and event.value == "<<" and not event.style
            key = MERGE if is_merge else self.key(event, depth)
            line = event.start_mark.line + 1
            if key in lines:
                self.refuse(
                    event,
                    f"found the key `{event.value if is_merge else key}` twice, first in line {lines[key]}; delete one",
                )
            lines[key] = line
            value = self.value(next(self.events), depth)
            if is_merge:
                blocks = value if isinstance(value, list) else [value]
                if not all(isinstance(block, dict) for block in blocks):
                    self.refuse(event, "`<<` takes over the keys of a block, as in `<<: *name`; found something else")
                for block in reversed(blocks):
                    merged |= block
            else:
                own[cast("str | int", key)] = value
        return merged | own

    def key(self, event: Any, depth: int) -> str | int:
        key = self.value(event, depth)
        if type(key) not in (str, int) or (isinstance(key, str) and not key.isprintable()):
            kind = "text" if isinstance(key, str) else type(key).__name__
            self.refuse(event, f"found {_short(key)} ({kind}) as a key, expected plain text or an integer")
        return cast("str | int", key)

    def scalar(self, event: yaml.ScalarEvent) -> Any:
        text: str = event.value
        if event.style:  # in quotes, or a block of lines
            return self.text(event, text)
        if text in WORDS:
            return WORDS[text]
        if text in NOTHING:
            return None
        if text[0] in FIRST:
            if INTEGER.fullmatch(text) and text[0] != ".":
                return self.number(event, text, integer=True)
            if NUMBER.fullmatch(text) or SPECIAL.fullmatch(text):
                return self.number(event, text, integer=False)
            if DATE.fullmatch(text):
                self.refuse(event, f"found {text}, which readers of YAML take for a date; put it in quotes")
        if text == "=":
            self.refuse(event, "found =, which readers of YAML take for a sign of its own; put it in quotes")
        return self.text(event, text)

    def text(self, event: yaml.ScalarEvent, text: str) -> str:
        if "\0" in text or (not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)):
            self.refuse(event, f"found {_short(text)}, expected text without NUL")
        return text

    def number(self, event: yaml.ScalarEvent, text: str, *, integer: bool) -> int | float:
        if len(text) > LONGEST_NUMBER:
            self.refuse(event, f"found a number of {len(text)} characters, expected at most {LONGEST_NUMBER}")
        plain = text.replace("_", "").lower()
        sign, digits = (plain[0], plain[1:]) if plain[:1] in ("-", "+") else ("", plain)
        try:
            if not integer:
                return float(sign + (digits[1:] if digits in (".inf", ".nan") else digits))
            base = BASES.get(digits[:2], 10)
            return int(sign + (digits if base == 10 else digits[2:]), base)
        except ValueError:
            self.refuse(event, f"found {text!r}, which is no number; put it in quotes if it is text")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
