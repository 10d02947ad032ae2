"""What Snakemake made is finished for DVC, and the other way round; neither runs more than what a change asks for."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from repository import EVERYTHING, FIGURES, METHODS, ONE_METHOD, TRAINED, Repository, stages_run

from udaseg import params
from udaseg.workflow import plan

DRAWN = {f"figure@streets-{name}" for name in FIGURES} | {"report@streets"}


def clone(repository: Repository, folder: Path) -> Repository:
    """A fresh clone with the large results from a DVC remote."""
    repository.dvc("remote", "add", "--quiet", "--default", "store", str(folder / "store"))
    repository.commit("remote")
    repository.dvc("push", "--quiet")
    repository.git("clone", "--quiet", str(repository.folder), str(folder / "clone"))
    copy = Repository(folder / "clone")
    copy.dvc("pull", "--quiet")
    return copy


def test_i_5_nothing_to_do_after_snakemake(finished: Repository) -> None:
    finished.dvc("status", "--quiet")
    assert stages_run(finished.dvc("repro")) == []
    assert finished.planned() == {}
    assert finished.git("status", "--porcelain") == ""


def test_i_6_nothing_to_do_after_dvc(fresh: Repository) -> None:
    """Each stage is a process of Snakemake, so of two methods."""
    fresh.set("run/methods", list(METHODS[:2]))
    fresh.commit("two methods")
    of_two = EVERYTHING | {"train": 2, "evaluate": 2, "analyse": 2}
    assert Counter(name.split("@")[0] for name in stages_run(fresh.dvc("repro"))) == of_two
    assert fresh.planned() == {}
    assert stages_run(fresh.dvc("repro")) == []
    kept = {*plan.SCORED, "analysis.json", "summary.json", "summary.csv", "summary.md", *plan.SELECTED}
    changed = [line[3:] for line in fresh.git("status", "--porcelain", "--untracked-files=all").splitlines()]
    assert {Path(path).name for path in changed} == {*kept, "dvc.lock"}
    cached = [path for path in changed if path.endswith(("iou.json", "confusion.csv", "history.csv"))]
    assert all(path.startswith("results/selected/") for path in cached), cached


def test_i_7_checkout_is_harmless(finished: Repository) -> None:
    for path in finished.outputs():
        (finished / path).unlink()
    finished.git("checkout", "--quiet", ".")
    finished.dvc("checkout", "--force", "--quiet")
    assert finished.planned() == {}


def test_i_8_fresh_clone(finished: Repository, tmp_path: Path) -> None:
    copy = clone(finished, tmp_path)
    text = copy.snakemake("-n", expect=1)
    assert "udaseg sync" in text
    assert "Traceback" not in text
    copy.udaseg("sync")
    assert copy.planned() == {}
    assert stages_run(copy.dvc("repro")) == []
    test_i_9_one_method_only(copy)


def test_i_8b_partial_records(finished: Repository, tmp_path: Path) -> None:
    copy = clone(finished, tmp_path)
    copy.set("methods/self_training/source_view", "strong")
    method = {f"{step}@streets-self_training-0" for step in ("train", "evaluate", "analyse")}
    assert set(stages_run(copy.dvc("repro"))) == {*method, "compare@streets", "select", *DRAWN}
    assert "udaseg sync" in copy.snakemake("-n", expect=1)
    copy.udaseg("sync")
    assert copy.planned() == {}
    assert sorted(copy.records()) == sorted(copy.outputs())


def test_a_clone_without_a_remote_plans_everything_anew(finished: Repository, tmp_path: Path) -> None:
    finished.git("clone", "--quiet", str(finished.folder), str(tmp_path / "clone"))
    copy = Repository(tmp_path / "clone")
    assert (copy / f"{TRAINED}/metrics.json").exists()
    assert copy.planned() == EVERYTHING
    assert "sync" not in copy.snakemake("-n")


def test_i_9_one_method_only(finished: Repository) -> None:
    finished.set("methods/self_training/threshold", 0.9)
    assert finished.stale() == {"train@streets-self_training-0", "compare@streets", *DRAWN}  # pipa has no twin any more
    assert finished.planned() == ONE_METHOD


def test_i_10_add_and_remove_a_method(finished: Repository) -> None:
    finished.set("run/methods", [*METHODS, "oracle"])
    assert finished.planned() == {name: n for name, n in ONE_METHOD.items() if name != "select"}
    method = {f"{step}@streets-oracle-0" for step in ("train", "evaluate", "analyse")}
    assert finished.stale() == {*method, "compare@streets", *DRAWN}
    finished.set("run/methods", ["self_training"])
    assert finished.planned() == {"compare": 1, "figure": len(FIGURES), "report": 1}
    assert finished.stale() == {"compare@streets", *DRAWN}


def trained(text: str) -> set[str]:
    """Methods (and "pretrained") that were trained, step by step, in a run of either tool."""
    return set(re.findall(r"results/streets/(\w+)/seed0: 2 steps in ", text))


def models(repository: Repository) -> dict[str, bytes]:
    return {path.parts[-3]: path.read_bytes() for path in (repository / "results/streets").rglob("model.safetensors")}


def test_dvc_after_a_complete_snakemake_trains_nothing(finished: Repository) -> None:
    """Without `udaseg record` between the two: what Snakemake has trained is taken over, and DVC says why."""
    (finished / "dvc.lock").unlink()
    shutil.rmtree(finished / ".dvc/cache")
    shutil.rmtree(finished / ".dvc/tmp")
    before = models(finished)
    text = finished.dvc("repro", "train")
    assert {stage.split("@")[0] for stage in stages_run(text)} == {"prepare", "pretrain", "train"}
    assert models(finished) == before and trained(text) == set()
    told = re.findall(r"results/streets/(\w+)/seed0: trained already with these parameters, code and data", text)
    assert set(told) == set(before)
    finished.dvc("status", "--quiet", "train", "pretrain", "prepare")
    assert finished.planned() == {}


def test_dvc_after_a_partial_and_failed_snakemake_trains_the_rest(fresh: Repository) -> None:
    """One that failed; and one that was not asked for is that from which the others start."""
    term = fresh.params["methods"]["pipa"]["pipa"]
    fresh.set("methods/pipa/pipa", {"patch": None, "pixel": None})  # refused when the training begins
    fresh.snakemake("--keep-going", *(f"results/streets/{m}/seed0/model.safetensors" for m in METHODS[1:]), expect=1)
    before = models(fresh)
    assert set(before) == {"pretrained", "self_training"}
    fresh.set("methods/pipa/pipa", term)
    assert trained(fresh.dvc("repro", "train")) == {"pipa"}
    assert {name: models(fresh)[name] for name in before} == before


def test_snakemake_takes_what_is_trained_whatever_deleted_it(finished: Repository) -> None:
    before = models(finished)
    text = finished.snakemake("--force", f"{TRAINED}/model.safetensors")
    assert trained(text) == set() and models(finished) == before
    kept = finished / "results/.trained/streets/self_training/seed0/model.safetensors"
    kept.unlink()
    kept.write_bytes(b"x")  # what was set aside is not whole any more
    assert trained(finished.snakemake("--force", f"{TRAINED}/model.safetensors")) == {"self_training"}
    assert models(finished) == before and kept.read_bytes() == before["self_training"]


def test_i_14_bridges_refuse(finished: Repository) -> None:
    finished.set("methods/self_training/threshold", 0.9)
    assert "dvc.lock" in finished.udaseg("sync", expect=2)
    assert "work left" in finished.udaseg("record", expect=2)
    finished.git("checkout", "--quiet", ".")
    finished.udaseg("sync")
    (finished / f"{TRAINED}/history.csv").write_text("altered\n")
    assert "dvc.lock" in finished.udaseg("sync", expect=2)


def refused(repository: Repository) -> str:
    """What `udaseg record` says; dvc.lock stays as it is."""
    before = (repository / "dvc.lock").read_bytes()
    text = repository.udaseg("record", expect=2).strip()
    assert text.startswith("udaseg record: ") and "\n" not in text, text
    assert (repository / "dvc.lock").read_bytes() == before
    return text


@pytest.mark.parametrize(
    "path",
    [f"{TRAINED}/iou.json", f"{TRAINED}/history.csv", "results/.compared/streets/self_training-seed0/images.csv"],
)
def test_record_takes_no_altered_result_and_what_it_advises_mends_it(path: str, finished: Repository) -> None:
    before = (finished / path).read_bytes()
    with (finished / path).open("a") as handle:  # in place: hard links to it change too
        handle.write("\n")
    finished.snakemake(expect=None)  # whatever depends on it is made from it, or refuses it
    text = refused(finished)
    assert f"{path}: differs from dvc.lock, and no job has made it so" in text
    assert "delete it and run `snakemake`" in text
    (finished / path).unlink()
    finished.snakemake()
    finished.udaseg("record")
    finished.dvc("status", "--quiet")
    assert finished.planned() == {}
    assert (finished / path).read_bytes() == before
    # all is as it was, but for the seconds that a report of a new training holds
    assert finished.git("status", "--porcelain") in ("", " M dvc.lock\n")
    assert finished.git("diff", "--shortstat") in ("", " 1 file changed, 2 insertions(+), 2 deletions(-)\n")


def test_record_restores_from_dvc_as_it_says(finished: Repository) -> None:
    path = f"{TRAINED}/predictions.zip"
    (finished / path).write_bytes(b"damaged")
    assert f"`dvc checkout --force {path}`" in refused(finished)
    finished.dvc("checkout", "--force", path)
    finished.udaseg("record")
    assert finished.git("status", "--porcelain") == "" and finished.planned() == {}


def test_record_takes_no_altered_data(finished: Repository) -> None:
    """Labels that have changed places in the manifest: every number that follows would be another."""
    path = next((finished / "data/streets").glob("streets_photo-*/manifest.json"))
    text = path.read_text()
    manifest = json.loads(text)
    samples = manifest["splits"]["test"]
    for sample, label in zip(samples, [s["label"] for s in samples[1:] + samples[:1]], strict=True):
        sample["label"] = label
    path.write_text(json.dumps(manifest))
    name = path.relative_to(finished.folder)
    said = refused(finished)
    assert f"{name}: differs from dvc.lock" in said
    assert f"delete {name.parent} and run `udaseg prepare --benchmark streets`" in said
    shutil.rmtree(path.parent)
    finished.udaseg("prepare", "--benchmark", "streets")
    assert path.read_text() == text
    finished.udaseg("record")
    assert finished.git("status", "--porcelain") == ""


def test_record_takes_what_was_made_with_other_bits(finished: Repository) -> None:
    """As on another machine: dvc.lock holds other hashes, and nothing that decides the results has changed."""
    lock = finished / "dvc.lock"
    stages = yaml.safe_load(lock.read_text())
    for stage, outs in stages["stages"].items():
        for out in (
            outs["outs"] if stage.startswith(("train@streets-self_training", "report", "evaluate@streets-pipa")) else []
        ):
            out["md5"] = "0" * 32 + (".dir" if out["md5"].endswith(".dir") else "")
    lock.write_text(yaml.safe_dump(stages, sort_keys=False))
    finished.commit("as made elsewhere")
    finished.snakemake("--force", "results/streets/pipa/seed0/metrics.json")
    finished.udaseg("report", "--benchmark", "streets")  # by hand
    finished.udaseg("record")
    finished.dvc("status", "--quiet")
    assert finished.planned() == {}


def test_i_15_results_come_back_from_the_run_cache(finished: Repository) -> None:
    finished.set("methods/self_training/threshold", 0.9)
    assert "train@streets-self_training-0" in stages_run(finished.dvc("repro"))
    finished.git("checkout", "--quiet", "params.yaml")
    assert stages_run(finished.dvc("repro")) == []
    finished.dvc("status", "--quiet")
    assert finished.git("status", "--porcelain") == ""
    finished.udaseg("sync")
    assert finished.planned() == {}


def test_i_19_metrics_diff_across_methods(finished: Repository) -> None:
    path = "results/selected/headline.json"
    finished.set("select/method", "source_only")
    assert stages_run(finished.dvc("repro", "select")) == ["select"]
    found = json.loads(finished.dvc("metrics", "diff", "--json"))[path]
    assert not any(key.startswith("iou") for key in found)  # classes are what plots and tables show
    for side, method in (("old", "self_training"), ("new", "source_only")):
        scores = json.loads((finished / f"results/streets/{method}/seed0/metrics.json").read_text())
        assert found["miou"][side] == scores["miou"]
        assert {key for key in found if key.startswith("other.")} >= {f"other.{name}" for name in scores["other"]}
    lines = finished.dvc("metrics", "diff").splitlines()
    assert lines[0].split()[:2] == ["Path", "Metric"] and lines[1].split()[:2] == [path, "miou"]
    lines = finished.dvc("metrics", "show").splitlines()
    assert lines[0].split()[:2] == ["Path", "miou"] and max(map(len, lines)) <= 120
    assert len(lines) == 1 + len(METHODS) + 1 and path in lines[-1]
    finished.commit("select source_only")
    assert json.loads(finished.dvc("metrics", "diff", "HEAD~1", "HEAD", "--json"))[path] == found


def test_guard_stops_at_results_of_unknown_origin_alone(finished: Repository) -> None:
    shutil.rmtree(finished / ".snakemake/metadata")
    assert "has no record of" in finished.snakemake("-n", expect=1)
    assert "has no record of" not in finished.snakemake("--unlock")
    for path in plan.cached(params.load(finished / "params.yaml")):
        (finished / path).unlink(missing_ok=True)
    assert finished.planned()["train"] == len(METHODS)  # scores from git alone are not strange


def test_import_run(finished: Repository, tmp_path: Path) -> None:
    shutil.copytree(finished / TRAINED, tmp_path / "run")
    home = finished.udaseg("import-run", str(tmp_path / "run"), "--reference").strip()
    assert home == "results/reference/streets/self_training/seed0"
    names = {"metrics.json", "run.json", "history.csv", "analysis.json", "images.csv"}
    assert {path.name for path in (finished / home).iterdir()} == names
    assert "results/reference/" in finished.git("status", "--porcelain")

    for path in (finished / TRAINED).iterdir():
        path.unlink()
    assert finished.udaseg("import-run", str(tmp_path / "run")).strip() == TRAINED
    planned = finished.planned()
    assert "train" not in planned
    assert planned["evaluate"] == 1

    model = tmp_path / "run/model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:100])
    assert "model.safetensors: damaged" in finished.udaseg("import-run", str(tmp_path / "run"), expect=2)
    model.write_bytes(whole)
    finished.set("methods/self_training/threshold", 0.9)
    text = finished.udaseg("import-run", str(tmp_path / "run"), "--reference", expect=2)
    assert "params_hash: found" in text
    assert len(text.splitlines()) == 1
    finished.git("checkout", "--quiet", "params.yaml")
    with (finished / "src/udaseg/engine/trainer.py").open("a") as handle:
        handle.write("OTHER = 1\n")
    assert "code_hash: found" in finished.udaseg("import-run", str(tmp_path / "run"), expect=2)
    finished.git("checkout", "--quiet", "src")
    (finished / "data/streets/data.json").write_text("{}\n")
    assert "data_hash: found" in finished.udaseg("import-run", str(tmp_path / "run"), expect=2)
    (tmp_path / "run/model.safetensors").unlink()
    assert "model.safetensors: not found" in finished.udaseg("import-run", str(tmp_path / "run"), expect=2)


def test_import_of_runs_that_follow_each_other(finished: Repository, tmp_path: Path) -> None:
    """A fresh machine has no pretrained model: the run of source_only brings it, and nothing is left half imported before."""
    for method in ("source_only", "self_training"):
        shutil.copytree(finished / f"results/streets/{method}/seed0", tmp_path / method)
    for method in ("pretrained", "source_only", "self_training"):
        shutil.rmtree(finished / f"results/streets/{method}")
    text = finished.udaseg("import-run", str(tmp_path / "self_training"), expect=2)
    assert "results/streets/pretrained/seed0/model.safetensors: not found" in text
    assert not (finished / TRAINED).exists()
    finished.udaseg("import-run", str(tmp_path / "source_only"))
    finished.udaseg("import-run", str(tmp_path / "self_training"))
    planned = finished.planned()
    assert "pretrain" not in planned and "train" not in planned
    assert planned["evaluate"] == 2


def test_stage_runs_its_rule_alone(finished: Repository) -> None:
    text = finished.udaseg("stage", "compare", "results/streets/summary.json")
    assert "self_training/0:" not in text
    assert "| source_only" in text
    finished.udaseg("stage", "compare", "results/streets/no-such-file", expect=1)
    assert finished.planned() == {}
