# Who is trained on, who chooses the epoch, and who is only ever predicted.


rule folds:
    input:
        SHEET_FILE,
    output:
        table="<results>/folds.tsv",
        splits="<results>/splits.tsv",
        text="<results>/folds.md",
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
        labels="" if LABELLED else "--unlabelled",
        given=(
            ["--given", config["folds"]["given"]]
            if config["folds"].get("given")
            else []
        ),
        folder=subpath(output.table, parent=True),
    shell:
        "gigapipe folds {input:q} {params.folder} --folds {params.folds[number]} --seed {params.folds[seed]}"
        " --by {params.folds[by]} {params.given:q} {params.source:q} {params.labels} > {log} 2>&1"
