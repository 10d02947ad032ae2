rule evaluate:
    input:
        data="data/{benchmark}/data.json",
        model="results/{benchmark}/{method}/seed{seed}/model.safetensors",
        code=plan.code(
            "data",
            "models",
            "losses",
            "methods",
            "evaluation",
            "engine/runtime.py",
            "ranks.py",
        ),
    output:
        metrics="results/{benchmark}/{method}/seed{seed}/metrics.json",
        confusion="results/{benchmark}/{method}/seed{seed}/confusion.csv",
        iou="results/{benchmark}/{method}/seed{seed}/iou.json",
        examples="results/{benchmark}/{method}/seed{seed}/examples.png",
        # DVC can say "the scores of all methods" only as a folder, which may hold nothing else: a copy of each lies there.
        compared=multiext(
            "results/.compared/{benchmark}/{method}-seed{seed}", ".json", ".png"
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
        values=lambda wc: plan.values(
            P,
            f"benchmarks.{wc.benchmark}.classes",
            f"benchmarks.{wc.benchmark}.evaluate",
            f"benchmarks.{wc.benchmark}.test",
            "run.threads",
        ),
    message:
        "scoring {wildcards.method} on {wildcards.benchmark}, seed {wildcards.seed}"
    shell:
        "udaseg with-gpus {resources.gpu} -- python -m udaseg evaluate --benchmark {wildcards.benchmark} "
        "--method {wildcards.method} --seed {wildcards.seed} 2>&1 "
        "| logged {log} {wildcards.benchmark}/{wildcards.method}/{wildcards.seed}; "
        "cp {output.metrics} {output.compared[0]}; cp {output.examples} {output.compared[1]}"
