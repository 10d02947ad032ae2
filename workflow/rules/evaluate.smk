rule evaluate:
    input:
        data="data/{benchmark}/data.json",
        model="results/{benchmark}/{method}/seed{seed}/model.safetensors",
        history="results/{benchmark}/{method}/seed{seed}/history.csv",  # copied along
    output:
        multiext(
            "results/{benchmark}/{method}/seed{seed}/", "metrics.json", *plan.EVALUATED
        ),
        compared=multiext(
            "results/.compared/{benchmark}/{method}-seed{seed}/", *plan.COMPARED
        ),
    log:
        "logs/evaluate/{benchmark}/{method}/seed{seed}.log",
    benchmark:
        "benchmarks/evaluate/{benchmark}/{method}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: P.run.threads
    resources:
        gpu=min(GPUS, 1),
        mem_mb=16000,
        runtime=240,
    params:
        identity=lambda wc: plan.signed(P, "evaluate", wc.benchmark, wc.method),
    message:
        "scoring {wildcards.method} on {wildcards.benchmark}, seed {wildcards.seed}"
    shell:
        "logged {log} {wildcards.benchmark}/{wildcards.method}/{wildcards.seed} "
        "udaseg with-gpus {resources.gpu} -- python -m udaseg evaluate "
        "--benchmark {wildcards.benchmark} --method {wildcards.method} --seed {wildcards.seed}; "
        "for copy in {output.compared}; do "
        "cp results/{wildcards.benchmark}/{wildcards.method}/seed{wildcards.seed}/$(basename $copy) $copy; done"
