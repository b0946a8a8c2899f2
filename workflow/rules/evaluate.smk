# Held-out predictions, and the comparison of resolutions and methods.


rule predict:
    input:
        folds=folds_of,
        pyramids=pyramids_at,
        model=f"<results>/{NETWORK}/model.pt",
    output:
        f"<results>/{NETWORK}/predictions.tsv",
    log:
        f"<logs>/predict/{NETWORK}.log",
    benchmark:
        f"<benchmarks>/predict/{NETWORK}.tsv"
    conda:
        "../../envs/gigapipe.yaml"
    threads: cores_for(f"<results>/{NETWORK}/predictions.tsv")
    resources:
        **ranks_for(f"<results>/{NETWORK}/predictions.tsv", beside_others=True),
        mesh=says_mesh,
        limits=applying_limits_of,
    params:
        pyramids=folder_of_pyramids,
        mesh_as_noted=mesh_as_noted(f"<results>/{NETWORK}/predictions.tsv"),
    shell:
        "{resources.launcher} gigapipe predict --folds {input.folds} --pyramids {params.pyramids}"
        " --model {input.model} --mesh {resources.mesh} --threads {resources.cores_per_rank} {resources.limits}"
        " --output {output} {resources.attempts} > {log} 2>&1"
        " || gigapipe explain $? --output {output} --log {log} {resources.attempts} 2>> {log}"


# Of several methods it also has the differences between them.
rule evaluate:
    input:
        predictions=for_each_model(f"<results>/{NETWORK}/predictions.tsv"),
        trainings=for_each_model(f"<results>/{NETWORK}/training.json"),
    output:
        **({"between": "<results>/methods.tsv"} if len(METHODS) > 1 else {}),
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
        margin=arguments(CONFIG.comparison, Comparison),
    shell:
        "gigapipe evaluate --predictions {input.predictions} --trainings {input.trainings} {params.margin} --output {params.folder}"
        " {resources.attempts} > {log} 2>&1"


rule evaluated:
    input:
        rules.evaluate.output,
        "<results>/external.tsv" if CONFIG.external else [],
