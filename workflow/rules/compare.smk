localrules:
    compare,
    select,


rule compare:
    input:
        runs=lambda wc: plan.of_runs(P, wc.benchmark, plan.COMPARED),
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
        identity=lambda wc: plan.signed(P, "compare", wc.benchmark),
    message:
        "comparing the methods on {wildcards.benchmark}"
    shell:
        "logged {log:q} {wildcards.benchmark:q} python -m udaseg compare --benchmark {wildcards.benchmark:q}"


rule select:
    input:
        run=[f"{plan.selected(P).folder}/{name}" for name in plan.SELECTED],
    output:
        multiext("results/selected/", *plan.SELECTED),
    log:
        "logs/select.log",
    benchmark:
        "benchmarks/select.tsv"
    conda:
        "../../environment.yml"
    params:
        identity=plan.signed(P, "select"),
    message:
        f"selecting {P.select.method} on {P.select.benchmark}"
    shell:
        "logged {log:q} selected python -m udaseg select"
