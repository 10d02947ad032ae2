"""Every oracle of the list has a test of its name: one that is dropped or renamed is missed here."""

from __future__ import annotations

import re

from tiny_project import ROOT

TESTS = ROOT / "tests"


def test_every_oracle_has_its_test() -> None:
    lines = [line.split() for line in (TESTS / "oracles.txt").read_text().splitlines() if not line.startswith("#")]
    wanted = {(method, number) for method, *numbers in lines for number in numbers}
    methods = "|".join(method for method, *_ in lines)
    pattern = re.compile(rf"^def test_({methods})_([a-z]?[0-9]+[a-z]?(?:_[0-9]+)?)(?=[_(])", re.MULTILINE)
    found = {match for path in TESTS.rglob("test_*.py") for match in pattern.findall(path.read_text())}
    assert found == wanted, f"without a test: {sorted(wanted - found)}; not in oracles.txt: {sorted(found - wanted)}"
