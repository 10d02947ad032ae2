"""A damaged model in the workflow: one line, and what it advises brings the same results back."""

from __future__ import annotations

import re

import pytest
from repository import TRAINED, Repository, jobs_run

SCORES, MODEL = f"{TRAINED}/metrics.json", f"{TRAINED}/model.safetensors"


@pytest.mark.parametrize("mend", ["delete", "train"])
def test_snakemake_scores_no_damaged_model_and_the_advice_mends_it(finished: Repository, mend: str) -> None:
    model, scores = finished / MODEL, (finished / SCORES).read_text()
    whole = model.read_bytes()
    with model.open("r+b") as handle:  # in place, so that the copy set aside, a hard link, has it too
        handle.seek(-3, 2)
        handle.write(bytes([whole[-3] ^ 64]))
    text = finished.snakemake(SCORES, expect=1)
    lines = [line for line in text.splitlines() if "damaged or replaced" in line]
    assert lines and "Traceback" not in text, text
    (command,) = set(re.findall(r"run `(udaseg train [^`]+)` again", "".join(lines)))
    if mend == "delete":
        model.unlink()
    else:
        finished.udaseg(*command.split()[1:])
    jobs = jobs_run(finished.snakemake())
    assert jobs.count("train") == (1 if mend == "delete" else 0) and "evaluate" in jobs
    assert model.read_bytes() == whole and (finished / SCORES).read_text() == scores
    assert finished.planned() == {}
    assert "0 wrong" in finished.udaseg("verify", "streets/self_training/0")
