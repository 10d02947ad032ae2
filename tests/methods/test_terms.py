"""Terms of several papers on one step; the shipped block of two."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
import yaml

from tiny_project import ROOT, Project
from udaseg import params
from udaseg.engine import training
from udaseg.engine.optim import build_optimizer
from udaseg.engine.trainer import Loop, build

METHODS = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]


def block(terms: list[str]) -> dict[str, object]:
    """SePiCo's recipe with the sub-blocks of all terms, every loss active from the first step."""
    parts = {name: copy.deepcopy(METHODS[name][name]) for name in ("sepico", "pipa", "cluda")}
    parts["sepico"] |= {"width": 1.0, "start": 0.0}
    parts["pipa"]["patch"]["start"] = 0.0
    return METHODS["sepico"] | parts | {"terms": terms}


def loop(project: Project, terms: list[str]) -> Loop:
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("methods/sepico", block(terms))
    run = params.load(project.folder / "params.yaml").resolve("streets", "sepico", 0)
    method = build(run, torch.device("cpu"))
    optimizer = build_optimizer(method, run.train.optimizer, torch.device("cpu"))
    return Loop(run, method, optimizer, torch.device("cpu"), project.folder / "restart", {})


def test_all_terms_on_one_step(project: Project) -> None:
    """Each adds its losses, and changes none of the others': their random numbers are their own."""
    found = {}
    for terms in ([], ["sepico"], ["sepico", "pipa"], ["sepico", "pipa", "cluda"]):
        one = loop(project, terms)
        one.advance(one.begin_round())
        found[len(terms)] = {name: value.item() for name, value in one.sums.items()}
    assert set(found[3]) - set(found[2]) == {"cluda_source", "cluda_mixed"}
    assert set(found[2]) - set(found[1]) == {"pipa_pixel", "pipa_patch"}
    assert {name.split("_")[0] for name in set(found[1]) - set(found[0])} == {"sepico"}
    for fewer, more in pairwise(found.values()):
        for name in {"source"} & set(fewer):
            assert fewer[name] == more[name]


def test_the_shipped_block_of_two_terms_trains(project: Project) -> None:
    project.set("benchmarks/streets/init", {"default": "none"})
    project.set("benchmarks/streets/train/steps", 4)
    project.set("methods/sepico-pipa", METHODS["sepico-pipa"])
    run = params.load(project.folder / "params.yaml").resolve("streets", "sepico-pipa", 0)
    assert run.kind == "self_training" and run.method.terms == ("sepico", "pipa")
    training.train(run, run.folder)
    header = (run.folder / "history.csv").read_text().splitlines()[0]
    assert {"sepico_source", "pipa_pixel", "mixed"} <= set(header.split(","))
