"""One pipeline, from raw images to the table of methods. Every rule calls `udaseg <step>`, which works by hand too.

snakemake --cores all --resources gpu=4   # everything, up to four runs at once
dvc repro                                 # the same rules, one at a time, where DVC sees a change (docs/workflow.md)
"""

from snakemake.utils import min_version

from udaseg.errors import UserError
from udaseg.workflow import growing, guard, plan, stopped, warm

min_version("9.27")


report: "workflow/report/workflow.rst"


try:
    P = plan.load(config)
    # jobs on a cluster read this file too, while others are being recorded
    if workflow.is_main_process:
        guard.check_records(plan.cached(P))
except UserError as error:
    raise WorkflowError(str(error)) from None

LAST_WORD = stopped.LastWord()


onstart:
    if workflow.is_main_process and guard.is_on():
        warm.start()
        logger.addHandler(growing.Growing(P, workflow.dag.needrun_jobs()))


onerror:
    LAST_WORD.wanted = workflow.is_main_process and guard.is_on()


GPUS = 0 if P.run.device == "cpu" else int(P.run.gpus_per_run)


wildcard_constraints:
    benchmark="|".join(P.benchmarks),
    method="|".join(P.methods),
    seed=r"\d+",
    figure="|".join(plan.FIGURES),


# Strict mode, stop signals, and `logged FILE NAME COMMAND...`.
shell.prefix("source workflow/logged.sh; ")


# Every artefact is a target: were the models left out, an old score would satisfy the workflow after a failed training.
rule all:
    input:
        plan.cached(P),
        plan.scores(P),
    message:
        "all results are there"


include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/report.smk"
