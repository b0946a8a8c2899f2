# Slide files: generated, fetched, or already there.

REMOTE = [slide for slide in SHEET if is_remote(SHEET[slide]["source"])]


if not CONFIG.slides:

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
        resources:
            alone=BESIDE_OTHERS,
            node_launcher=ON_NODE,
            per_node=slides_per_node,
        params:
            folder=subpath(output[0], parent=True),
            cohort=lambda wildcards: arguments(CONFIG.phantom, Phantom),
        shell:
            "{resources.alone} gigapipe phantom {params.folder} {params.cohort} --only {wildcards.file} > {log} 2>&1"


if REMOTE:

    rule download:
        output:
            # A slide that had arrived when Snakemake was killed is looked at, not deleted and fetched again.
            update("<resources>/slides/{slide}{suffix}")
            if CONFIG.keep_slides
            else update(temp("<resources>/slides/{slide}{suffix}")),
        log:
            "<logs>/download/{slide}{suffix}.log",
        benchmark:
            "<benchmarks>/download/{slide}{suffix}.tsv"
        wildcard_constraints:
            slide="|".join(map(re.escape, REMOTE)),  # never a file of the user's own
            suffix=r"\.[a-z0-9]+",
        retries: 2
        localrule: True  # compute nodes often have no way out
        conda:
            "../../envs/gigapipe.yaml"
        resources:
            downloads=1,  # how many at once is said in profiles/default
            # Resources, for where a file comes from changes no pixel: another release's id and checksum, or another
            # mirror, fetches nothing again that is here.
            release=release_of,
            archive=arguments(CONFIG.gdc, Archive),
        params:
            file=file_at_source,
        shell:
            "gigapipe download {resources.release} {params.file:q} {output} {resources.archive} {resources.attempts} > {log} 2>&1"

    # For a resolution that its pyramid does not have, and cannot be given by a finer one.
    use rule download as download_again with:
        output:
            temp(update("<resources>/slides/again/{slide}{suffix}")),
        log:
            "<logs>/download/again/{slide}{suffix}.log",
        benchmark:
            "<benchmarks>/download/again/{slide}{suffix}.tsv"


rule slides:
    input:
        lambda wildcards: [slide_file(slide) for slide in SHEET],
