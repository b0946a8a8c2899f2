# One network for each resolution and held-out fold.


rule train:
    input:
        folds=f"<results>/{DIVISION}folds.tsv",
        pyramids=expand("<results>/pyramids/{slide}", slide=SHEET),
        weights=CONFIG.training.weights or [],
        start=coarser_model,
        canvases=lambda wildcards: CANVASES if wildcards.mpp in AUTO_CANVASES else [],
    output:
        # The folder checkpoints, from which a training goes on that ran out of time or was killed, lies beside these
        # and is no output: Snakemake deletes outputs before it tries again.
        model=f"<results>/{NETWORK}/model.pt",
        record=f"<results>/{NETWORK}/training.json",
    log:
        f"<logs>/train/{NETWORK}.log",
    benchmark:
        f"<benchmarks>/train/{NETWORK}.tsv"
    conda:
        "../../envs/gigapipe.yaml"
    threads: cores_of
    resources:
        launcher=launcher_of,
        mpi=mpi_of,
        nodes=nodes_of,
        tasks=ranks_of,
        cores_per_rank=CORES_PER_RANK,
        cpus_per_task=CORES_PER_RANK,  # what Slurm calls it
        # Resources, for another changes no weight and repeats no training.
        limits=training_limits_of,
        time_limit=time_limit_of("train"),
    params:
        pyramids=lambda wildcards, input: Path(input.pyramids[0]).parent,
        mesh=mesh_of,
        seed=seed_of,
        canvas=canvas_of,
        settings=f"{arguments(CONFIG.training, Network)} {arguments(CONFIG.training, Learning)}",
        start=lambda wildcards, input: ["--start", input.start] if input.start else [],
    shell:
        "{resources.launcher} gigapipe train --folds {input.folds} --fold {wildcards.fold}"
        " --pyramids {params.pyramids} --mpp {wildcards.mpp} --canvas {params.canvas} --mesh {params.mesh}"
        " --threads {resources.cores_per_rank} --seed {params.seed} {params.settings} {params.start:q} {resources.limits}"
        " {resources.time_limit}"
        " --output {output.model} > {log} 2>&1"


rule trained:
    input:
        for_each_model(f"<results>/{NETWORK}/model.pt"),
