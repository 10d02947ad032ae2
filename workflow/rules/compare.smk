localrules:
    compare,
    select,


rule compare:
    input:
        runs=lambda wc: plan.of_runs(P, wc.benchmark, plan.COMPARED),
        code=plan.code("evaluation", "data/labels.py"),
    output:
        report(
            "results/{benchmark}/summary.csv",
            caption="../report/summary.rst",
            category="{benchmark}",
            subcategory="Tables",
            labels={"table": "methods"},
        ),
        multiext("results/{benchmark}/summary", ".json", ".md"),
    log:
        "logs/compare/{benchmark}.log",
    benchmark:
        "benchmarks/compare/{benchmark}.tsv"
    conda:
        "../../environment.yml"
    params:
        values=lambda wc: plan.values(
            P,
            f"benchmarks.{wc.benchmark}.classes",
            f"benchmarks.{wc.benchmark}.evaluate",
            f"benchmarks.{wc.benchmark}.model",
            "run.methods",
            "run.protocol",
            "run.seeds",
        ),
    message:
        "comparing the methods on {wildcards.benchmark}"
    shell:
        "python -m udaseg compare --benchmark {wildcards.benchmark} 2>&1 | logged {log} {wildcards.benchmark}"


rule select:
    input:
        run=[f"{plan.selected(P).folder}/{name}" for name in plan.SELECTED],
        code=plan.code("evaluation"),
    output:
        multiext("results/selected/", *plan.SELECTED),
    log:
        "logs/select.log",
    benchmark:
        "benchmarks/select.tsv"
    conda:
        "../../environment.yml"
    params:
        values=plan.values(P, "run.seeds", "select"),
    message:
        f"selecting {P.select.method} on {P.select.benchmark}"
    shell:
        "python -m udaseg select 2>&1 | logged {log} selected"
