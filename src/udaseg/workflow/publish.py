"""One revision for each method, so that `dvc metrics diff` and `dvc plots diff`, which compare revisions, compare methods.

A revision is HEAD with another `select`: params.yaml, results/selected/ and dvc.lock as `dvc repro select` would leave them. It is
made in a scratch clone and comes back as a tag, so neither the work tree nor a branch nor Snakemake's records are touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from udaseg import params, results, yaml12
from udaseg.artifacts import write_text
from udaseg.checking import lookup
from udaseg.comparison import compare
from udaseg.errors import UserError
from udaseg.params import Params, Run
from udaseg.workflow import bridges, plan
from udaseg.workflow.bridges import DVC, last_line

SUBJECT = "udaseg publish-methods: "  # tells our tags from others
# What the user's own git does at a commit (hooks, signatures, a name) is for the user's commits.
OURS = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "commit.gpgSign=false",
    "-c",
    "user.name=udaseg",
    "-c",
    "user.email=udaseg",
)


def publish_methods(methods: Sequence[str]) -> str:
    """Tag the scores of `methods` (empty: all of run.methods) on select.benchmark as `<benchmark>/<method>`.

    Tags of an earlier call are moved. All appear at once, or none; equal results give equal revisions.

    Returns:
        the tags with their scores, and the commands that compare them.

    Raises:
        UserError: an unknown method, changes that are not committed, results that DVC has not recorded, a tag of that name
            that somebody else made.
    """
    p = params.load()
    for name in methods:
        lookup(dict.fromkeys(p.run.methods), name, "method", "run.methods")
    runs = [p.resolve(p.select.benchmark, name, p.run.seeds[0]) for name in dict.fromkeys(methods or p.run.methods)]
    check_clean()
    check_recorded(runs)
    for run in runs:
        check_free(tag(run))
    with tempfile.TemporaryDirectory(prefix="udaseg-publish-") as folder:
        scratch = Path(folder, "clone")
        git("clone", "--quiet", "--shared", "--no-tags", ".", str(scratch))
        head = git("rev-parse", "HEAD").strip()
        for run in runs:
            git("checkout", "--quiet", "--detach", "--force", head, at=scratch)
            publish(run, scratch)
        refs = [f"+refs/tags/{tag(run)}:refs/tags/{tag(run)}" for run in runs]
        git("fetch", "--quiet", "--atomic", "--no-tags", "--no-prune", str(scratch), *refs)
    return summary(p, runs)


def tag(run: Run) -> str:
    return f"{run.benchmark_name}/{run.method_name}"


def check_clean() -> None:
    lines = git("status", "--porcelain", "--untracked-files=all").splitlines()
    changed = [line[3:] for line in lines if not line.startswith("??") or line[3:].startswith("results/")]
    if changed:
        raise UserError(
            f"found {len(changed)} changes that are not committed (the first: {changed[0]}), expected none: a revision holds "
            f"what is committed; commit or stash them, then run this again"
        )


def check_recorded(runs: Sequence[Run]) -> None:
    names = [f"{run.benchmark_name}-{run.method_name}-{run.seed}" for run in runs]
    stages = [f"{stage}@{name}" for name in names for stage in ("evaluate", "analyse")]
    if stale := bridges.stale(*stages):
        raise UserError(
            f"found {len(stale)} stages whose results are not those of dvc.lock ({', '.join(stale[:3])}); run `snakemake`, then "
            f"`udaseg record`, commit, then this again"
        )


def check_free(name: str) -> None:
    """Raises UserError where `name` is a tag that another hand made."""
    if not git("tag", "--list", name).strip():
        return
    subject = git("log", "-1", "--format=%s", f"refs/tags/{name}").strip()
    if not subject.startswith(SUBJECT):
        raise UserError(
            f"found a tag {name} that publish-methods did not make ({subject!r}); rename it: `git tag {name}-mine {name}` and "
            f"`git tag --delete {name}`, then run this again"
        )


def publish(run: Run, scratch: Path) -> None:
    """Commit and tag in `scratch`, a clone of this repository, what the stage `select` makes for `run`."""
    text = (scratch / "params.yaml").read_text()
    write_text(scratch / "params.yaml", with_method(text, run.method_name))
    shutil.copytree(
        run.folder, scratch / run.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
    )
    shutil.copytree(
        plan.IDENTITIES, scratch / plan.IDENTITIES, dirs_exist_ok=True
    )  # what is delivered is not known there
    with contextlib.chdir(scratch):
        compare.select(params.load())
        plan.write_identities(params.load())
        # DVC keeps notes on every repository it sees; this one is gone in a moment
        environment = os.environ | {"DVC_SITE_CACHE_DIR": str(scratch / ".dvc/tmp/site")}
        command = [*DVC, "commit", "--quiet", "--force", "identity", "select"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise UserError(f"`dvc commit --force select` failed: {last_line(done.stdout + done.stderr)}")
    git("add", "--all", at=scratch)
    date = git("log", "-1", "--format=%cI", at=scratch).strip()  # equal results, equal revision
    message = f"{SUBJECT}{run.method_name} on {run.benchmark_name}, seed {run.seed}"
    git(*OURS, "commit", "--quiet", "--allow-empty", "--no-verify", "--message", message, at=scratch, date=date)
    git("tag", tag(run), at=scratch)


def with_method(text: str, method: str) -> str:
    """params.yaml with another select.method, every other character as it was."""
    root = yaml12.compose(text)
    select = next(value for key, value in root.value if key.value == "select")
    value = next(value for key, value in select.value if key.value == "method")
    return text[: value.start_mark.index] + method + text[value.end_mark.index :]


def git(*words: str, at: Path = Path("."), date: str | None = None) -> str:
    """Output of git.

    Raises:
        UserError: git's last line, where it fails.
    """
    environment = os.environ | ({"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {})
    command = ["git", "-C", str(at), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise UserError(f"`git {words[0]}` failed: {last_line(done.stdout + done.stderr)}")
    return done.stdout


def summary(p: Params, runs: Sequence[Run]) -> str:
    width = max(len(tag(run)) for run in runs)
    scores = [results.metrics(run)["miou"] for run in runs]
    lines = [f"{tag(run):<{width}}  mIoU {score:5.2f}" for run, score in zip(runs, scores, strict=True)]
    pair = f"{tag(runs[0])} {tag(runs[-1]) if len(runs) > 1 else 'HEAD'}"
    return "\n".join(
        [
            *lines,
            "",
            f"compare any two:  dvc metrics diff {pair}",
            f"                  dvc plots diff {pair}",
            f"for others:       git push --force origin 'refs/tags/{p.select.benchmark}/*'",
        ]
    )
