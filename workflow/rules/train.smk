# One network for each resolution and held-out fold.


rule folds:
    input:
        SHEET_FILE,
    output:
        "<results>/folds.tsv",
    log:
        "<logs>/folds.log",
    benchmark:
        "<benchmarks>/folds.tsv"
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        folds=config["folds"],
        # A function: in a plain string Snakemake would take {slide} for a wildcard of its own.
        source=lambda wildcards: (
            ["--source", config["source"]] if config.get("source") else []
        ),
    shell:
        "gigapipe folds {input:q} {output} --folds {params.folds[number]} --seed {params.folds[seed]} {params.source:q}"
        " > {log} 2>&1"


rule train:
    input:
        folds="<results>/folds.tsv",
        pyramids=expand("<results>/pyramids/{slide}", slide=SHEET.index),
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
    params:
        pyramids=lambda wildcards, input: Path(input.pyramids[0]).parent,
        mesh=mesh_of,
        canvas=lambda wildcards: RESOLUTIONS[wildcards.mpp]["canvas"],
        settings=" ".join(
            f"--{key.replace('_', '-')} {value}"
            for key, value in config["training"].items()
        ),
    shell:
        "{resources.mpi} -n {resources.tasks} gigapipe train --folds {input.folds} --fold {wildcards.fold}"
        " --pyramids {params.pyramids} --mpp {wildcards.mpp} --canvas {params.canvas} --mesh {params.mesh}"
        " --threads {threads} {params.settings} --output {output.model} > {log} 2>&1"


rule trained:
    input:
        for_each_model("<results>/{mpp}um/fold-{fold}/model.pt"),
