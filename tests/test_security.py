"""Nothing that is read is run; words of commands are quoted; temporary files cannot be guessed."""

from __future__ import annotations

import ast
import hashlib
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tiny_project import RAW, ROOT, Project
from udaseg import artifacts, cli, params
from udaseg.engine import checkpoint
from udaseg.errors import UserError
from udaseg.models import build_model, load_encoder_weights

SOURCES = sorted((ROOT / "src/udaseg").rglob("*.py"))
NAMES = [
    "<img src=x onerror=alert(1)>",
    "$(touch x)",
    "`touch x`",
    "; touch x #",
    "a 'b' \"c\"",
    "-rf",
    "a&b|c>d",
    "é\\n*?",
]


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Hostile()))  # a stand-in that does nothing would prove nothing
    os.rmdir("owned")
    return tmp_path


# --- nothing is run -------------------------------------------------------------------------------------------------


def test_a_restart_state_runs_nothing(here: Path) -> None:
    torch.save({"fingerprint": {}, "step": Hostile()}, "payload")
    payload = Path("payload").read_bytes()
    Path("state.pt").write_bytes(checkpoint.FORMAT + hashlib.sha256(payload).digest() + payload)
    with pytest.raises(UserError, match="restart state cannot be read"):
        checkpoint.load(here, {})
    assert not Path("owned").exists()


@pytest.mark.parametrize("form", ["torch", "pickle", "legacy"])
def test_encoder_weights_run_nothing(here: Path, form: str) -> None:
    content = {"state_dict": {"weight": Hostile()}}
    if form == "pickle":
        Path("encoder.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, "encoder.pth", _use_new_zipfile_serialization=form == "torch")
    block = RAW["benchmarks"]["streets"] | {}
    block = {**block, "model": {**block["model"], "weights": "encoder.pth"}}
    p = params.parse({**RAW, "benchmarks": {"streets": block}})
    model = p.benchmarks["streets"].model
    with pytest.raises(UserError, match=r"could run code and is not opened|no readable PyTorch file") as caught:
        load_encoder_weights(build_model(model, 19), model, "imagenet")
    assert "\n" not in str(caught.value)
    assert not Path("owned").exists()


def test_arrays_with_objects_are_refused(here: Path) -> None:
    np.savez("tsne.npz", map=np.array([Hostile()], dtype=object))
    with np.load("tsne.npz") as arrays, pytest.raises(ValueError, match="allow_pickle"):
        arrays["map"]
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir [owned]", "!!python/name:os.mkdir", "!!python/tuple [1]", "!!python/module:os"],
)
def test_tags_of_yaml_make_nothing(here: Path, tag: str) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(RAW) + f"x: {tag}\n")
    with pytest.raises(UserError) as caught:
        params.load()
    assert "\n" not in str(caught.value) and not Path("owned").exists()


