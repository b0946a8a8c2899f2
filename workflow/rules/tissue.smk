# Task tissue: masks to learn from, one U-Net for each resolution and held-out fold, what it finds, and Dice.


def drawn_mask(wildcards):
    """The mask that the sample sheet has for a slide, if any."""
    return SHEET[wildcards.slide].get("mask") or []


rule mask:
    input:
        pyramid="<results>/pyramids/{slide}",
        drawn=drawn_mask,
    output:
        directory("<results>/masks/{mpp}um/{slide}"),
    log:
        "<logs>/mask/{mpp}um/{slide}.log",
    benchmark:
        "<benchmarks>/mask/{mpp}um/{slide}.tsv"
    conda:
        "../../envs/gigapipe.yaml"
    resources:
        alone=ALONE,
    params:
        drawn=lambda wildcards, input: ["--drawn", input.drawn] if input.drawn else [],
    shell:
        "{resources.alone} gigapipe mask {input.pyramid} {output} --mpp {wildcards.mpp} {params.drawn:q} > {log} 2>&1"


rule train:
    input:
        folds="<results>/folds.tsv",
        pyramids=expand("<results>/pyramids/{slide}", slide=SHEET),
        masks=expand("<results>/masks/{{mpp}}um/{slide}", slide=SHEET),
    output:
        # The folder checkpoints lies beside these, as in train.smk.
        model="<results>/{mpp}um/fold-{fold}/model.pt",
        record="<results>/{mpp}um/fold-{fold}/training.json",
    log:
        "<logs>/train/{mpp}um/fold-{fold}.log",
    benchmark:
        "<benchmarks>/train/{mpp}um/fold-{fold}.tsv"
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
        limits=training_limits_of,
        time_limit=time_limit_of("train"),
    params:
        pyramids=lambda wildcards, input: Path(input.pyramids[0]).parent,
        masks=lambda wildcards, input: Path(input.masks[0]).parent,
        mesh=mesh_of,
        seed=seed_of,
        settings=arguments(CONFIG.training, Learning),
    shell:
        "{resources.launcher} gigapipe train-tissue --folds {input.folds} --fold {wildcards.fold}"
        " --pyramids {params.pyramids} --masks {params.masks} --mpp {wildcards.mpp} --mesh {params.mesh}"
        " --threads {resources.cores_per_rank} --seed {params.seed} {params.settings} {resources.limits} {resources.time_limit}"
        " --output {output.model} > {log} 2>&1"


rule trained:
    input:
        for_each_model("<results>/{mpp}um/fold-{fold}/model.pt"),


rule segment:
    input:
        folds="<results>/folds.tsv",
        pyramids=expand("<results>/pyramids/{slide}", slide=SHEET),
        masks=expand("<results>/masks/{{mpp}}um/{slide}", slide=SHEET),
        model="<results>/{mpp}um/fold-{fold}/model.pt",
    output:
        # Of each held-out slide a store with the mask, and a picture; and dice.tsv.
        directory("<results>/{mpp}um/fold-{fold}/tissue"),
    log:
        "<logs>/segment/{mpp}um/fold-{fold}.log",
    benchmark:
        "<benchmarks>/segment/{mpp}um/fold-{fold}.tsv"
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
        limits=limits_of,
    params:
        pyramids=lambda wildcards, input: Path(input.pyramids[0]).parent,
        masks=lambda wildcards, input: Path(input.masks[0]).parent,
        mesh=mesh_of,
    shell:
        "{resources.launcher} gigapipe segment --folds {input.folds} --pyramids {params.pyramids}"
        " --masks {params.masks} --model {input.model} --mesh {params.mesh} --threads {resources.cores_per_rank} {resources.limits}"
        " --output {output} > {log} 2>&1"


rule dice:
    input:
        found=for_each_model("<results>/{mpp}um/fold-{fold}/tissue"),
        trainings=for_each_model("<results>/{mpp}um/fold-{fold}/training.json"),
    output:
        table=report(
            "<results>/dice.tsv",
            caption="../report/dice.rst",
            category="Tissue",
            labels={"what": "table"},
        ),
        text="<results>/dice.md",
    log:
        "<logs>/dice.log",
    benchmark:
        "<benchmarks>/dice.tsv"
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        folder=subpath(output.table, parent=True),
        tables=lambda wildcards, input: [f"{folder}/dice.tsv" for folder in input.found],
    shell:
        "gigapipe dice --tables {params.tables} --trainings {input.trainings} --output {params.folder} > {log} 2>&1"


rule evaluated:
    input:
        rules.dice.output,
