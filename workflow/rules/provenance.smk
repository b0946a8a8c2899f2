# What all results were computed from and by what; written last.


rule crate:
    input:
        results=rules.evaluated.input,
        page=rules.page.output.page if TASK.page else [],
        folds=expand("<results>/{place}folds.tsv", place=PLACES),
        slides=rules.survey.output.table,
        config=rules.settings.output,
    output:
        metadata="<results>/ro-crate-metadata.json",
        workflow=directory("<results>/provenance"),
    log:
        "<logs>/crate.log",
    benchmark:
        "<benchmarks>/crate.tsv"
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        results=subpath(output.metadata, parent=True),
    shell:
        "gigapipe crate {params.results} {resources.attempts} > {log} 2>&1"
