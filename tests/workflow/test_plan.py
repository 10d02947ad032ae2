"""Both tools plan the same pipeline from the same parameters."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import ROOT, TRAINED, Repository, identity_text

from udaseg import params
from udaseg.errors import UserError
from udaseg.workflow import plan


class Stage:
    """One DVC stage as DVC resolves it."""

    def __init__(self, stage: Any, root: Path) -> None:
        def path(item: Any) -> str:
            return Path(item.fs_path).resolve().relative_to(root).as_posix()

        self.name, self.command = stage.name, stage.cmd
        self.deps = {path(dep) for dep in stage.deps}
        identities = (dep for dep in self.deps if dep.startswith("results/.identity/"))
        self.identity = next((dep for dep in identities if not dep.endswith("/delivered.json")), None)
        self.outs = {path(out): out.use_cache for out in stage.outs}


@pytest.fixture
def stages(finished: Repository) -> list[Stage]:
    from dvc.repo import Repo

    with Repo(str(finished.folder)) as repo:
        found = [Stage(stage, finished.folder.resolve()) for stage in repo.index.stages]
    return [stage for stage in found if stage.name != "identity"]  # DVC's own: Snakemake has the same as a parameter


def covers(folder_or_file: str, path: str) -> bool:
    return path == folder_or_file or path.startswith(folder_or_file + "/")


def inputs_of(row: dict[str, str]) -> set[str]:
    return {path for path in row["input-file(s)"].split(",") if path not in ("", "-")}


COPIES = re.compile(r"results/\.(?:compared|analysed)/([^/]+)/(.+)-(seed\d+)")


def originals(folder: str, names: tuple[str, ...]) -> set[str]:
    """results/streets/oracle/seed0/metrics.json, ... of results/.compared/streets/oracle-seed0."""
    match = COPIES.fullmatch(folder)
    assert match, folder
    return {f"results/{match[1]}/{match[2]}/{match[3]}/{name}" for name in names}


def test_i_1_same_graph(finished: Repository, stages: list[Stage]) -> None:
    rules = finished.summary()
    made = {row["output_file"]: inputs_of(row) for row in rules}
    by_stage: dict[str, list[str]] = {}
    for output in made:
        owners = [stage.name for stage in stages for out in stage.outs if covers(out, output)]
        assert len(owners) == 1, f"{output}: an output of the DVC stages {owners}"
        by_stage.setdefault(owners[0], []).append(output)
    for stage in stages:
        outputs = by_stage[stage.name]
        for out in stage.outs:
            assert any(covers(out, output) for output in outputs), f"{out}: no rule makes it"
        (inputs,) = {frozenset(made[output]) for output in outputs}
        deps = stage.deps - {stage.identity}
        for kind, names in (("compared", plan.COMPARED), ("analysed", plan.ANALYSED)):
            for folder in {dep for dep in deps if dep.startswith(f"results/.{kind}/")}:  # copies stand for every run
                copies = {path for s in stages for path in s.outs if covers(folder, path)}
                deps = (deps - {folder}).union(*(originals(path, names) for path in copies))
        for path in inputs:
            assert any(covers(dep, path) for dep in deps), f"{stage.name} does not depend on {path}, the rule does"
        for dep in deps:
            if stage.name.startswith("train") and "/pretrained/" in dep:
                continue  # the one difference allowed: a matrix cannot ask whether a method starts from it
            assert any(covers(dep, path) for path in inputs), f"{stage.name} depends on {dep}, the rule does not"


def test_both_tools_know_the_same_of_code_and_parameters(finished: Repository, stages: list[Stage]) -> None:
    records = finished.records()
    finished.udaseg("identity")
    for stage in stages:
        assert stage.identity, stage.name
        output = next(path for path in records for out in stage.outs if covers(out, path))
        assert (finished / stage.identity).read_text().strip() == identity_text(records[output]), stage.name


def test_i_2_no_folder_among_inputs(finished: Repository) -> None:
    for row in finished.summary():
        for path in inputs_of(row):
            assert (finished / path).is_file(), path


def test_i_3_every_result_is_a_target(finished: Repository, stages: list[Stage]) -> None:
    p = params.load(finished / "params.yaml")
    assert set(finished.outputs()) == {*plan.cached(p), *plan.scores(p)}
    for stage in stages:
        for out, cached in stage.outs.items():
            targets = plan.cached(p) if cached else plan.scores(p)
            assert any(covers(out, target) for target in targets), out


def test_i_4_commands_only_run_rules(finished: Repository, stages: list[Stage]) -> None:
    rule_of = {row["output_file"]: row["rule"] for row in finished.summary()}
    for stage in stages:
        match = re.fullmatch(r"python -m udaseg stage (\w+) (\S+)", stage.command)
        assert match, stage.command
        assert rule_of[match[2]] == match[1]


def test_i_21_style_of_the_rules(finished: Repository) -> None:
    finished.run("snakefmt", "--check", "Snakefile", "workflow")
    finished.snakemake("--lint")
    finished.snakemake("-s", "workflow/Snakefile", "--lint")


def test_the_catalogues_entry_plans_the_same(finished: Repository) -> None:
    assert yaml.safe_load((finished.folder / ".snakemake-workflow-catalog.yml").read_text())["usage"]["report"]
    text = finished.snakemake("-n", "--forceall", "-s", "workflow/Snakefile")
    counts = dict(re.findall(r"^(\w+) +(\d+)$", text, re.M))
    expected = dict(re.findall(r"^(\w+) +(\d+)$", finished.snakemake("-n", "--forceall"), re.M))
    assert counts.pop("complete") == expected.pop("all") == "1" and counts.pop("all", "1") == "1"
    assert {**counts, "total": ""} == {**expected, "total": ""} and counts["train"]


def test_an_unknown_method_is_answered_in_one_line(finished: Repository) -> None:
    finished.set("run/methods", ["source_only", "self_trainig"])
    text = finished.snakemake("-n", expect=1)
    assert "params.yaml: run.methods: unknown method 'self_trainig'; did you mean 'self_training'?" in text
    assert "Traceback" not in text


def test_parameters_come_from_the_file_alone(finished: Repository) -> None:
    for words in (["--config", "run={threads: 9}"], ["--configfile", "params.yaml"]):
        text = finished.snakemake("-n", *words, expect=1)
        assert "only configuration" in text


def test_wrong_parameters_are_one_line_of_snakemake_too(finished: Repository) -> None:
    """Numbers as DVC reads them, and what Snakemake's own reader would pass over or fail at."""
    path = finished.folder / "params.yaml"
    good = path.read_text()
    assert "threads: 1\n" in good
    for text, words in {
        f"{good}\nrun: {{}}\n": "found the key `run` twice, first in line",
        good.replace("threads: 1\n", "threads: 1:30\n"): "run.threads: found '1:30', expected an integer",
        good.replace("threads: 1\n", "threads: 0\n"): "run.threads: found 0, expected an integer from 1 to 4096",
        good.replace("threads: 1\n", "threads: !!int 1\n"): "found the tag",
    }.items():
        path.write_text(text)
        said = finished.snakemake("-n", expect=1)
        assert words in said and "Traceback" not in said, said
    path.write_text(good.replace("threads: 1\n", "threads: 0o1\n"))
    assert "Nothing to be done" in finished.snakemake("-n")


