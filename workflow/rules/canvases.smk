# The canvas of each resolution for which the config says `auto`: chosen when the pyramids are there.

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
            mpp=lambda wildcards: " ".join(chosen_together()),
        shell:
            "gigapipe canvases {input} --mpp {params.mpp} --output {output} {resources.attempts} > {log} 2>&1"

    use rule canvases as canvas with:
        output:
            OWN_CANVAS,
        log:
            "<logs>/canvas/{mpp}um.log",
        params:
            mpp=lambda wildcards: wildcards.mpp,
