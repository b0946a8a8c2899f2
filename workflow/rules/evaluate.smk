# Held-out predictions, and the comparison of resolutions.


rule predict:
    input:
        folds=f"<results>/{DIVISION}folds.tsv",
        pyramids=expand("<results>/pyramids/{slide}", slide=SHEET),
        model=f"<results>/{NETWORK}/model.pt",
    output:
        f"<results>/{NETWORK}/predictions.tsv",
    log:
        f"<logs>/predict/{NETWORK}.log",
    benchmark:
        f"<benchmarks>/predict/{NETWORK}.tsv"
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
        mesh=mesh_of,
    shell:
        "{resources.launcher} gigapipe predict --folds {input.folds} --pyramids {params.pyramids}"
        " --model {input.model} --mesh {params.mesh} --threads {resources.cores_per_rank} {resources.limits}"
        " --output {output} > {log} 2>&1"


rule evaluate:
    input:
        predictions=for_each_model(f"<results>/{NETWORK}/predictions.tsv"),
        trainings=for_each_model(f"<results>/{NETWORK}/training.json"),
    output:
        table=report(
            "<results>/comparison.tsv",
            caption="../report/table.rst",
            category="Comparison of resolutions",
            labels={"what": "table"},
        ),
        text="<results>/comparison.md",
        page=report(
            "<results>/comparison.html",
            caption="../report/table.rst",
            category="Comparison of resolutions",
            labels={"what": "page"},
        ),
        figure=report(
            "<results>/comparison.png",
            caption="../report/figure.rst",
            category="Comparison of resolutions",
            labels={"what": "figure"},
        ),
    log:
        "<logs>/evaluate.log",
    benchmark:
        "<benchmarks>/evaluate.tsv"
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        folder=subpath(output.table, parent=True),
    shell:
        "gigapipe evaluate --predictions {input.predictions} --trainings {input.trainings} --output {params.folder}"
        " > {log} 2>&1"


rule evaluated:
    input:
        rules.evaluate.output,
