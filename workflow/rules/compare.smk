localrules:
    compare,
    select,


rule compare:
    input:
        metrics=lambda wc: [
            f"{run.folder}/metrics.json" for run in plan.runs(P, wc.benchmark)
        ],
        examples=lambda wc: [
            f"{run.folder}/examples.png"
            for run in plan.runs(P, wc.benchmark)
            if run.seed == P.run.seeds[0]
        ],
        code=plan.code("evaluation", "data/labels.py", "data/prepared.py"),
    output:
        json="results/{benchmark}/summary.json",
        csv="results/{benchmark}/summary.csv",
        md="results/{benchmark}/summary.md",
        examples="figures/{benchmark}/examples.png",
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
        run=[
            f"{plan.selected(P).folder}/{name}"
            for name in ("metrics.json", "iou.json", "confusion.csv", "history.csv")
        ],
        code=plan.code("evaluation"),
    output:
        metrics="results/selected/metrics.json",
        iou="results/selected/iou.json",
        confusion="results/selected/confusion.csv",
        history="results/selected/history.csv",
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
