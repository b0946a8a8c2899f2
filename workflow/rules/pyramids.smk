# Each slide at every chosen resolution, and what became of each.


rule pyramid:
    input:
        lambda wildcards: slide_file(wildcards.slide),
    output:
        # The store is image.zarr in this folder, out of reach of Snakemake's own timestamp file.
        directory("<results>/pyramids/{slide}"),
    log:
        "<logs>/pyramid/{slide}.log",
    benchmark:
        "<benchmarks>/pyramid/{slide}.tsv"
    conda:
        "../../envs/gigapipe.yaml"
    resources:
        alone=ALONE,
        # Resources, for another changes no pixel and makes no pyramid again.
        scheduler=f"--scheduler {CONFIG.pyramids.scheduler}",
        leave_out=("--leave-out" if CONFIG.pyramids.unusable == "leave_out" else ""),
        # A slide that is going to be removed is compared with its pyramid first.
        verify=lambda wildcards: (
            "--verify" if not CONFIG.keep_slides and wildcards.slide in REMOTE else ""
        ),
    params:
        mpp=" ".join(RESOLUTIONS),
        settings=arguments(CONFIG.pyramids, PyramidPixels),
        own_mpp=lambda wildcards: (
            ["--slide-mpp", mpp] if (mpp := SHEET[wildcards.slide].get("mpp")) else []
        ),
    shell:
        "{resources.alone} gigapipe pyramid {input:q} {output} --mpp {params.mpp} {params.settings} {params.own_mpp}"
        " {resources.scheduler} {resources.leave_out} {resources.verify} --threads {threads} > {log} 2>&1"


rule survey:
    input:
        expand("<results>/pyramids/{slide}", slide=SHEET),
    output:
        table=report(
            "<results>/slides.tsv",
            caption="../report/slides.rst",
            category="Slides",
            labels={"what": "table"},
        ),
        picture=report(
            "<results>/slides.png",
            caption="../report/contact_sheet.rst",
            category="Slides",
            labels={"what": "contact sheet"},
        ),
    log:
        "<logs>/survey.log",
    benchmark:
        "<benchmarks>/survey.tsv"
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        folder=subpath(output.table, parent=True),
    shell:
        "gigapipe survey {input} --output {params.folder} > {log} 2>&1"


if AUTO_CANVASES:

    rule canvases:
        input:
            expand("<results>/pyramids/{slide}", slide=SHEET),
        output:
            CANVASES,
        log:
            "<logs>/canvases.log",
        localrule: True
        conda:
            "../../envs/gigapipe.yaml"
        params:
            mpp=" ".join(AUTO_CANVASES),
        shell:
            "gigapipe canvases {input} --mpp {params.mpp} --output {output} > {log} 2>&1"


rule pyramids:
    input:
        rules.survey.output,
