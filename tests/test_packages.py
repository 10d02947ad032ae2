"""Wheel and source package: built without a network, installed into an empty folder, and used from there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import udaseg
from tiny_project import ROOT

PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
ALONE = ("--no-deps", "--no-index")


def run(*words: str | Path, at: Path, path: Path | None = None, expect: int = 0) -> str:
    """Output of this Python; `path` is where it looks for udaseg first."""
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("PIP_")
    }
    roads = [str(path)] if path else [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment["PYTHONPATH"] = os.pathsep.join(roads)
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source package, and the wheel that is made from it."""
    assert int(version("setuptools").split(".")[0]) >= 77, (
        "this environment is older than requirements.lock: make install"
    )
    folder = tmp_path_factory.mktemp("packages")
    tree = folder / "tree"
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in tracked:
        if (name.startswith(("src/", "tests/")) or "/" not in name) and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    run("-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})", at=tree)
    (source,) = folder.glob("*.tar.gz")
    run(*PIP, "wheel", "--no-build-isolation", *ALONE, "--wheel-dir", folder, source, at=folder)
    return folder


def files_of_the_package() -> set[str]:
    found = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "src"], capture_output=True, text=True, check=True)
    return {name.removeprefix("src/") for name in found.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_both_hold_every_file_of_the_package_and_no_test(packages: Path) -> None:
    (wheel,), (source,) = packages.glob("*.whl"), packages.glob("*.tar.gz")
    assert wheel.name == f"udaseg-{udaseg.__version__}-py3-none-any.whl"
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in inside if ".dist-info/" not in name} >= files_of_the_package()
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {f"src/{name}" for name in files_of_the_package()} | {"README.md", "LICENSE", "pyproject.toml"}
    assert not [name for name in (*inside, *names) if re.match(r"(src/)?tests?/", name) or name.endswith(".pyc")]


def test_it_works_where_it_is_installed_alone(packages: Path, tmp_path: Path) -> None:
    home, (wheel,) = tmp_path / "home", packages.glob("*.whl")
    run(*PIP, "install", *ALONE, "--target", home, wheel, at=tmp_path)
    bare = f"import sys; sys.path.insert(0, {str(home)!r}); import udaseg; print(udaseg.__version__, udaseg.__file__)"
    said = run("-I", "-S", "-c", bare, at=tmp_path)  # no package of anybody
    assert said.split() == [udaseg.__version__, str(home / "udaseg/__init__.py")]
    assert run("-m", "udaseg", "--version", at=tmp_path, path=home).split()[-1] == udaseg.__version__
    assert "steps of the pipeline" in run("-m", "udaseg", "--help", at=tmp_path, path=home)
    assert (home / "bin/udaseg").is_file()
    code = """
from importlib import resources
from udaseg.comparison import published
from udaseg.figures import style
from udaseg.report import report
for name in ("template.html", "style.css", "script.js", *(f"captions/{name}.rst" for name in report.FIGURES)):
    assert report.read_text(name), name
with style.style():
    assert (resources.files("udaseg") / "comparison/published.csv").is_file()
print(published.__file__)
"""
    said = run("-c", code, at=tmp_path, path=home)
    assert said.strip() == str(home / "udaseg/comparison/published.py")
