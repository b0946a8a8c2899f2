# Tissue, or regions of several classes: masks to learn from, a U-Net a resolution and held-out fold, its finds, Dice.

# Where there are several classes, each is named; of tissue, names only choose annotations.
NAMES = [f"--class={name}" for name in CONFIG.mask_classes]
SEVERAL = TASK.needs == "mask"


def drawn_mask(wildcards):
    """The mask that the sample sheet has for a slide, or else its drawing of the tissue, if any."""
    row = SHEET[wildcards.slide]
    return row.get("mask") or row.get("tissue") or []


def mask_classes(wildcards):
    """Which classes of a mask's annotations count, and whether each has a value of its own."""
    if not SHEET[wildcards.slide].get("mask"):
        return []
    return ["--labels", *NAMES] if SEVERAL else NAMES


rule mask:
    input:
        pyramid=lambda wildcards: pyramid_at(wildcards.slide, wildcards.mpp),
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
        alone=BESIDE_OTHERS,
        node_launcher=ON_NODE,
        per_node=slides_per_node,
    params:
        # Noted where there are any: masks that were made before one could choose stay as they are.
        **(
            {"classes": lambda wildcards: CONFIG.mask_classes}
            if CONFIG.mask_classes
            else {}
        ),
        drawn=lambda wildcards, input: (
            option("--drawn", input.drawn) if input.drawn else []
        ),
        chosen=lambda wildcards, input: mask_classes(wildcards) if input.drawn else [],
        pyramid=lambda wildcards, input: RESULTS / "pyramids" / wildcards.slide,
    shell:
        "{resources.alone} gigapipe mask {params.pyramid:q} {output} --mpp {wildcards.mpp} {params.drawn:q}"
        " {params.chosen:q} {resources.attempts} > {log} 2>&1"


rule train:
    input:
        folds="<results>/folds.tsv",
        pyramids=pyramids_at,
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
    threads: cores_for("<results>/{mpp}um/fold-{fold}/model.pt")
    resources:
        **ranks_for("<results>/{mpp}um/fold-{fold}/model.pt"),
        mesh=says_mesh,
        limits=training_limits_of,
        time_limit=time_limit_of("train"),
    params:
        **CODE,
        pyramids=folder_of_pyramids,
        masks=lambda wildcards, input: Path(input.masks[0]).parent,
        mesh_as_noted=mesh_as_noted("<results>/{mpp}um/fold-{fold}/model.pt"),
        seed=seed_of,
        settings=lambda wildcards: " ".join(
            [
                arguments(CONFIG.training, Learning),
                *filter(None, [own_network(wildcards), own_task()]),
                *(shlex.quote(name) for name in NAMES if SEVERAL),
            ]
        ),
    shell:
        f"{{resources.launcher}} gigapipe {TASK.train}"
        " --folds {input.folds} --fold {wildcards.fold}"
        " --pyramids {params.pyramids} --masks {params.masks} --mpp {wildcards.mpp} --mesh {resources.mesh}"
        " --threads {resources.cores_per_rank} --seed {params.seed} {params.settings} {resources.limits} {resources.time_limit}"
        " --output {output.model} {resources.attempts} > {log} 2>&1"
        " || gigapipe explain $? --output {output.model} --log {log} {resources.attempts} 2>> {log}"


rule trained:
    input:
        for_each_model("<results>/{mpp}um/fold-{fold}/model.pt"),


rule segment:
    input:
        folds="<results>/folds.tsv",
        pyramids=pyramids_at,
        masks=expand("<results>/masks/{{mpp}}um/{slide}", slide=SHEET),
        model="<results>/{mpp}um/fold-{fold}/model.pt",
    output:
        # Of each held-out slide a store with the mask, and a picture; and dice.tsv.
        directory(f"<results>/{{mpp}}um/fold-{{fold}}/{TASK.masks}"),
    log:
        "<logs>/segment/{mpp}um/fold-{fold}.log",
    benchmark:
        "<benchmarks>/segment/{mpp}um/fold-{fold}.tsv"
    conda:
        "../../envs/gigapipe.yaml"
    threads: cores_for(f"<results>/{{mpp}}um/fold-{{fold}}/{TASK.masks}")
    resources:
        **ranks_for(
            f"<results>/{{mpp}}um/fold-{{fold}}/{TASK.masks}", beside_others=True
        ),
        mesh=says_mesh,
        limits=applying_limits_of,
    params:
        pyramids=folder_of_pyramids,
        masks=lambda wildcards, input: Path(input.masks[0]).parent,
        mesh_as_noted=mesh_as_noted(f"<results>/{{mpp}}um/fold-{{fold}}/{TASK.masks}"),
    shell:
        "{resources.launcher} gigapipe segment --folds {input.folds} --pyramids {params.pyramids}"
        " --masks {params.masks} --model {input.model} --mesh {resources.mesh} --threads {resources.cores_per_rank} {resources.limits}"
        " --output {output} {resources.attempts} > {log} 2>&1"
        " || gigapipe explain $? --output {output} --log {log} {resources.attempts} 2>> {log}"


rule dice:
    input:
        found=for_each_model(f"<results>/{{mpp}}um/fold-{{fold}}/{TASK.masks}"),
        trainings=for_each_model("<results>/{mpp}um/fold-{fold}/training.json"),
    output:
        table=report(
            "<results>/dice.tsv",
            caption="../report/dice.rst",
            category=TASK.masks.capitalize(),
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
        margin=arguments(CONFIG.comparison, Comparison),
    shell:
        "gigapipe dice --tables {params.tables} --trainings {input.trainings} {params.margin} --output {params.folder}"
        " {resources.attempts} > {log} 2>&1"


rule evaluated:
    input:
        rules.dice.output,
