# Who is trained on, who chooses the epoch, and who is only ever predicted.


rule folds:
    input:
        lambda wildcards: suitable_sheet(),
    output:
        table=f"<results>/{DIVISION}folds.tsv",
        splits=f"<results>/{DIVISION}splits.tsv",
        text=f"<results>/{DIVISION}folds.md",
    log:
        f"<logs>/{DIVISION}folds.log",
    benchmark:
        f"<benchmarks>/{DIVISION}folds.tsv"
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        number=CONFIG.folds.number,
        seed=seed_of,
        by=lambda wildcards: (
            "site" if split_of(wildcards) == "given" else split_of(wildcards)
        ),
        # A function: in a plain string Snakemake would take {slide} for a wildcard of its own.
        source=lambda wildcards: (["--source", CONFIG.source] if CONFIG.source else []),
        labels="" if LABELLED else "--unlabelled",
        given=(["--given", CONFIG.folds.given] if CONFIG.folds.given else []),
        folder=subpath(output.table, parent=True),
    shell:
        "gigapipe folds {input:q} {params.folder} --folds {params.number} --seed {params.seed}"
        " --by {params.by} {params.given:q} {params.source:q} {params.labels} > {log} 2>&1"
