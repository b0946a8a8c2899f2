# Who is trained on, who chooses the epoch, and who is only ever predicted.


rule folds:
    input:
        sheet_as_dated,
    output:
        table="<results>/{place}folds.tsv",
        splits="<results>/{place}splits.tsv",
        text="<results>/{place}folds.md",
    log:
        "<logs>/{place}folds.log",
    benchmark:
        "<benchmarks>/{place}folds.tsv"
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        rows=rows_of,
        number=CONFIG.folds.number,
        seed=seed_of,
        by=lambda wildcards: (
            "site" if split_of(wildcards) == "given" else split_of(wildcards)
        ),
        source=lambda wildcards: [
            *(option("--source", CONFIG.source) if CONFIG.source else []),
            *(f"--confirmed-label={label}" for label in CONFIG.confirmed_labels),
        ],
        labels=lambda wildcards: (
            {
                "label": "",
                "target": shlex.join(option("--target", TARGET or "")),
            }.get(TASK.needs, "--unlabelled")
        ),
        given=lambda wildcards: (
            option("--given", CONFIG.folds.given) if CONFIG.folds.given else []
        ),
        folder=subpath(output.table, parent=True),
    shell:
        "gigapipe folds --folds {params.number} --seed {params.seed} --by {params.by} {params.given:q} {params.source:q}"
        " {params.labels} {resources.attempts} -- {input:q} {params.folder} > {log} 2>&1"
