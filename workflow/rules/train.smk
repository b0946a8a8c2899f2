# One network for each resolution, method and held-out fold.


if FETCHED:

    rule weights:
        output:
            f"{CONFIG.pathvars.resources}/weights/{{official}}",
        log:
            "<logs>/weights/{official}.log",
        localrule: True  # compute nodes often have no way out
        conda:
            "../../envs/gigapipe.yaml"
        params:
            network=lambda wildcards: FETCHED[wildcards.official],
        shell:
            "gigapipe weights {params.network} --output {output:q} {resources.attempts} > {log} 2>&1"


rule train:
    input:
        folds=folds_of,
        pyramids=pyramids_at,
        weights=lambda wildcards: training_of(wildcards).weights or [],
        start=coarser_model,
        canvases=canvases_of,
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
    threads: cores_for(f"<results>/{NETWORK}/model.pt")
    resources:
        **ranks_for(f"<results>/{NETWORK}/model.pt"),
        # Resources, for another changes no weight and repeats no training.
        mesh=says_mesh,
        limits=training_limits_of,
        time_limit=time_limit_of("train"),
    params:
        **CODE,
        pyramids=folder_of_pyramids,
        mesh_as_noted=mesh_as_noted(f"<results>/{NETWORK}/model.pt"),
        seed=seed_of,
        canvas=canvas_of,
        canvas_asked_for=canvas_asked_for,  # of another all is made again; that does not hold for what depends on inputs
        settings=lambda wildcards: " ".join(
            [
                arguments(training_of(wildcards), Network),
                arguments(training_of(wildcards), Learning),
                *([shlex.join(option("--target", TARGET))] if TARGET else []),
                *filter(None, [own_task(), method_option(wildcards)]),
            ]
        ),
        start=lambda wildcards, input: ["--start", input.start] if input.start else [],
    shell:
        "{resources.launcher} gigapipe train --folds {input.folds} --fold {wildcards.fold}"
        " --pyramids {params.pyramids} --mpp {wildcards.mpp} --canvas {params.canvas} --mesh {resources.mesh}"
        " --threads {resources.cores_per_rank} --seed {params.seed} {params.settings} {params.start:q} {resources.limits}"
        " {resources.time_limit}"
        " --output {output.model} {resources.attempts} > {log} 2>&1"
        " || gigapipe explain $? --output {output.model} --log {log} {resources.attempts} 2>> {log}"


rule trained:
    input:
        for_each_model(f"<results>/{NETWORK}/model.pt"),
