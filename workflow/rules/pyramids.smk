# Each slide at every chosen resolution.


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
    params:
        mpp=" ".join(RESOLUTIONS),
    shell:
        "gigapipe pyramid {input:q} {output} --mpp {params.mpp} --threads {threads} > {log} 2>&1"


rule pyramids:
    input:
        expand("<results>/pyramids/{slide}", slide=SHEET.index),
