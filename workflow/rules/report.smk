# What networks saw, and one page of the whole run.


rule map:
    input:
        pyramids=pyramids_at,
        models=at_resolution(rules.train.output.model),
        predictions=at_resolution(rules.predict.output[0]),
    output:
        # Of each slide a store with the map, and a picture; and maps.tsv.
        directory(MAPS),
    log:
        "<logs>/map/{mpp}um{method}.log",
    benchmark:
        "<benchmarks>/map/{mpp}um{method}.tsv"
    conda:
        "../../envs/gigapipe.yaml"
    threads: cores_for(MAPS)
    resources:
        **ranks_for(MAPS, beside_others=True),
        mesh=says_mesh,
        limits=applying_limits_of,
    params:
        pyramids=folder_of_pyramids,
        mesh_as_noted=mesh_as_noted(MAPS),
        number=CONFIG.maps,
    shell:
        "{resources.launcher} gigapipe map --models {input.models} --predictions {input.predictions}"
        " --pyramids {params.pyramids} --number {params.number} --mesh {resources.mesh}"
        " --threads {resources.cores_per_rank} {resources.limits} --output {output} {resources.attempts} > {log} 2>&1"
        " || gigapipe explain $? --output {output} --log {log} {resources.attempts} 2>> {log}"


rule page:
    input:
        table=rules.evaluate.output.table,
        folds=once_each(rules.folds.output.text),
        slides=rules.survey.output.picture,
        maps=(expand(MAPS, mpp=RESOLUTIONS, method=METHODS) if CONFIG.maps else []),
        external="<results>/external.tsv" if CONFIG.external else [],
        config=rules.settings.output,
    output:
        page="<results>/report.html",
        figures=directory("<results>/figures"),
    log:
        "<logs>/page.log",
    benchmark:
        "<benchmarks>/page.tsv"
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        results=subpath(output.page, parent=True),
    shell:
        "gigapipe report {params.results} --config {input.config} --figures {output.figures} --output {output.page}"
        " {resources.attempts} > {log} 2>&1"
