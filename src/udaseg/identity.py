"""What of the code decides the result of a step: the modules that it imports, by what they say to Python.

The identity of a step is one digest for each module of its import closure. A module's digest is taken from its syntax tree, so
that comments, docstrings, line breaks and annotations of local variables are no part of it, and it is the same under all
versions of Python that this package runs on. Files that lie in a package and are no modules (tables, style sheets, templates)
count with their bytes, for whatever imports a module of that package.

Values of params.yaml are the other half of an identity (`Run.resolved`); docs/workflow.md tells how both tools use it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGE = __package__ or "udaseg"

# What is imported by a step with numbers, but counts by its values: the blocks of params.yaml, typed.
BY_VALUE = ("params", "checking", "recipes", "yaml12")
# What records and shows: no module that decides a number imports it.
RECORDING = (
    *("__init__", "__main__", "cli", "arguments", "commands", "progress"),
    *("engine.training", "engine.provenance", "engine.curves"),
)
# Where each step's closure begins. A method's modules are imported by name while a step runs: `code` is told which.
STEPS = {
    "prepare": ("data.prepare",),
    "train": ("engine.trainer", "engine.history", "models.trained"),
    "evaluate": ("evaluation.evaluate",),
    "analyse": ("analysis.analyse",),
    "compare": ("comparison.compare",),
    "select": ("comparison.compare",),
    "figure": ("figures.draw",),
    "report": ("report.report",),
}


def code(step: str, *modules: str) -> dict[str, str]:
    """File -> digest of all that decides the result of a step.

    Args:
        step: a key of STEPS.
        modules: modules that this step imports by name, as `methods.pipa`, without the package's name.
    """
    files = closure(*STEPS[step], *modules)
    return {name: digest(name) for name in sorted(files)}


def digest_of(found: dict[str, str]) -> str:
    """One digest of many."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def closure(*modules: str) -> set[str]:
    """Files, as paths in the package, of the modules and of all of this package that they import, directly or not.

    Imports inside functions count, those under `if TYPE_CHECKING:` do not. A module that is not there or cannot be parsed is a
    file like any other: the step that imports it will say what is wrong.
    """
    todo, files = [name for module in modules for name in (module, *parents(module))], set()
    while todo:
        module = todo.pop()
        name = file_of(module) or f"{module.replace('.', '/')}.py"
        if name in files or is_free(module):
            continue
        files.add(name)
        todo += imports(name, stamp(name))
    return files | {path for folder in {Path(name).parent for name in files} for path in beside(folder)}


def is_free(module: str) -> bool:
    """Whether a module is no part of any identity."""
    return module in ("", *RECORDING) or module.split(".")[0] in BY_VALUE


def file_of(module: str) -> str | None:
    """`losses.pipa` -> losses/pipa.py, `models` -> models/__init__.py; None where there is no such module."""
    path = Path(*module.split("."))
    found = (name for name in (path / "__init__.py", path.with_suffix(".py")) if (HERE / name).is_file())
    return next((name.as_posix() for name in found), None)


def parents(module: str) -> Iterator[str]:
    """Packages that Python imports before it: `a` and `a.b` of `a.b.c`."""
    while module := module.rpartition(".")[0]:
        yield module


def beside(folder: Path) -> list[str]:
    """Files of a package that are no modules, in folders below it too as long as these are no packages."""
    if folder == Path("."):
        return []
    found = []
    for path in sorted((HERE / folder).iterdir()) if (HERE / folder).is_dir() else ():
        if path.name.startswith((".", "__pycache__")):
            continue
        if path.is_dir():
            found += [] if any(path.rglob("*.py")) else [p for p in sorted(path.rglob("*")) if p.is_file()]
        elif path.suffix != ".py":
            found.append(path)
    return [path.relative_to(HERE).as_posix() for path in found]


# --- one file -------------------------------------------------------------------------------------------------------


def digest(name: str) -> str:
    """Of one file of the package, by its path in it."""
    return _digest(name, stamp(name))


def stamp(name: str) -> tuple[int, int] | None:
    """Tells whether a file has changed while this process runs; None where there is none."""
    try:
        about = (HERE / name).stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size


