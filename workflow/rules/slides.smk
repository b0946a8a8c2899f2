# Slide files: generated, fetched, or already there.

REMOTE = [slide for slide in SHEET.index if is_url(SHEET.loc[slide, "source"])]

if not config.get("slides"):

    rule phantom:
        output:
            "<results>/phantom/{file}",
        log:
            "<logs>/phantom/{file}.log",
        benchmark:
            "<benchmarks>/phantom/{file}.tsv"
        wildcard_constraints:
            file=r"[\w.-]+",
        conda:
            "../../envs/gigapipe.yaml"
        params:
            folder=subpath(output[0], parent=True),
            cohort=" ".join(
                f"--{key} {value}" for key, value in config["phantom"].items()
            ),
        shell:
            "gigapipe phantom {params.folder} {params.cohort} --only {wildcards.file} > {log} 2>&1"


if REMOTE:

    rule download:
        output:
            "<resources>/slides/{slide}{suffix}",
        log:
            "<logs>/download/{slide}{suffix}.log",
        benchmark:
            "<benchmarks>/download/{slide}{suffix}.tsv"
        wildcard_constraints:
            slide="|".join(map(re.escape, REMOTE)),  # never a file of the user's own
            suffix=r"\.[a-z]+",
        retries: 2
        localrule: True  # compute nodes often have no way out
        conda:
            "../../envs/gigapipe.yaml"
        params:
            url=lambda wildcards: SHEET.loc[wildcards.slide, "source"],
        shell:
            "gigapipe download {params.url:q} {output} > {log} 2>&1"


rule slides:
    input:
        [slide_file(slide) for slide in SHEET.index],
