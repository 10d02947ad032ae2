localrules:
    figure,
    report,


rule figure:
    input:
        data="data/{benchmark}/data.json",
        summary="results/{benchmark}/summary.json",
        runs=lambda wc: plan.of_runs(P, wc.benchmark, plan.COMPARED + plan.ANALYSED),
    output:
        report(
            "figures/{benchmark}/{figure}.png",
            caption="../report/figure.rst",
            category="{benchmark}",
            subcategory="Figures",
            labels={"figure": "{figure}"},
        ),
        "figures/{benchmark}/{figure}.pdf",
    log:
        "logs/figure/{benchmark}/{figure}.log",
    benchmark:
        "benchmarks/figure/{benchmark}/{figure}.tsv"
    conda:
        "../../environment.yml"
    params:
        identity=lambda wc: plan.signed(P, "figure", wc.benchmark),
    message:
        "drawing {wildcards.figure} of {wildcards.benchmark}"
    shell:
        "logged {log:q} {wildcards.benchmark:q}/{wildcards.figure:q} "
        "python -m udaseg figure {wildcards.figure:q} --benchmark {wildcards.benchmark:q}"


rule report:
    input:
        summary="results/{benchmark}/summary.json",
        runs=lambda wc: plan.of_runs(P, wc.benchmark, plan.COMPARED + plan.ANALYSED),
        figures=expand(
            "figures/{{benchmark}}/{figure}.{end}",
            figure=plan.FIGURES,
            end=["png", "pdf"],
        ),
        pages=sorted(str(page) for page in Path("docs/methods").glob("*.md")),
    output:
        report(
            "results/{benchmark}/report.html",
            caption="../report/report.rst",
            category="{benchmark}",
            subcategory="Tables",
            labels={"table": "the report"},
        ),
    log:
        "logs/report/{benchmark}.log",
    benchmark:
        "benchmarks/report/{benchmark}.tsv"
    conda:
        "../../environment.yml"
    params:
        identity=lambda wc: plan.signed(P, "report", wc.benchmark),
    message:
        "writing the report of {wildcards.benchmark}"
    shell:
        "logged {log:q} {wildcards.benchmark:q} python -m udaseg report --benchmark {wildcards.benchmark:q}"
