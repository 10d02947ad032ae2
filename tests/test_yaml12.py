"""The reader of YAML: what DVC's reader makes of a file, and one line for what a reader might pass over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import loads_yaml  # type: ignore[attr-defined]

from udaseg import yaml12
from udaseg.errors import UserError

ROOT = Path(__file__).parents[1]
SCALARS = [
    "1e-5",
    "1E5",
    "1e+5",
    "1.e5",
    ".5",
    ".5e3",
    ".5e+3",
    "-.5",
    "+.5",
    "1.",
    "1.5e3",
    "-1e-3",
    "0o17",
    "0o8",
    "017",
    "08",
    "0x1F",
    "-0x1F",
    "0xG",
    "0b101",
    "0b2",
    "1_000",
    "1__0",
    "-_1",
    "_1",
    "1_",
    "1_0.5_0",
    "1_0e5",
    "yes",
    "no",
    "on",
    "off",
    "y",
    "n",
    "Yes",
    "ON",
    "true",
    "True",
    "TRUE",
    "tRue",
    "false",
    "null",
    "Null",
    "~",
    "nUll",
    "1:30",
    "1:30:00",
    "1:30.5",
    ".inf",
    "-.inf",
    "+.INF",
    ".nan",
    ".NaN",
    "-.nan",
    "NaN",
    "inf",
    "<<x",
    "--",
    "+",
    ".",
    "..",
    "...",
    "1-2",
    "1.2.3",
    "12e",
    "1e5.0",
    "0",
    "-0",
    "+0",
    "00",
    "0.0",
    "-0.0",
    "0x",
    "0o",
    "0b",
    "1e",
    "1e400",
    "1e_5",
    "0.1_",
    "1._",
    "10_e5",
    "123abc",
    "é",
    "5é",
    "٣",
    "12345678901234567890",
    "256x128",
    "15188",
    "9007199254740993",
    "camvid/train",
    "2001-1",
    "2001-01-0",
    "'yes'",
    '"1e5"',
    '"\\u00e9"',
]


@pytest.mark.parametrize("parser", {yaml12.PARSER, yaml.SafeLoader}, ids=lambda parser: parser.__name__)
def test_values_are_those_of_dvc(parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml12, "PARSER", parser)
    for scalar in SCALARS:
        for text in (f"a: {scalar}", f"[{scalar}]", f"- {scalar} # comment", f"{{a: {scalar}}}"):
            assert repr(yaml12.parse(text, "file")) == repr(loads_yaml(text)), text
    for text in (
        "a: &x {b: 1, c: 2}\ny: &y {b: 2, e: 3}\nz: {e: 4, <<: [*x, *y], d: 2}\nw: {<<: {b: 5}, b: 6}",
        "a: {'<<': 1}", "? a\n: b", "1: a\n2: b", "# nothing", "a: |\n  1e5\n  x\n", "a: >-\n  b\n  c\n", "a:\n- - 1\n  - 2", "a: 1\r\nb: 2\r\n",
        "%YAML 1.2\n---\na: 0o7\n", "a: &b [1]\nc: [*b, *b]", "\ufeffa: 1",
    ):  # fmt: skip
        assert yaml12.parse(text, "file") == loads_yaml(text), text


@pytest.mark.parametrize(
    "name", ["params.yaml", ".test/params.yaml", "dvc.yaml", "results/reference/superseded.yaml", "environment.yml"]
)
def test_files_are_read_as_dvc_reads_them(name: str) -> None:
    assert yaml12.read(ROOT / name) == loads_yaml((ROOT / name).read_text())


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))])
LADDER = "\n".join(
    ["a0: &a0 [x]", *(f"a{n}: &a{n} {'[' * 40}*a{n - 1}{']' * 40}" for n in range(1, 60))]
)  # each 40 deep, all together 2400


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: found the key `a` twice, first in line 1; delete one"),
        ("x: {lr: 1, lr: 2}", "line 1: found the key `lr` twice, first in line 1"),
        ("x:\n  lr: 1\n  'lr': 2", "line 3: found the key `lr` twice, first in line 2"),
        ("x: {1: a, 0x1: b}", "found the key `1` twice"),
        ("y: &y {b: 1}\nx:\n  <<: *y\n  <<: *y", "line 4: found the key `<<` twice, first in line 3"),
        ("a: &a {b: *a}", "line 1: *a stands inside what it refers to, &a of line 1"),
        ("a:\n  &a\n  - 1\n  - *a", "line 4: *a stands inside"),
        ("a: *b", "line 1: found *b, but no &b before it"),
        (BOMB, "found more than 1000000 values"),
        (LADDER, "line 3: found more than 64 blocks inside one another"),
        ("[" * 100_000, "found more than 64 blocks inside one another"),
        ("a: " + "{a: " * 100, "found more than 64 blocks inside one another"),
        ("- " * 10_000, "found more than 64 blocks inside one another"),
        ("a: !!python/object/apply:os.system [ls]", "found the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !!str 5", "found the tag"),
        ("a: ! 5", "found the tag"),
        ("[1, 2]: 3", "found [1, 2] (list) as a key, expected plain text or an integer"),
        ("{a: 1}: 3", "as a key"),
        ("null: 3", "found None (NoneType) as a key"),
        ("true: 3", "found True (bool) as a key"),
        ("1.5: 3", "found 1.5 (float) as a key"),
        ('"a\\nb": 3', r"found 'a\nb' (text) as a key"),
        ('a: "x\\0y"', r"found 'x\x00y', expected text without NUL"),
        ("a: x\0y", "not valid YAML"),
        ("a: 2001-01-01", "line 1: found 2001-01-01, which readers of YAML take for a date; put it in quotes"),
        ("a: 2001-1-1 10:00:00.5", "take for a date"),
        ("a: =", "put it in quotes"),
        ("a: 0x_", "found '0x_', which is no number"),
        ("a: " + "9" * 5000, "found a number of 5000 characters, expected at most 64"),
        ("a: {<<: 5}", "`<<` takes over the keys of a block"),
        ("a: 1\n---\nb: 2", "line 2: found a second document"),
        ("%YAML 1.1\n---\na: yes", "found %YAML 1.1, expected YAML 1.2"),
        ("a: [", "not valid YAML"),
        ("a: 1\n\tb: 2", "not valid YAML"),
        ("a: b: c", "(line 1)"),
    ],
    ids=lambda text: text[:24] if isinstance(text, str) else None,
)
def test_what_a_reader_might_pass_over_is_one_line(text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in (yaml12.PARSER, yaml.SafeLoader):  # with and without the parser in C
        if parser is yaml.SafeLoader and len(text) > 5000:
            continue  # slow
        monkeypatch.setattr(yaml12, "PARSER", parser)
        with pytest.raises(UserError) as caught:
            yaml12.parse(text, "params.yaml")
        message = str(caught.value)
        assert message.startswith("params.yaml: ") and "\n" not in message and len(message) < 250
        assert words in message


def test_odd_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        yaml12.read(path)
    path.rmdir()
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(UserError, match=r"line 2: found a byte that is no UTF-8"):
        yaml12.read(path)
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(UserError, match="found more than 4 MiB"):
        yaml12.read(path)
    path.write_bytes("a: é\n".encode("utf-16"))
    with pytest.raises(UserError, match="no UTF-8"):
        yaml12.read(path)
