rule prepare:
    input:
        delivered=lambda wc: plan.delivered(P, wc.benchmark),
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
        identity=lambda wc: plan.signed(P, "prepare", wc.benchmark),
    message:
        "preparing the data of {wildcards.benchmark}"
    shell:
        "logged {log:q} {wildcards.benchmark:q} "
        "python -m udaseg prepare --benchmark {wildcards.benchmark:q} --jobs {threads}"
