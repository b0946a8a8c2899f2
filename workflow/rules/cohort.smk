# The sample sheet of a cohort of the Genomic Data Commons: made once, then yours to look at and to edit.

ASKED = CONFIG.cohort.model_dump(exclude_none=True)


rule cohort:
    input:
        manifests=lambda wildcards: list(ASKED.get("manifests", {}).values()),
        sites=lambda wildcards: ASKED.get("sites", []),
    output:
        CONFIG.slides,
    log:
        "<logs>/cohort.log",
    localrule: True  # compute nodes often have no way out
    conda:
        "../../envs/gigapipe.yaml"
    params:
        verb="query" if "projects" in ASKED else "sheet",
        asked=lambda wildcards: [
            *(f"--project={name}" for name in ASKED.get("projects", [])),
            *(
                f"--manifest={label}={path}"
                for label, path in ASKED.get("manifests", {}).items()
            ),
            *(
                f"--class={name}={value}"
                for name, value in ASKED.get("classes", {}).items()
            ),
            *(
                f"--{key}={ASKED[key]}"
                for key in (
                    ("strategy", "samples", "label")
                    if "projects" in ASKED
                    else ("strategy", "samples", "sites")
                )
                if key in ASKED
            ),
            *([f"--api={CONFIG.gdc.api}"] if "projects" in ASKED else []),
        ],
    shell:
        "gigapipe gdc {params.verb} {params.asked:q} {resources.attempts} -- {output:q} > {log} 2>&1"


onstart:
    hold_results()
    forget_failures()


onsuccess:
    with open(CONFIG.slides, encoding="utf-8") as sheet:
        print(
            f"\n{sheet.readline()}--strategy and --samples in it are the keys strategy and samples of `cohort` in the config."
        )
    print(
        f"The sample sheet is {CONFIG.slides}: check it, and run the same command again to continue. "
        "To query again, delete it."
    )
