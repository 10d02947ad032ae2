# run.json, which tells when, where and how long, is written beside the results but is no output: it never repeats itself.


rule pretrain:
    input:
        data="data/{benchmark}/data.json",
    output:
        model="results/{benchmark}/pretrained/seed{seed}/model.safetensors",
        history="results/{benchmark}/pretrained/seed{seed}/history.csv",
    log:
        "logs/pretrain/{benchmark}/seed{seed}.log",
    benchmark:
        "benchmarks/pretrain/{benchmark}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: P.run.threads + P.run.loaders(cuda=False)
    resources:
        gpu=GPUS,
        mem_mb=24000,
        runtime=2880,
    params:
        identity=lambda wc: plan.signed(P, "pretrain", wc.benchmark),
    message:
        "training on the source of {wildcards.benchmark} alone, seed {wildcards.seed}"
    shell:
        "logged {log:q} {wildcards.benchmark:q}/pretrained/{wildcards.seed:q} "
        "udaseg with-gpus {resources.gpu} -- python -m udaseg pretrain "
        "--benchmark {wildcards.benchmark:q} --seed {wildcards.seed:q}"


rule train:
    input:
        data="data/{benchmark}/data.json",
        start=lambda wc: plan.start(P.resolve(wc.benchmark, wc.method, int(wc.seed))),
    output:
        model="results/{benchmark}/{method}/seed{seed}/model.safetensors",
        history="results/{benchmark}/{method}/seed{seed}/history.csv",
    log:
        "logs/train/{benchmark}/{method}/seed{seed}.log",
    benchmark:
        "benchmarks/train/{benchmark}/{method}/seed{seed}.tsv"
    priority: lambda wc: growing.urgency(wc.method)
    conda:
        "../../environment.yml"
    threads: P.run.threads + P.run.loaders(cuda=False)
    resources:
        gpu=GPUS,
        mem_mb=24000,
        runtime=2880,
    params:
        identity=lambda wc: plan.signed(P, "train", wc.benchmark, wc.method),
    message:
        "training {wildcards.method} on {wildcards.benchmark}, seed {wildcards.seed}"
    shell:
        "logged {log:q} {wildcards.benchmark:q}/{wildcards.method:q}/{wildcards.seed:q} "
        "udaseg with-gpus {resources.gpu} -- python -m udaseg train "
        "--benchmark {wildcards.benchmark:q} --method {wildcards.method:q} --seed {wildcards.seed:q}"
