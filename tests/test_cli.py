"""The command line: help with an example for every step, light imports, exit codes."""

from __future__ import annotations

import argparse
import errno
import re
import subprocess
import sys

import pytest

from tiny_project import ROOT
from udaseg import arguments, cli, commands

STEPS = next(a for a in arguments.make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_help_with_an_example_in_80_columns(
    step: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        cli.main([step, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"example: udaseg {step}" in text and max(map(len, text.splitlines())) <= 80
    lines = text.partition("\noptions:\n")[2].partition("\n\n")[0].splitlines()
    for k, line in enumerate(lines):  # each option says what it is, beside it or in the next line
        if re.match("  -", line):
            assert "  " in line.strip() or "".join(lines[k + 1 : k + 2]).startswith(" " * 10), line


def test_the_overview_has_every_step_once_in_a_group_and_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(name for names in arguments.GROUPS.values() for name in names) == sorted(STEPS)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and all(f"\n  {name} " in text for name in STEPS)


SEED = "an integer from 0 to 18446744073709551615"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "udaseg: STEP missing"),
        ("trian", "udaseg: unknown step 'trian'; did you mean 'train'?"),
        ("--versoin", "udaseg: unknown option '--versoin'; did you mean '--version'?"),
        ("train", "udaseg train: --benchmark, --method missing"),
        ("train --benchmark", "udaseg train: --benchmark: expected one argument"),
        ("train --benchmark b --metod m", "udaseg train: unknown option '--metod'; did you mean '--method'?"),
        ("train --benchmark b --method m -x", "found -x, which has no place here"),
        ("select now", "found now, which has no place here"),
        ("train --seed x", f"udaseg train: --seed: found 'x', expected {SEED}"),
        ("train --seed -1", f"--seed: found '-1', expected {SEED}"),
        ("train --seed 1_0", f"--seed: found '1_0', expected {SEED}"),
        ("evaluate --seed 18446744073709551616", f"--seed: found '18446744073709551616', expected {SEED}"),
        ("pretrain --seed " + "9" * 6000, "999..., expected an integer from 0"),
        ("prepare camvid --size 8x8 --jobs 0", "--jobs: found '0', expected an integer from 1 to 1024"),
        ("prepare camvid --size 8x8 --jobs 1000000", "--jobs: found '1000000', expected an integer from 1 to 1024"),
        ("prepare camvid --size 8x8 --show -1", "--show: found '-1', expected an integer from 0 to 1000"),
        ("resign --steps 0", "--steps: found '0', expected an integer from 1 to 1000000000"),
        ("bench --steps -3", "--steps: found '-3', expected an integer from 1 to 1000000"),
        ("bench losses --shrink 0", "--shrink: found '0', expected an integer from 1 to 1000000"),
        ("bench lossses", "WHAT: found 'lossses', expected step or losses or plan; did you mean 'losses'?"),
        ("with-gpus -1 -- true", "N: found '-1', expected an integer from 0 to 1024"),
        ("with-gpus two -- true", "N: found 'two', expected an integer from 0 to 1024"),
        ("predict m.safetensors a.png --out o --device gpu", "--device: found 'gpu', expected auto or cpu or cuda"),
        (
            "submit m.safetensors a --out o --server kitti",
            "--server: found 'kitti', expected cityscapes or dark_zurich",
        ),
        ("figure gian --benchmark streets", "NAME: found 'gian', expected gain or"),
    ],
    ids=lambda text: text[:40],
)
def test_wrong_words_are_one_line_and_exit_with_2(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words.split())
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and line.startswith("udaseg") and "--help`)" in line, line


def test_every_integer_of_the_command_line_has_a_range() -> None:
    for name, step in STEPS.items():
        for action in step._actions:
            assert action.type is not int and action.choices is None, f"{name}: {action.dest}: use whole() or one_of()"


def test_what_follows_two_dashes_is_the_commands_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["with-gpus", "0", "--", "echo", "--unknown", "-1"]) == 0
    assert capfd.readouterr().out == "--unknown -1\n"


def test_a_size_has_a_limit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for size in ("100000x100000", "65536x8", "8192x8193", "0x8", "8", "-8x8", "9" * 6000 + "x1", "٣x٣"):
        assert cli.main(["prepare", "camvid", f"--size={size}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("udaseg prepare: --size: found ") and len(line) < 250, line


def test_steps_that_need_no_network_import_none() -> None:
    """torch, timm, Snakemake and DVC take seconds to import, in every job."""
    modules = (
        "cli arguments commands params artifacts data.prepare data.prepared comparison.compare workflow.why workflow.plan engine.provenance identity figures.draw report.report workflow.bridges "
        "workflow.lease workflow.publish doctor deploy.target"
    )
    code = (
        f"import sys; [__import__('udaseg.' + m) for m in '{modules}'.split()]; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'torchvision', 'timm', 'snakemake', 'dvc'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_udaseg_is_udaseg() -> None:
    done = subprocess.run([sys.executable, "-m", "udaseg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("udaseg 0.")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory of the machine"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
            "of the machine",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "out of memory of the GPU"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out of memory of the GPU"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (
            PermissionError(errno.EACCES, "Permission denied", "results/a/run.json"),
            "results/a/run.json: Permission denied",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "results/a/metrics.json"), "metrics.json: Is a directory"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(args: object) -> None:
        raise error

    monkeypatch.setattr(commands, "train", refuse)
    assert cli.main(["train", "--benchmark", "streets", "--method", "oracle"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("udaseg train: ") and line in said
    assert "train.batch" in said or "out of memory" not in said


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(args: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(commands, "train", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["train", "--benchmark", "streets", "--method", "oracle"])


def test_a_step_without_its_packages_says_which_extra_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr("udaseg.comparison.terminal.show", lambda *_, **__: __import__("scipy"))
    assert cli.main(["table", "streets"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("udaseg table: found no package scipy") and "pip install 'udaseg[train]'" in line


def test_labelling_and_losses_need_the_base_dependencies_alone() -> None:
    extras = ", ".join(map(repr, cli.EXTRAS))
    code = (
        f"import sys; sys.modules.update(dict.fromkeys([{extras}]))\n"
        "import udaseg.cli, udaseg.api, udaseg.contrast, udaseg.deploy.predict, udaseg.deploy.submit, udaseg.models.trained"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
