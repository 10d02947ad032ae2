rule analyse:
    input:
        data="data/{benchmark}/data.json",
        model="results/{benchmark}/{method}/seed{seed}/model.safetensors",
    output:
        multiext(
            "results/{benchmark}/{method}/seed{seed}/", "features.npz", *plan.ANALYSED
        ),
        analysed=multiext(
            "results/.analysed/{benchmark}/{method}-seed{seed}/", *plan.ANALYSED
        ),
    log:
        "logs/analyse/{benchmark}/{method}/seed{seed}.log",
    benchmark:
        "benchmarks/analyse/{benchmark}/{method}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 1  # nearly all of it is, after one pass over the images
    resources:
        gpu=min(GPUS, 1),
        mem_mb=8000,
        runtime=60,
    params:
        identity=lambda wc: plan.signed(P, "analyse", wc.benchmark, wc.method),
    message:
        "features of {wildcards.method} on {wildcards.benchmark}, seed {wildcards.seed}"
    shell:
        "logged {log:q} {wildcards.benchmark:q}/{wildcards.method:q}/{wildcards.seed:q} "
        "udaseg with-gpus {resources.gpu} -- python -m udaseg analyse "
        "--benchmark {wildcards.benchmark:q} --method {wildcards.method:q} --seed {wildcards.seed:q}; "
        "for copy in {output.analysed:q}; do "
        'cp results/{wildcards.benchmark:q}/{wildcards.method:q}/seed{wildcards.seed:q}/"$(basename "$copy")" "$copy"; done'
