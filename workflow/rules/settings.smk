# What the run was told: the config with all defaults.


rule settings:
    output:
        "<results>/config.yaml",
    log:
        "<logs>/settings.log",
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        # A function: in a plain string Snakemake would take {slide} for a wildcard of its own.
        config=lambda wildcards: yaml.safe_dump(
            CONFIG.model_dump(mode="json"), sort_keys=False, allow_unicode=True
        ),
    shell:
        "printf %s {params.config:q} > {output} 2> {log}"
