"""A change costs only what it touches: what each edit makes stale, under Snakemake and under DVC."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from repository import FIGURES, METHODS, ROOT, TRAINED, Repository, stages_run

FIGURE_STAGES = {f"figure@streets-{name}" for name in FIGURES}


def of(step: str, *methods: str) -> set[str]:
    return {f"{step}@streets-{method}-0" for method in methods}


def edit(repository: Repository, path: str, old: str, new: str, count: int = 1) -> None:
    text = (repository / path).read_text()
    assert old in text, (path, old)
    (repository / path).write_text(text.replace(old, new, count))


def add(repository: Repository, path: str, text: str = "EXTRA = 1\n") -> None:
    with (repository / path).open("a") as handle:
        handle.write("\n" + text)


def comments_docstrings_lines_and_annotations(repository: Repository) -> None:
    for path in ("losses/pipa.py", "engine/trainer.py", "data/prepared.py", "models/heads.py", "evaluation/scores.py"):
        add(repository, f"src/udaseg/{path}", "# a comment\n")
    edit(repository, "src/udaseg/losses/segmentation.py", '"""', '"""Said otherwise. ')
    edit(repository, "src/udaseg/engine/trainer.py", "method: Method,\n", "method: Method,\n\n")
    edit(repository, "src/udaseg/engine/optim.py", "    warmup = round(", "    warmup: int = round(")


def recording_modules(repository: Repository) -> None:
    for path in ("__init__", "__main__", "cli", "progress", "engine/training", "engine/provenance", "engine/curves"):
        add(repository, f"src/udaseg/{path}.py", "")
        edit(
            repository,
            f"src/udaseg/{path}.py",
            "from __future__ import annotations\n",
            "from __future__ import annotations\nEXTRA = 1\n",
        ) if ("from __future__" in (repository / f"src/udaseg/{path}.py").read_text()) else add(
            repository, f"src/udaseg/{path}.py"
        )


def new_files_beside(repository: Repository) -> None:
    (repository / "src/udaseg/methods/nobody.py").write_text("X = 1\n")
    (repository / "src/udaseg/losses/nobody.py").write_text("X = 1\n")


def a_new_block(repository: Repository) -> None:
    repository.set("methods/self_training-strict", repository.params["methods"]["self_training"] | {"threshold": 0.99})
    repository.set("datasets/other", {"format": "streets", "look": "game", "seed": 5, "count": {"train": 2}})


def with_field(repository: Repository, path: str, block: str, field: str) -> None:
    """A field more at the end of a dataclass."""
    text = (repository / path).read_text()
    (found,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == block)
    last = max(
        node.end_lineno or 0
        for node in found.body
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node)
    )
    lines = text.splitlines(keepends=True)
    (repository / path).write_text("".join([*lines[:last], f"    {field}\n", *lines[last:]]))


def new_fields_with_defaults(repository: Repository) -> None:
    """One in each kind of block, most of them also written into params.yaml, with their default."""
    blocks = (
        "RunBlock",
        "Select",
        "Tsne",
        "Analysis",
        "Dataset",
        "Sizes",
        "Model",
        "Optimizer",
        "Schedule",
        "RareClass",
    )
    for block in (*blocks, "Border", "Train", "Test", "Benchmark"):
        with_field(repository, "src/udaseg/params.py", block, "novelty: float = 0.5")
    papers = (
        ("self_training", "SelfTraining"),
        ("self_training", "Jitter"),
        ("source_only", "Supervised"),
        ("bcl", "Bcl"),
    )
    for paper, block in (*papers, ("plca", "Plca"), ("pipa", "Pipa"), ("pipa", "PixelContrast"), ("sepico", "Sepico")):
        with_field(repository, f"src/udaseg/recipes/{paper}.py", block, "novelty: float = 0.5")
    inner = (
        "",
        "/size",
        "/model",
        "/train",
        "/train/optimizer",
        "/train/schedule",
        "/train/rare_class",
        "/train/border",
        "/test",
    )
    places = [
        "run",
        "select",
        "analysis",
        "analysis/tsne",
        "datasets/streets_game",
        *(f"benchmarks/streets{k}" for k in inner),
    ]
    places += ["methods/source_only", "methods/self_training", "methods/self_training/jitter", "methods/pipa/pipa"]
    for place in (*places, "methods/pipa/pipa/pixel"):
        repository.set(f"{place}/novelty", 0.5)


NOTHING = [
    comments_docstrings_lines_and_annotations,
    recording_modules,
    new_files_beside,
    a_new_block,
    new_fields_with_defaults,
]


def code(path: str) -> Callable[[Repository], None]:
    return lambda repository: add(repository, f"src/udaseg/{path}")


# edit -> stages that are stale by themselves; what follows from them is planned too
STALE: dict[str, tuple[Callable[[Repository], None], set[str]]] = {
    "methods/pipa.py": (code("methods/pipa.py"), of("train", "pipa")),
    "losses/pipa.py": (code("losses/pipa.py"), of("train", "pipa")),
    "losses/segmentation.py": (
        code("losses/segmentation.py"),
        {"pretrain@streets-0"} | of("train", *METHODS) | of("evaluate", *METHODS) | of("analyse", *METHODS),
    ),
    "engine/trainer.py": (code("engine/trainer.py"), {"pretrain@streets-0"} | of("train", *METHODS)),
    "data/prepared.py": (
        code("data/prepared.py"),
        {"prepare@streets", "pretrain@streets-0"}
        | of("train", *METHODS) | of("evaluate", *METHODS) | of("analyse", *METHODS) | FIGURE_STAGES,
    ),
    "models/heads.py": (
        code("models/heads.py"),
        {"pretrain@streets-0"} | of("train", *METHODS) | of("evaluate", *METHODS) | of("analyse", *METHODS),
    ),
    "evaluation/scores.py": (code("evaluation/scores.py"), of("evaluate", *METHODS)),
    "analysis/measures.py": (code("analysis/measures.py"), of("analyse", *METHODS)),
    "figures/style.py": (code("figures/style.py"), FIGURE_STAGES),
    "the block of one method": (  # which has no twin any more
        lambda r: r.set("methods/pipa/threshold", 0.9),
        of("train", "pipa") | {"compare@streets"} | FIGURE_STAGES | {"report@streets"},
    ),
    "published.csv": (
        lambda r: add(r, "src/udaseg/comparison/published.csv", ""),
        {"compare@streets", "select"} | FIGURE_STAGES | {"report@streets"},
    ),
}  # fmt: skip


def planned_stages(repository: Repository) -> set[str]:
    """What Snakemake would run, as names of stages."""
    return {stage_of(row["rule"], row["output_file"]) for row in repository.summary() if row["plan"] != "no update"}


def stage_of(rule: str, output: str) -> str:
    if rule in ("train", "evaluate", "analyse"):
        (method,) = set(re.findall("|".join(METHODS), output))
        return f"{rule}@streets-{method}-0"
    tails = {"select": "", "pretrain": "@streets-0", "figure": f"@streets-{Path(output).stem}"}
    return rule + tails.get(rule, "@streets")


def test_what_changes_nothing_costs_nothing(finished: Repository) -> None:
    """All at once: were one of them seen, the whole would be stale."""
    for change in NOTHING:
        change(finished)
    assert finished.planned() == {}
    assert finished.stale() == set()
    assert stages_run(finished.dvc("repro")) == []


@pytest.mark.parametrize("name", [*STALE])
def test_what_an_edit_makes_stale(name: str, finished: Repository) -> None:
    change, expected = STALE[name]
    change(finished)
    planned = planned_stages(finished)
    own = finished.stale()
    assert own == expected
    assert own <= planned, own - planned
    if not any(stage.startswith(("train", "pretrain", "prepare")) for stage in own):
        assert not [stage for stage in planned if stage.startswith(("train", "pretrain", "prepare"))]
    if own == of("train", "pipa"):
        others = {
            stage for method in METHODS[:2] for step in ("train", "evaluate", "analyse") for stage in of(step, method)
        }
        assert not planned & others


def test_why_names_the_file_and_the_key(finished: Repository) -> None:
    run = "results/streets/pipa/seed0"
    assert "current" in finished.udaseg("why", run) and "changed" not in finished.udaseg("why", run)
    code("losses/pipa.py")(finished)
    finished.set("methods/pipa/threshold", 0.9)
    code("evaluation/scores.py")(finished)
    text = finished.udaseg("why", "streets/pipa/0")
    assert "src/udaseg/losses/pipa.py has changed" in text
    assert "method.threshold: 0.968 -> 0.9" in text
    assert re.search(r"evaluate +src/udaseg/evaluation/scores.py has changed", text)
    assert re.search(r"analyse +stale with train", text)
    other = finished.udaseg("why", "streets/self_training")
    assert "losses/pipa.py" not in other and "0.9" not in other and "evaluation/scores.py" in other
    (finished / f"{TRAINED}/model.safetensors").write_bytes(b"x")
    assert "is not the file that was trained" in finished.udaseg("why", "streets/self_training/0")
    assert "did you mean" in finished.udaseg("why", "streets/self_trainin", expect=2)
    assert "expected benchmark/method/seed" in finished.udaseg("why", "a/b/c/d/e", expect=2)


def test_why_of_what_was_signed_under_another_scheme(finished: Repository) -> None:
    path = finished / f"{TRAINED}/run.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in made.items() if key not in ("scheme", "code", "params")}))
    text = finished.udaseg("why", "streets/self_training/0")
    assert "signed under another scheme" in text and "udaseg resign streets/self_training/0" in text


# --- files that cannot be used ---------------------------------------------------------------------------------------

RECIPE = (
    "from dataclasses import dataclass\nfrom udaseg.recipes import Paper\n\n\n@dataclass(frozen=True)\nclass Mine:\n"
    "    weight: float\n\n\nPAPER = Paper(Mine, term=True, contrasts=True)\n"
)
METHOD = "from udaseg.methods.base import Term\n\n\nclass Mine(Term):\n    pass\n\n\nTERM = Mine\n"


def with_a_paper(repository: Repository, recipe: str = RECIPE, method: str | None = METHOD) -> None:
    (repository / "src/udaseg/recipes/mine.py").write_text(recipe)
    if method is not None:
        (repository / "src/udaseg/methods/mine.py").write_text(method)
    repository.set(
        "methods/mine", repository.params["methods"]["self_training"] | {"terms": ["mine"], "mine": {"weight": 1.0}}
    )
    repository.set("run/methods", [*METHODS, "mine"])


@pytest.mark.parametrize(
    ("recipe", "method", "words"),
    [
        (RECIPE, "def (\n", "src/udaseg/methods/mine.py cannot be imported: SyntaxError: invalid syntax (line 1)"),
        (RECIPE, "import nowhere_at_all\n", "mine.py cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        (RECIPE, METHOD + "raise RuntimeError('one\\ntwo')\n", "mine.py cannot be imported: RuntimeError: one"),
        (RECIPE, "X = 1\n", "src/udaseg/methods/mine.py: found no TERM in it"),
        (RECIPE, None, "src/udaseg/methods/mine.py: not found"),
        (RECIPE, "from udaseg.methods.mine2 import x\n" + METHOD, "mine.py cannot be imported: ImportError"),
        ("def (\n", METHOD, "src/udaseg/recipes/mine.py cannot be imported: SyntaxError: invalid syntax (line 1)"),
        ("PAPER = 3\n", METHOD, "src/udaseg/recipes/mine.py: found PAPER = 3"),
    ],
)  # fmt: skip
def test_a_paper_that_cannot_be_used_hinders_no_other(
    recipe: str, method: str | None, words: str, finished: Repository
) -> None:
    with_a_paper(finished, recipe, method)
    (finished / "src/udaseg/methods/mine2.py").write_text("from udaseg.methods.mine import TERM as x\n")  # a cycle
    text = finished.udaseg("train", "--benchmark", "streets", "--method", "mine", expect=2)
    assert words in text and len(text.strip().splitlines()) <= 2 and "Traceback" not in text


@pytest.mark.parametrize(("recipe", "method"), [(RECIPE, "def (\n"), ("def (\n", METHOD)])
def test_others_are_planned_beside_a_paper_that_cannot_be_used(recipe: str, method: str, finished: Repository) -> None:
    with_a_paper(finished, recipe, method)
    planned = finished.planned()
    expected = {"train": 1, "evaluate": 1, "analyse": 1, "pretrain": None}
    assert {rule: planned.get(rule) for rule in expected} == expected
    assert len(finished.udaseg("why", "streets").splitlines()) > 10
    finished.udaseg("train", "--benchmark", "streets", "--method", "self_training")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.set("methods/pipa/terms", ["pipq"]), "unknown term 'pipq'; did you mean 'pipa'?"),
        (lambda r: r.set("methods/mine/mine", {"wieght": 1.0}), "methods.mine.mine: unknown key 'wieght'; did you mean 'weight'?"),
        (lambda r: r.set("methods/other", {}), "unknown method 'other'"),
        (lambda r: (r / "src/udaseg/recipes/blur.py").write_text(RECIPE), "blur is a key of the self-training step"),
        (lambda r: (r / "src/udaseg/recipes/My-Own.py").write_text(RECIPE), "no name of a paper"),
    ],
)  # fmt: skip
def test_mistakes_around_papers_are_told_in_one_line(
    change: Callable[[Repository], None], words: str, fresh: Repository
) -> None:
    with_a_paper(fresh)
    change(fresh)
    text = fresh.udaseg("why", "streets/pipa/0", expect=2)
    assert words in text and len(text.strip().splitlines()) == 1
    assert words in fresh.snakemake("-n", expect=1)


def test_two_papers_of_one_name(fresh: Repository) -> None:
    folder = fresh / "src/udaseg/recipes/pipa"
    folder.mkdir()
    (folder / "__init__.py").write_text(RECIPE)
    assert "found two papers of this name" in fresh.udaseg("why", "streets/pipa/0", expect=2)


# --- the page docs/extend.md, done -----------------------------------------------------------------------------------


def test_a_strangers_term_touches_three_places_and_makes_nothing_stale(finished: Repository) -> None:
    """Its code is that of docs/extend.md; from training to report nothing else is edited, and nothing else runs."""
    page = (ROOT / "docs/extend.md").read_text()
    for path, text in re.findall(r"`(src/udaseg/\w+/means\.py)`:\n\n```python\n(.*?)```", page, re.S):
        (finished / path).write_text(text)
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    methods = yaml.safe_load((ROOT / "params.yaml").read_text() + "\n" + block)["methods"]
    small = finished.params["methods"]["self_training"]
    finished.set("methods/means", small | {key: methods["means"][key] for key in ("terms", "means")})
    finished.set("run/methods", [*METHODS, "means"])
    assert sorted(line[3:] for line in finished.git("status", "--porcelain", "-uall").splitlines()) == [
        "params.yaml",
        "src/udaseg/methods/means.py",
        "src/udaseg/recipes/means.py",
    ]
    assert {
        stage for stage in finished.stale() if "@" in stage and stage.split("@")[0] in ("train", "evaluate", "analyse")
    } == {stage for step in ("train", "evaluate", "analyse") for stage in of(step, "means")}
    text = finished.snakemake()
    assert (
        text.count("training means on streets") == 1
        and "training pipa" not in text
        and "training self_training" not in text
    )
    finished.udaseg("record")
    finished.dvc("status", "--quiet")
    summary = json.loads((finished / "results/streets/summary.json").read_text())["methods"]
    assert summary["means"]["over_off"] is not None, "self_training is its twin"
    report = (finished / "results/streets/report.html").read_text()
    assert "means" in report and "docs/methods/means.md" not in report
    history = (finished / "results/streets/means/seed0/history.csv").read_text().splitlines()
    assert "means" in history[0].split(",") and float(history[1].split(",")[history[0].split(",").index("means")]) > 0
