rule prepare:
    input:
        code=plan.code("data"),
    output:
        data="data/{benchmark}/data.json",  # written last; holds the hashes of the zips beside it
    log:
        "logs/prepare/{benchmark}.log",
    benchmark:
        "benchmarks/prepare/{benchmark}.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=720,
    params:
        values=lambda wc: plan.values(
            P,
            *plan.datasets(P, wc.benchmark),
            f"benchmarks.{wc.benchmark}.source",
            f"benchmarks.{wc.benchmark}.target",
            f"benchmarks.{wc.benchmark}.evaluate",
            f"benchmarks.{wc.benchmark}.size",
            f"benchmarks.{wc.benchmark}.classes",
        ),
    message:
        "preparing the data of {wildcards.benchmark}"
    shell:
        "python -m udaseg prepare --benchmark {wildcards.benchmark} --jobs {threads} 2>&1 "
        "| logged {log} {wildcards.benchmark}"
