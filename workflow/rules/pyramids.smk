# Each slide at every chosen resolution, and what became of each.


rule pyramid:
    input:
        slide=slide_as_dated,
        tissue=lambda wildcards: SHEET[wildcards.slide].get("tissue") or [],
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
        alone=BESIDE_OTHERS,
        node_launcher=ON_NODE,
        per_node=slides_per_node,
        # Resources, for another changes no pixel and makes no pyramid again.
        scheduler=f"--scheduler {CONFIG.pyramids.scheduler}",
        leave_out=("--leave-out" if CONFIG.pyramids.unusable == "leave_out" else ""),
        # A slide that is going to be removed is compared with its pyramid first.
        verify=lambda wildcards: (
            "--verify" if not CONFIG.keep_slides and wildcards.slide in REMOTE else ""
        ),
        # Nor does a resolution more: rule `add` gives it to a pyramid that is there.
        mpp=" ".join(RESOLUTIONS),
    params:
        mpp_as_noted=as_noted("<results>/pyramids/{slide}", MPPS),
        made_of=made_of,
        settings=lambda wildcards: " ".join(
            [
                arguments(CONFIG.pyramids, PyramidPixels),
                *reader_option(slide_file(wildcards.slide)),
            ]
        ),
        # That its code has changed.
        code=lambda wildcards: READERS.get(
            suffix_of(slide_file(wildcards.slide)), NOTHING
        ),
        # What the sheet says of the slide, against what is in its file and what is found.
        own_mpp=lambda wildcards: (
            ["--slide-mpp", mpp] if (mpp := SHEET[wildcards.slide].get("mpp")) else []
        ),
        drawn=lambda wildcards, input: (
            option("--tissue", input.tissue) if input.tissue else []
        ),
    shell:
        "{resources.alone} gigapipe pyramid --mpp {resources.mpp} {params.settings} {params.own_mpp} {params.drawn:q}"
        " {resources.scheduler} {resources.leave_out} {resources.verify} --threads {threads} {resources.attempts}"
        " -- {input.slide:q} {output} > {log} 2>&1"


rule add:
    input:
        pyramid="<results>/pyramids/{slide}",
        slide=slide_to_add_from,
    output:
        # A mark: the levels are in the pyramid, whose other levels, and its date, stay as they are.
        "<results>/pyramids/.added/{slide}/{mpps}um.json",
    log:
        "<logs>/add/{slide}/{mpps}um.log",
    benchmark:
        "<benchmarks>/add/{slide}/{mpps}um.tsv"
    wildcard_constraints:
        mpps=r"[\d.e+_-]+",
    conda:
        "../../envs/gigapipe.yaml"
    resources:
        alone=BESIDE_OTHERS,
        node_launcher=ON_NODE,
        per_node=slides_per_node,
        scheduler=f"--scheduler {CONFIG.pyramids.scheduler}",
        # One that was fetched again for this is going to be removed again.
        verify=lambda wildcards, input: (
            "--verify" if Path(str(input.slide)).parent.name == "again" else ""
        ),
    params:
        mpp=lambda wildcards: wildcards.mpps.replace("_", " "),
        slide=lambda wildcards, input: (
            option("--slide", str(input.slide)) if input.slide else []
        ),
        reader=lambda wildcards: " ".join(reader_option(slide_file(wildcards.slide))),
    shell:
        "{resources.alone} gigapipe add {input.pyramid} --mpp {params.mpp} {params.slide:q} {params.reader}"
        " {resources.scheduler} {resources.verify} --threads {threads} --output {output} {resources.attempts} > {log} 2>&1"


rule survey:
    input:
        pyramids=expand("<results>/pyramids/{slide}", slide=SHEET),
        levels=marks_of_levels,
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
        "gigapipe survey {input.pyramids} --output {params.folder} {resources.attempts} 2>&1 | tee {log}"


rule pyramids:
    input:
        rules.survey.output,
