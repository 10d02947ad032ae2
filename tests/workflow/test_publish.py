"""`udaseg publish-methods`: any two methods compare as revisions, and nothing else in the repository changes."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from repository import TRAINED, Repository, wait_for

ONE, OTHER = "streets/self_training", "streets/source_only"
SELECTED = "results/selected/headline.json"


def scores(repository: Repository, method: str) -> dict[str, float]:
    """headline.json with flat keys, as DVC prints them."""
    flat: dict[str, float] = {}

    def walk(value: object, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else name)
        elif isinstance(value, int | float):
            flat[key] = value

    walk(json.loads((repository / f"results/streets/{method}/seed0/headline.json").read_text()), "")
    return flat


def state(repository: Repository) -> tuple[str, ...]:
    """All that publishing must leave alone: branches, index, work tree and Snakemake's records."""
    questions = (("rev-parse", "HEAD"), ("branch", "--all"), ("status", "--porcelain"), ("worktree", "list"))
    return (*(repository.git(*words) for words in questions), json.dumps(repository.records()))


def test_any_two_methods_compare(finished: Repository, tmp_path: Path) -> None:
    before = state(finished)
    text = finished.udaseg("publish-methods")
    assert f"dvc metrics diff {OTHER} streets/pipa" in text
    assert finished.git("tag").split() == ["streets/pipa", ONE, OTHER]
    assert state(finished) == before
    assert finished.planned() == {}

    found = json.loads(finished.dvc("metrics", "diff", "--all", "--json", ONE, OTHER))[SELECTED]
    old, new = scores(finished, "self_training"), scores(finished, "source_only")
    assert set(found) == set(old) | set(new)
    for key, value in found.items():
        assert (value.get("old"), value.get("new")) == (old.get(key), new.get(key)), key
    finished.dvc("plots", "diff", "--out", str(tmp_path / "plots"), ONE, OTHER)
    page = (tmp_path / "plots/index.html").read_text()
    assert ONE in page and OTHER in page and "confusion.csv" in page

    revisions = finished.git("rev-parse", ONE, OTHER)
    finished.udaseg("publish-methods", "source_only")
    assert finished.git("rev-parse", ONE, OTHER) == revisions, "equal results, equal revisions"


def test_a_revision_is_what_the_stage_leaves_and_tags_follow_new_results(finished: Repository) -> None:
    finished.udaseg("publish-methods", "source_only")
    finished.git("checkout", "--quiet", OTHER)
    finished.udaseg("identity")
    assert finished.dvc("status", "select").strip().endswith("up to date.")
    assert (finished / SELECTED).read_bytes() == (
        finished / "results/streets/source_only/seed0/headline.json"
    ).read_bytes()
    assert (
        finished.git("diff", "--stat", "HEAD~1", "HEAD", "--", "params.yaml").count("1 file changed, 1 insertion") == 1
    )

    finished.git("checkout", "--quiet", "-")
    finished.git("commit", "--quiet", "--allow-empty", "-m", "next")
    finished.udaseg("publish-methods", "source_only")
    assert finished.git("rev-parse", f"{OTHER}~1") == finished.git("rev-parse", "HEAD")


def test_what_is_not_committed_or_recorded_is_refused(finished: Repository) -> None:
    before = state(finished)
    finished.git("tag", ONE)
    assert f"found a tag {ONE}" in refused(finished)
    finished.git("tag", "--delete", ONE)
    assert "did you mean 'self_training'" in refused(finished, "self_trainin")

    history = (finished / f"{TRAINED}/history.csv").read_bytes()
    (finished / f"{TRAINED}/history.csv").write_text("altered\n")
    assert "evaluate@streets-self_training-0, train@streets-self_training-0" in refused(finished)
    (finished / f"{TRAINED}/history.csv").write_bytes(history)
    (finished / "results/note.txt").touch()
    assert "results/note.txt" in refused(finished)
    (finished / "results/note.txt").unlink()
    finished.set("methods/self_training/threshold", 0.9)
    assert "params.yaml" in refused(finished)
    finished.git("checkout", "--quiet", ".")
    assert state(finished) == before and not finished.git("tag")


def refused(repository: Repository, *methods: str) -> str:
    text = repository.udaseg("publish-methods", *methods, expect=2).strip()
    assert text.startswith("udaseg publish-methods: ") and "\n" not in text
    return text


def test_ctrl_c_leaves_no_trace(finished: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    before = state(finished)
    process = finished.start(sys.executable, "-m", "udaseg", "publish-methods")
    wait_for(lambda: any(scratch.glob("udaseg-publish-*/clone/.git/refs/tags/streets/*")))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (finished / ".started").unlink()
    assert not any(scratch.glob("udaseg-publish-*"))
    assert state(finished) == before and not finished.git("tag")