@functools.cache
def _digest(name: str, version: tuple[int, int] | None) -> str:
    if version is None:
        return "missing"
    data = (HERE / name).read_bytes()
    if name.endswith(".py") and (tree := parse(name, version)) is not None:
        data = "".join(dumped(tree)).encode()
    return hashlib.sha256(data).hexdigest()[:16]


@functools.cache
def parse(name: str, version: tuple[int, int] | None) -> ast.Module | None:
    try:
        return ast.parse((HERE / name).read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None


@functools.cache
def imports(name: str, version: tuple[int, int] | None) -> tuple[str, ...]:
    """Modules of this package that a file imports, with the packages above them."""
    tree = parse(name, version) if name.endswith(".py") else None
    package = [PACKAGE, *Path(name).parent.parts]
    found: list[str] = []
    for node in executed(tree) if tree else ():
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(package[: len(package) - node.level + 1] if node.level else []), node.module or ""])
            base = base.rstrip(".")
            found.append(base)
            found += [f"{base}.{alias.name}" for alias in node.names]
    ours = [module.removeprefix(f"{PACKAGE}.") for module in found if module.startswith(f"{PACKAGE}.")]
    known = [module for module in dict.fromkeys(ours) if file_of(module)]
    return tuple(dict.fromkeys(each for module in known for each in (module, *parents(module))))


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without what only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not is_for_type_checkers(child):
            yield from executed(child)


def is_for_type_checkers(node: ast.AST) -> bool:
    name = node.test if isinstance(node, ast.If) and not node.orelse else None
    return (isinstance(name, ast.Name) and name.id == "TYPE_CHECKING") or (
        isinstance(name, ast.Attribute) and name.attr == "TYPE_CHECKING"
    )


# --- a syntax tree as text, the same under every version of Python -----------------------------------------------------

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def dumped(node: Any, local: bool = False) -> Iterator[str]:
    """Pieces of text that name the node and its fields; empty fields, which versions of Python add, are left out.

    Args:
        node: a node, or a field's value.
        local: whether it stands in a function, where an annotation has no effect.
    """
    if isinstance(node, ast.Constant):
        # ascii: what repr takes for printable depends on the version; the `u` of a text has no meaning
        yield f"{type(node.value).__name__} {node.value!a};"
        return
    if isinstance(node, ast.AnnAssign) and local:
        if node.value is None and isinstance(node.target, ast.Name):
            return
        node = ast.Assign(targets=[node.target], value=node.value) if node.value else ast.Expr(value=node.target)
    yield f"{type(node).__name__}("
    for field, value in fields(node):
        yield f"{field}="
        inside = isinstance(node, FUNCTIONS) or (local and not isinstance(node, ast.ClassDef))
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST):
                yield from dumped(each, inside)
            else:
                yield f"{each!a};"
    yield ")"


def fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    for field, value in ast.iter_fields(node):
        if field in ("type_comment", "ctx", "type_ignores") or value is None or value == []:
            continue
        if field == "body" and isinstance(node, DEFINITIONS) and isinstance(value, list):
            value = without_docstrings(value)
        if isinstance(node, ast.JoinedStr):
            value = joined(value)
        if isinstance(value, list):
            value = [each for each in value if not (isinstance(each, ast.AST) and is_for_type_checkers(each))]
        if value != []:
            yield field, value


def joined(parts: list[ast.expr]) -> list[ast.expr]:
    """Pieces of an f-string; versions of Python differ in whether neighbouring texts are one, and empty ones there at all."""
    out: list[ast.expr] = []
    for part in parts:
        if isinstance(part, ast.Constant) and part.value == "":
            continue
        if isinstance(part, ast.Constant) and out and isinstance(last := out[-1], ast.Constant):
            out[-1] = ast.Constant(str(last.value) + str(part.value))
        else:
            out.append(part)
    return out


def without_docstrings(body: Iterable[ast.stmt]) -> list[ast.stmt]:
    """Statements that are a text alone do nothing, the docstring being the first of them."""
    return [
        s
        for s in body
        if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str))
    ]
