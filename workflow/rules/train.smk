# One network for each resolution and held-out fold.


rule train:
    input:
        folds="<results>/folds.tsv",
        pyramids=expand("<results>/pyramids/{slide}", slide=SHEET),
        weights=config["training"].get("weights") or [],
    output:
        # checkpoint.pt, from which a killed training goes on, lies beside these and is no output:
        # Snakemake deletes outputs before it tries again.
        model="<results>/{mpp}um/fold-{fold}/model.pt",
        record="<results>/{mpp}um/fold-{fold}/training.json",
    log:
        "<logs>/train/{mpp}um/fold-{fold}.log",
    benchmark:
        "<benchmarks>/train/{mpp}um/fold-{fold}.tsv"
    conda:
        "../../envs/gigapipe.yaml"
    threads: ranks_of
    resources:
        mpi="mpiexec",
        tasks=ranks_of,
        memory=options("training", ["memory"]),  # a resource: another changes no weight, and repeats no training
    params:
        pyramids=lambda wildcards, input: Path(input.pyramids[0]).parent,
        mesh=mesh_of,
        canvas=lambda wildcards: RESOLUTIONS[wildcards.mpp]["canvas"],
        settings=options("training", NETWORK + COMMON),
    shell:
        "{resources.mpi} -n {resources.tasks} gigapipe train --folds {input.folds} --fold {wildcards.fold}"
        " --pyramids {params.pyramids} --mpp {wildcards.mpp} --canvas {params.canvas} --mesh {params.mesh}"
        " --threads {threads} {params.settings} {resources.memory} --output {output.model} > {log} 2>&1"


rule trained:
    input:
        for_each_model("<results>/{mpp}um/fold-{fold}/model.pt"),
