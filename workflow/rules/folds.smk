# Who is trained on, who chooses the epoch, and who is only ever predicted.


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
        labels="" if LABELLED else "--unlabelled",
    shell:
        "gigapipe folds {input:q} {output} --folds {params.folds[number]} --seed {params.folds[seed]} {params.source:q}"
        " {params.labels} > {log} 2>&1"
