"""What cases start from: a small finished project, made once by the real commands, copied file by file."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import os
import shutil
import sys
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from PIL import Image

from tiny_project import RAW, ROOT
from udaseg import cli, params
from udaseg.figures import NAMES

RUN = "results/streets/self_training/seed0"
MODEL = f"{RUN}/model.safetensors"
EVALUATE = ("evaluate", "--benchmark", "streets", "--method", "self_training")
TRAIN = ("train", "--benchmark", "streets", "--method", "self_training")


def small_raw() -> dict[str, Any]:
    """The test parameters; every training begins anew."""
    raw = copy.deepcopy(RAW)
    raw["benchmarks"]["streets"]["init"] = {"default": "none"}
    raw["run"]["device"] = "cpu"
    return raw


class Base:
    """The project of all cases, in `folder`; parts of it are made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.raw = small_raw()
        self.text = yaml.safe_dump(self.raw, sort_keys=False)
        (folder / "params.yaml").write_text(self.text)
        self.full_text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        self.full_raw = yaml.load(self.full_text, yaml.CSafeLoader)

    def command(self, *words: str) -> None:
        """One that must succeed."""
        with contextlib.ExitStack() as stack:
            null = stack.enter_context(open(os.devnull, "w"))
            for context in (
                contextlib.chdir(self.folder),
                contextlib.redirect_stdout(null),
                contextlib.redirect_stderr(null),
            ):
                stack.enter_context(context)
            code = cli.main(list(words))
        logging.getLogger().handlers.clear()  # its stream is closed
        if code:
            sys.exit(f"the fuzz program cannot make its project: udaseg {' '.join(words)} ends with {code}")

    @cached_property
    def prepared(self) -> Path:
        """data/ is there."""
        self.command("prepare", "--benchmark", "streets", "--jobs", "1")
        return self.folder

    @cached_property
    def trained(self) -> Path:
        """A model, with the restart state of its first step beside it; photographs, and how it labels them."""
        home = self.prepared
        with mock.patch("udaseg.engine.training.shutil.rmtree"):  # the state is to stay
            self.command(*TRAIN)
        self.command(*EVALUATE)
        photos = home / "photos"
        photos.mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
        for name, array in zip("ab", pixels, strict=True):
            Image.fromarray(array).save(photos / f"{name}.png")
        self.command("predict", MODEL, "photos", "--out", "labels")
        return home

    @cached_property
    def finished(self) -> Path:
        """Everything: two methods trained, scored, analysed, compared; blank figures."""
        home = self.trained
        for step in ("train", "evaluate", "analyse"):
            self.command(step, "--benchmark", "streets", "--method", "source_only")
        self.command("analyse", "--benchmark", "streets", "--method", "self_training")
        self.command("compare", "--benchmark", "streets")
        for name in NAMES:
            (home / f"figures/streets/{name}.png").parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 20)).save(home / f"figures/streets/{name}.png")
            (home / f"figures/streets/{name}.pdf").touch()
        shutil.copytree(ROOT / "docs/methods", home / "docs/methods")
        return home

    @functools.cache  # noqa: B019
    def hashes(self, file: str) -> dict[str, str]:
        """Of all runs of a parameter file as it is."""
        from kind_params import hashes

        return hashes(params.parse(self.full_raw if file == "full" else self.raw))

    def copy(self, *names: str) -> None:
        """Files and folders of the project, into the working directory."""
        for name in names:
            source, target = self.folder / name, Path(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


BASE: Base  # set by the runner


def start(folder: Path) -> None:
    global BASE
    BASE = Base(folder)
