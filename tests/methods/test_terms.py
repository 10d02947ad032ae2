"""Terms of several papers on one step; the shipped block of two."""

from __future__ import annotations

import copy
from itertools import pairwise

from steps import BLOCKS, CPU, built, content, from_scratch, run_of, train

from tiny_project import Project
from udaseg.engine.optim import build_optimizer
from udaseg.engine.trainer import Loop
from udaseg.methods.self_training import SelfTrainingMethod


def block(terms: list[str]) -> dict[str, object]:
    """SePiCo's recipe with the sub-blocks of all terms, every loss active from the first step."""
    parts = {name: copy.deepcopy(BLOCKS[name][name]) for name in ("sepico", "pipa", "cluda")}
    parts["sepico"] |= {"width": 1.0, "start": 0.0}
    parts["pipa"]["patch"]["start"] = 0.0
    return BLOCKS["sepico"] | parts | {"terms": terms}


def loop(project: Project, terms: list[str]) -> Loop:
    from_scratch(project).set("methods/sepico", block(terms))
    method = built(project, "sepico", SelfTrainingMethod)
    optimizer = build_optimizer(method, method.run.train.optimizer, CPU)
    return Loop(method.run, method, optimizer, CPU, project.folder / "restart", {})


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
    from_scratch(project, steps=4).set("methods/sepico-pipa", BLOCKS["sepico-pipa"])
    run = run_of(project, "sepico-pipa")
    assert run.kind == "self_training" and run.method.terms == ("sepico", "pipa")
    header = content(train(project, "sepico-pipa"))[1].splitlines()[0]
    assert {"sepico_source", "pipa_pixel", "mixed"} <= set(header.split(","))
