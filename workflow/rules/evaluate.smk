rule evaluate:
    input:
        data="data/{benchmark}/data.json",
        model="results/{benchmark}/{method}/seed{seed}/model.safetensors",
        history="results/{benchmark}/{method}/seed{seed}/history.csv",  # copied along
    output:
        multiext(
            "results/{benchmark}/{method}/seed{seed}/", *plan.SCORED, *plan.EVALUATED
        ),
        compared=multiext(
            "results/.compared/{benchmark}/{method}-seed{seed}/", *plan.COMPARED
        ),
    log:
        "logs/evaluate/{benchmark}/{method}/seed{seed}.log",
    benchmark:
        "benchmarks/evaluate/{benchmark}/{method}/seed{seed}.tsv"
    priority: 2  # the table grows with the models
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
        "logged {log:q} {wildcards.benchmark:q}/{wildcards.method:q}/{wildcards.seed:q} "
        "udaseg with-gpus {resources.gpu} -- python -m udaseg evaluate "
        "--benchmark {wildcards.benchmark:q} --method {wildcards.method:q} --seed {wildcards.seed:q}; "
        "for copy in {output.compared:q}; do "
        'cp results/{wildcards.benchmark:q}/{wildcards.method:q}/seed{wildcards.seed:q}/"$(basename "$copy")" "$copy"; done'
