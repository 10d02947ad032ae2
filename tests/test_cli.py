"""The command line: help with an example for every step, light imports, exit codes."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from udaseg import cli

STEPS = next(a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_help_with_an_example(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([step, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"example: udaseg {step}" in " ".join(text.split())


@pytest.mark.parametrize("words", [[], ["trian"], ["train"], ["train", "--benchmark"], ["train", "--seed", "x"]])
def test_wrong_words_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_steps_that_need_no_network_import_none() -> None:
    """torch, timm, Snakemake and DVC take seconds to import, in every job."""
    modules = (
        "cli params artifacts data.prepare data.prepared comparison.compare workflow.why workflow.plan engine.provenance identity figures.draw report.report workflow.bridges "
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