def test_only_what_is_made_can_be_selected(finished: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    finished.set("select/method", "oracle")
    monkeypatch.chdir(finished.folder)
    with pytest.raises(UserError, match=r"select\.method: found oracle"):
        plan.load()


def test_i_18_a_training_takes_fewer_gpus_where_fewer_are_lent(fresh: Repository) -> None:
    """The global batch is that of params.yaml in any case: the number of devices is no part of a run's hash."""
    fresh.set("run/device", "auto")
    fresh.set("run/gpus_per_run", 2)
    for lent, expected in ((0, 0), (1, 1), (4, 2)):
        text = fresh.snakemake(
            "-n", "--printshellcmds", "--resources", f"gpu={lent}", "--", TRAINED + "/model.safetensors"
        )
        assert set(re.findall(r"udaseg with-gpus (\d)", text)) == {str(expected)}, lent


def test_i_22_all_benchmarks_plan_without_data(fresh: Repository) -> None:
    shutil.copy(ROOT / "params.yaml", fresh / "params.yaml")
    fresh.set("run/benchmarks", list(fresh.params["benchmarks"]))
    fresh.set("run/gpus_per_run", 4)
    planned = fresh.snakemake("--dry-run", "--resources", "gpu=4")
    for benchmark in fresh.params["benchmarks"]:
        assert f"preparing the data of {benchmark}" in planned
