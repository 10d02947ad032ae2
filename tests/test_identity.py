"""What of the code decides a result: edits that change nothing are not seen, all others are; the same under every Python."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from udaseg import identity, params
from udaseg.engine import provenance
from udaseg.recipes import papers
from udaseg.workflow import plan

ROOT = Path(__file__).parents[1]

SAMPLE = '''
"""Doc."""
from __future__ import annotations
import os as o, sys
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from torch import Tensor

@dataclass(frozen=True, order=not 1)
class A(B, metaclass=M):
    """Doc."""
    x: int = 3
    y: str = u"ü\\u2028\\U0001f600"
    async def f(self, a, /, b: float = 1e-07, *c, d=-0.0, **e) -> None:
        """Doc."""
        n: int = 1_000
        m: list[int]
        self.k: int = 0x10
        async with a as b, c: pass
        async for i in g(): await h(i)
        return None

def g(x: int, y=...):
    "only a docstring"

def k(*args):
    global Z
    t = f"{x!r:>{width}.{2}f} and {y=} {{}} {'a' 'b'} {d['k']:%H:%M}" "tail"
    try:
        z = [i ** 2 for i in range(10) if i % 2 if i] or {**a, "b": (yield)}
    except (ValueError, TypeError) as error:
        raise RuntimeError(b"\\x00\\xff", 2j, 10**30) from error
    else:
        del z[1:2, ::3, ...]
    finally:
        lambda q, *, r=1: (q, r) if (s := q) is not None else not r
    match z:
        case {"a": [1, *rest], **more} | A(x=0, y="t") if rest: pass
        case None | -1 | "x" as w: pass
    while a < b <= c != d:
        a @= b; a //= ~c; break
    return {1, 2} , {k: v for k, v in z}, (a for a in b), print(*a, **b)
'''


def digest_of(text: str) -> str:
    import hashlib

    return hashlib.sha256("".join(identity.dumped(ast.parse(text))).encode()).hexdigest()[:16]


def test_the_same_value_under_every_version_of_python() -> None:
    """Stored values, the same under 3.11, 3.12 and 3.13 (compared there, with all files of the package)."""
    assert digest_of(SAMPLE) == "871f4a7644adcefd"
    assert digest_of("") == "ad2e13b69c4fc1fd"


SAME = [
    ("x = 1\n", "x = 1  # why\n\n\n"),
    ("f(a, b)\n", "f(\n    a,\n    b,\n)\n"),
    ('def f():\n    return "a"\n', "def f():\n    'Doc.'\n    return ('a')\n"),
    ("class A:\n    x: int\n", 'class A:\n    """Doc."""\n\n    x: int\n'),
    ("def f():\n    x = 1\n", "def f():\n    x: int = 1\n"),
    ("def f():\n    x = 1\n", "def f():\n    x: int\n    x = 1\n"),
    ("def f(self):\n    self.x = 1\n", "def f(self):\n    self.x: int = 1\n"),
    ("def f():\n    for i in r:\n        x = i\n", "def f():\n    for i in r:\n        x: int = i\n"),
    ("x = 1\n", "from typing import TYPE_CHECKING\n"[:0] + "x = 1\nif TYPE_CHECKING:\n    import a\n"),
    ("x = 'a' 'b'\n", 'x = "ab"\n'),
    ("x = f'a{b}' 'c' f'' f'{d}'\n", "x = f'a{b}c{d}'\n"),
    ("x = 0x10\n", "x = 16\n"),
]
OTHER = [
    ("x = 1\n", "x = 2\n"),
    ("x = 1\n", "x = 1.0\n"),
    ("x = 1\n", "x = True\n"),
    ("x = 0.0\n", "x = -0.0\n"),
    ("x = 'a'\n", "x = b'a'\n"),
    ("class A:\n    x: int = 1\n", "class A:\n    x: float = 1\n"),
    ("class A:\n    x: int = 1\n", "class A:\n    x = 1\n"),
    ("x: int = 1\n", "x: float = 1\n"),
    ("def f(a, b=1): pass\n", "def f(a, *, b=1): pass\n"),
    ("x = a + b\n", "x = a - b\n"),
    ("x = a < b < c\n", "x = a < b <= c\n"),
    ("x = [a, b]\n", "x = [b, a]\n"),
    ("x = {**a, b: c}\n", "x = {b: c, **a}\n"),
    ("def f():\n    x = 1\n    y = 2\n", "def f():\n    y = 2\n    x = 1\n"),
    ("def f():\n    class A:\n        x: int = 1\n", "def f():\n    class A:\n        x: str = 1\n"),
    ("if a:\n    b\nelse:\n    c\n", "if a:\n    b\nc\n"),
    ("x = f'{a}'\n", "x = f'{a!r}'\n"),
    ("async def f(): pass\n", "def f(): pass\n"),
    ("from a import b\n", "from a import b as c\n"),
    ("from .a import b\n", "from ..a import b\n"),
    ("if TYPE_CHECKING:\n    a\nelse:\n    b\n", "if TYPE_CHECKING:\n    a\nelse:\n    c\n"),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_edits_that_change_nothing_are_not_seen(one: str, two: str) -> None:
    assert digest_of(one) == digest_of(two)


@pytest.mark.parametrize(("one", "two"), OTHER)
def test_all_other_edits_are_seen(one: str, two: str) -> None:
    assert digest_of(one) != digest_of(two)


def test_no_two_files_of_the_package_have_one_digest() -> None:
    files = [
        path.relative_to(identity.HERE).as_posix() for path in identity.HERE.rglob("*.py") if path.stat().st_size > 300
    ]
    assert len({identity.digest(name) for name in files}) == len(files) > 90


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in which every kind of import occurs."""
    monkeypatch.setattr(identity, "HERE", tmp_path)
    files = {
        "step.py": "import udaseg.a.b\nfrom udaseg import top\nfrom udaseg.cli import main\nfrom udaseg.params import Run\n",
        "top.py": "def f():\n    from udaseg.late import x\n",
        "late.py": "if TYPE_CHECKING:\n    from udaseg.never import x\n",
        "never.py": "",
        "cli.py": "import udaseg.never\n",
        "params.py": "import udaseg.never\n",
        "a/__init__.py": "from .c import name\n",
        "a/b.py": "from . import c\nfrom ..d import e\n",
        "a/c.py": "import udaseg.a.b\nimport os, numpy\n",
        "a/table.csv": "1\n",
        "a/more/page.html": "<p>",
        "a/__pycache__/b.pyc": "",
        "d/__init__.py": "",
        "d/e.py": "",
        "d/other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_closure_follows_every_import_and_no_other(package: Path) -> None:
    """Cycles, imports inside functions, relative ones, packages above a module, files beside it; not those for type checkers."""
    modules = {"step.py", "top.py", "late.py", "a/__init__.py", "a/b.py", "a/c.py", "d/__init__.py", "d/e.py"}
    assert identity.closure("step") == modules | {"a/table.csv", "a/more/page.html"}


def test_a_file_that_is_missing_or_broken_has_an_identity_too(package: Path) -> None:
    assert identity.digest("nowhere.py") == "missing"
    assert identity.closure("nowhere") == {"nowhere.py"}
    (package / "top.py").write_text("def (")
    before = identity.digest("top.py")
    (package / "top.py").write_text("def )")
    assert identity.digest("top.py") != before
    assert "late.py" not in identity.closure("step")


LOADED = """
import json, os, sys
import matplotlib.pyplot, openTSNE, scipy.ndimage, seaborn, sklearn.metrics, timm, torchvision
assert not [name for name in sys.modules if name.startswith("udaseg")]
for step, modules in json.loads(sys.argv[1]).items():
    sys.stdout.flush()
    if os.fork() == 0:
        for module in modules:
            __import__(module)
        print(step, *(name for name in sys.modules if name.startswith("udaseg.")), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, step
os._exit(0)
"""


def named(step: str) -> list[str]:
    """What the step loads by name."""
    return [f"methods.{name}" for name in papers()] if step in ("train", "evaluate") else []


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """Step -> modules of this package that Python really loads for it, each in a process that has loaded none before."""
    modules = {step: [f"udaseg.{m}" for m in (*roots, *named(step))] for step, roots in identity.STEPS.items()}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(modules)], capture_output=True, text=True, check=True
    )
    return {step: found for step, *found in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize("step", [*identity.STEPS])
def test_a_step_imports_nothing_that_its_identity_lacks(step: str, loaded: dict[str, list[str]]) -> None:
    """What Python really loads, for each paper where the step loads papers by name."""
    found = identity.code(step, *named(step))
    assert len(loaded[step]) > 3
    for module in (name.removeprefix("udaseg.") for name in loaded[step]):
        assert identity.is_free(module) or identity.file_of(module) in found, module
    assert any(name.endswith("errors.py") for name in found)


@pytest.mark.parametrize("step", ["prepare", "train", "evaluate", "analyse"])
def test_no_module_with_numbers_imports_what_only_records_and_shows(step: str) -> None:
    for name in identity.code(step, *(f"methods.{paper}" for paper in papers())):
        imported = identity.imports(name, identity.stamp(name))
        assert not {*imported} & {*identity.RECORDING}, name
        assert "__version__" not in (identity.HERE / name).read_text(), name
    for module in identity.RECORDING:
        assert identity.file_of(module) or module == "__init__", module


def test_a_paper_is_in_the_identity_of_its_own_runs_alone() -> None:
    p = params.load(ROOT / "params.yaml")
    for method in p.methods:
        run = p.resolve("camvid_day2dusk", method, 0)
        own = {*run.method.terms, run.kind, "base", "__init__", "augment"}
        found = {name.split("/")[1][:-3] for name in provenance.code_of(run) if name.startswith("methods/")}
        foreign = found & set(papers()) - own - ({"source_only"} if run.kind == "oracle" else set())
        assert not foreign, (method, foreign)


def test_every_file_is_parsed_once_however_many_runs_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight methods, five seeds, four benchmarks. (Measured: 0.9 s in a process of its own, most of it parsing.)"""
    p = params.load(ROOT / "params.yaml")
    p = dataclasses.replace(
        p, run=dataclasses.replace(p.run, seeds=(0, 1, 2, 3, 4), benchmarks=tuple(p.benchmarks)[:4]), known={}
    )
    monkeypatch.setattr(plan, "of_package", lambda p: "another")  # nothing is kept of it
    for cache in (identity.parse, identity.imports, identity._digest):
        cache.cache_clear()
    parse, parsed = ast.parse, []
    monkeypatch.setattr(
        ast, "parse", lambda text, *more, **options: parsed.append(text) or parse(text, *more, **options)
    )
    texts = [plan.signed(p, "train", b, run.method_name) for b in p.run.benchmarks for run in plan.runs(p, b)]
    assert len(texts) == 160 and len(set(texts)) == 8 * 4 and len(plan.identities(p)) > 100
    assert 50 < len(parsed) <= len(list(identity.HERE.rglob("*.py")))


def test_what_is_kept_for_the_next_process_is_what_it_would_find(
    package: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit anywhere in the package, a damaged file or one that cannot be written: looked at anew."""
    monkeypatch.setitem(identity.STEPS, "prepare", ("step",))
    monkeypatch.chdir(tmp_path_factory.mktemp("workflow"))
    kept = plan.KEPT

    def found() -> dict[str, str]:
        p = dataclasses.replace(params.load(ROOT / ".test" / "params.yaml"), known={})
        assert plan.code(p, "prepare") == plan.code(p, "prepare") == identity.code("prepare")
        return plan.code(p, "prepare", "d.other")

    before = found()
    assert not kept.exists()  # nothing is made where Snakemake has no folder
    kept.parent.mkdir()
    assert found() == before
    assert len(json.loads(kept.read_text())["code"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(plan.identity, "digest", lambda name: "looked at")  # for the comparison in `found` too
        with pytest.raises(AssertionError):
            found()
    for name, text in (("late.py", "x = 1\n"), ("a/more/page.html", "<br>"), ("d/new.py", ""), ("late.py", "")):
        (package / name).write_text(text)
        found()
    for damage in ("", "[]", "{", '{"package": 3}', kept.read_text()[:-9]):
        kept.write_text(damage)
        assert found()["late.py"] == before["late.py"]
    kept.unlink()
    kept.mkdir()
    assert found() != before


def test_the_written_identity_is_not_touched_where_it_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = params.load(ROOT / ".test" / "params.yaml")
    monkeypatch.chdir(tmp_path)
    plan.write_identities(p)
    path = tmp_path / "results/.identity/streets/self_training/train.json"
    before, text = path.stat().st_mtime_ns, path.read_text()
    (path.parent / "old.json").write_text("{}")
    time.sleep(0.01)
    plan.write_identities(p)
    assert (path.stat().st_mtime_ns, path.read_text()) == (before, text)
    assert not (path.parent / "old.json").exists()


def test_an_upgraded_package_makes_nothing_stale_and_run_json_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torchvision

    p = params.load(ROOT / ".test" / "params.yaml")
    before = plan.identities(p), p.resolve("streets", "self_training", 0).hash
    for package in (torch, torchvision):
        monkeypatch.setattr(package, "__version__", "99.0")
    assert (plan.identities(p), p.resolve("streets", "self_training", 0).hash) == before
    versions = provenance.machine(torch.device("cpu"))["versions"]
    assert versions["torch"] == versions["torchvision"] == "99.0"