def test_no_module_can_run_what_it_reads() -> None:
    """Calls that would: any reader of pickles but torch's safe one, YAML with tags, code from text, a shell."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            wrong = (
                name
                in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "shelve.open", "__import__")
                or name.startswith("marshal.")
                or (name == "torch.load" and words.get("weights_only") != "True")
                or (name in ("yaml.load", "yaml.full_load", "yaml.unsafe_load") and "Safe" not in ast.unparse(node))
                or (name == "np.load" and words.get("allow_pickle", "False") != "False")
                or words.get("shell") == "True"
                or (name.endswith(("extractall", "tarfile.extract")))
                or name == "tempfile.mktemp"
            )
            if wrong:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not found


# --- words of commands ----------------------------------------------------------------------------------------------


def test_every_word_of_a_rule_is_quoted() -> None:
    """What Snakemake puts into a command goes through its `:q`, whatever the rule for names lets through."""
    bare = []
    shells = 0
    for path in [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]:
        for block in re.findall(r"^    shell:\n((?: {8}.*\n)+)", path.read_text(), re.M):
            shells += 1
            words = re.findall(r"(?<!\{)\{([^{}]+)\}(?!\})", block)
            numbers = ("resources.gpu", "threads")
            bare += [f"{path.name}: {word}" for word in words if not word.endswith(":q") and word not in numbers]
    assert shells >= 8 and not bare


def test_a_real_shell_takes_what_new_target_prints(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """Photographs in folders and files of such names, from `new-target` to labels, by the commands as printed."""
    tools = project.folder / "tools"
    tools.mkdir()
    for tool in ("snakemake", "udaseg"):  # what they are given, word by word
        (tools / tool).write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {tools}/{tool}.words\n')
        (tools / tool).chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    made = model_of(project.folder / "other")
    for number, name in enumerate(NAMES):
        photos = f"album/{name}"
        Path(photos).mkdir(parents=True)
        Image.new("RGB", (96, 72), (90, 120, 150)).save(f"{photos}/{name}.png")
        capfd.readouterr()
        assert cli.main(["new-target", photos, "--name", f"mine{number}"]) == 0
        commands = capfd.readouterr().out.partition("next:\n")[2]
        assert yaml.safe_load(Path("params.yaml").read_text())["datasets"][f"mine{number}"]["root"] == photos
        subprocess.run(["bash", "-eu", "-c", commands], env=environment, check=True, timeout=60)
        (target,), words = ((tools / f"{tool}.words").read_text().split("\0")[:-1] for tool in ("snakemake", "udaseg"))
        Path(target).parent.mkdir(parents=True)
        shutil.copy(made, target)
        assert words[:3] == ["predict", target, photos]
        assert cli.main(words) == 0
        assert [path.name for path in Path(f"mine{number}-labels/ids").iterdir()] == [f"{name}.png"]
        assert cli.main(["prepare", "--benchmark", f"mine{number}", "--jobs", "1"]) == 0
    assert not [path for path in project.folder.rglob("*") if path.name in ("x", "owned")]


def model_of(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests/deploy"))
    try:
        from tiny_model import write_model
    finally:
        sys.path.pop(0)
    return write_model(folder)


# --- what is said ---------------------------------------------------------------------------------------------------


def test_a_name_cannot_steer_the_terminal_or_begin_a_new_line(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "a\nudaseg prepare: all is well\x1b[2J\x1b[31m\u202e\x9b"
    project.set("datasets/mine", {"format": "folder", "root": name})
    capfd.readouterr()
    assert cli.main(["prepare", "mine", "--size", "16x8", "--jobs", "1"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.isprintable() and r"no folder a\nudaseg prepare: all is well\x1b[2J\x1b[31m\u202e\x9b" in line


def test_a_terminal_that_lacks_a_letter_stops_nothing(project: Project) -> None:
    names = ["é", "\udcff"]  # the second is a byte that is no UTF-8
    for number, name in enumerate(names):
        Path(name).mkdir()
        Image.new("RGB", (96, 72)).save(Path(name, "a.png"))
        done = project.udaseg("predict", "--out", "labels", "nowhere", name, PYTHONIOENCODING="ascii")
        assert done.returncode == 2 and "found nothing at nowhere" in done.stderr
        if number == 0:
            done = project.udaseg("new-target", name, "--name", "mine", PYTHONIOENCODING="ascii")
            assert done.returncode == 0 and r"\xe9" in done.stdout


# --- temporary files ------------------------------------------------------------------------------------------------


def test_a_file_in_the_making_has_no_name_that_can_be_guessed(here: Path) -> None:
    seen = set()
    for _ in range(2):
        with artifacts.writing(Path("metrics.json")) as temporary:
            temporary.write_text("{}")
            seen.add(temporary.name)
            shown = temporary.name.removeprefix(".metrics.json.").removesuffix(".part")
            assert str(os.getpid()) != shown and len(shown) >= 8
    assert len(seen) == 2 and [path.name for path in here.iterdir()] == ["metrics.json"]


def test_a_planted_link_is_replaced_and_not_followed(here: Path) -> None:
    Path("victim").write_text("mine")
    Path("metrics.json").symlink_to("victim")
    artifacts.write_json(Path("metrics.json"), {})
    assert Path("victim").read_text() == "mine" and not Path("metrics.json").is_symlink()


def test_modes_of_what_is_written_follow_the_user(here: Path) -> None:
    old = os.umask(0o077)
    try:
        artifacts.write_text(Path("private/a.txt"), "x")
        os.umask(0o022)
        artifacts.write_text(Path("public/a.txt"), "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(Path("private/a.txt").stat().st_mode) == 0o600
    assert stat.S_IMODE(Path("public/a.txt").stat().st_mode) == 0o644
    shutil.rmtree("private")
