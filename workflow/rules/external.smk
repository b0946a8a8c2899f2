# Other cohorts: their slides' pyramids, what the networks of all folds say of them, and how that compares.

from gigapipe.configuration.pyramids import PyramidPixels
from gigapipe.evaluation.columns import SPLITS as EVALUATED_SPLITS


def external_sheets():
    """The slides of each external cohort, by its name, then by the slide's."""
    found = {}
    for cohort, path in CONFIG.external.items():
        key = f"config: external.{cohort}: "
        sheet = or_refuse(
            key, read_sheet, path, CONFIG.source, True, CONFIG.confirmed_labels
        )
        rows = sheet.set_index("slide", drop=False).to_dict("index")
        check_external(f"sample sheet {path}", rows)
        found[cohort] = rows
    return found


def check_external(where, rows):
    """Refuse slides of an external cohort that are not here, or whose class the cohort lacks; name common patients."""
    known = {row["label"] for row in SHEET.values()}
    patients = {row["patient"] for row in SHEET.values()}
    for slide, row in rows.items():
        if is_remote(row["source"]):
            refuse(
                f"{where}: slide {slide}: an external slide is a local file; download {row['source']} yourself"
            )
        if absence := absence_of(row["source"]):
            refuse(f"{where}: slide {slide}: {absence}: {row['source']}")
        if row["label"] not in known:
            refuse(
                f"{where}: slide {slide}: its label {row['label']} is none of those of the cohort "
                f"({', '.join(sorted(known))}); rename it, or remove the row"
            )
    # Hospitals number their patients alike.
    both = sorted(patients & {row["patient"] for row in rows.values()})
    if both and workflow.is_main_process:
        print(
            f"{where}: {len(both)} of its patients, as {both[0]}, have the name of one in the cohort, and are taken for "
            "others; if they are the same, remove their rows, or what is found there is not of new patients",
            file=sys.stderr,
        )


EXTERNAL = external_sheets()
# The kind of folds that the comparison's rows are about, whose networks are asked.
MAIN_SPLIT = next(split for split in EVALUATED_SPLITS if split in SPLITS)

if workflow.is_main_process:
    check_paths(
        [
            *(
                (f"config: external.{cohort}", CONFIG.external[cohort])
                for cohort in EXTERNAL
            ),
            *(
                (f"sample sheet {CONFIG.external[cohort]}: slide {slide}", row[column])
                for cohort, rows in EXTERNAL.items()
                for slide, row in rows.items()
                for column in ("source", "tissue")
                if row.get(column)
            ),
        ]
    )


def networks_asked(pattern):
    """The files of a rule, of all networks of the resolution and method in the wildcards that score external slides."""

    def files(wildcards):
        return expand(
            pattern,
            mpp=wildcards.mpp,
            method=folder_of_method(wildcards),
            division=[
                folder for folder, one in DIVISIONS.items() if one.split == MAIN_SPLIT
            ],
            fold=FOLDS,
        )

    return files


wildcard_constraints:
    cohort="|".join(map(re.escape, EXTERNAL)),
    other=r"[\w.-]+",


rule external_pyramid:
    input:
        slide=lambda wildcards: EXTERNAL[wildcards.cohort][wildcards.other]["source"],
        tissue=lambda wildcards: (
            EXTERNAL[wildcards.cohort][wildcards.other].get("tissue") or []
        ),
    output:
        directory("<results>/external/{cohort}/pyramids/{other}"),
    log:
        "<logs>/external_pyramid/{cohort}/{other}.log",
    benchmark:
        "<benchmarks>/external_pyramid/{cohort}/{other}.tsv"
    conda:
        "../../envs/gigapipe.yaml"
    resources:
        alone=BESIDE_OTHERS,
        node_launcher=ON_NODE,
        per_node=slides_per_node,
        scheduler=f"--scheduler {CONFIG.pyramids.scheduler}",
        leave_out=("--leave-out" if CONFIG.pyramids.unusable == "leave_out" else ""),
    params:
        mpp=" ".join(RESOLUTIONS),
        settings=lambda wildcards, input: " ".join(
            [arguments(CONFIG.pyramids, PyramidPixels), *reader_option(input.slide)]
        ),
        code=lambda wildcards, input: READERS.get(suffix_of(input.slide), NOTHING),
        own_mpp=lambda wildcards: (
            ["--slide-mpp", mpp]
            if (mpp := EXTERNAL[wildcards.cohort][wildcards.other].get("mpp"))
            else []
        ),
        drawn=lambda wildcards, input: (
            option("--tissue", input.tissue) if input.tissue else []
        ),
    shell:
        "{resources.alone} gigapipe pyramid --mpp {params.mpp} {params.settings} {params.own_mpp} {params.drawn:q}"
        " {resources.scheduler} {resources.leave_out} --threads {threads} {resources.attempts}"
        " -- {input.slide:q} {output} > {log} 2>&1"


OF_EXTERNAL = "<results>/external/{cohort}/{mpp}um{method}/external.tsv"


rule predict_external:
    input:
        sheet=lambda wildcards: CONFIG.external[wildcards.cohort],
        pyramids=lambda wildcards: [
            f"<results>/external/{wildcards.cohort}/pyramids/{slide}"
            for slide in EXTERNAL[wildcards.cohort]
        ],
        models=networks_asked(rules.train.output.model),
        predictions=networks_asked(rules.predict.output[0]),
    output:
        OF_EXTERNAL,
    log:
        "<logs>/predict_external/{cohort}/{mpp}um{method}.log",
    benchmark:
        "<benchmarks>/predict_external/{cohort}/{mpp}um{method}.tsv"
    conda:
        "../../envs/gigapipe.yaml"
    threads: cores_for(OF_EXTERNAL)
    resources:
        **ranks_for(OF_EXTERNAL, beside_others=True),
        mesh=says_mesh,
        limits=applying_limits_of,
    params:
        pyramids=lambda wildcards: RESULTS / "external" / wildcards.cohort / "pyramids",
        source=lambda wildcards: [
            *(option("--source", CONFIG.source) if CONFIG.source else []),
            *(f"--confirmed-label={label}" for label in CONFIG.confirmed_labels),
        ],
    shell:
        "{resources.launcher} gigapipe predict-external --cohort {wildcards.cohort} {params.source:q}"
        " --models {input.models} --pyramids {params.pyramids} --mesh {resources.mesh}"
        " --threads {resources.cores_per_rank} {resources.limits} --output {output} {resources.attempts}"
        " -- {input.sheet:q} > {log} 2>&1"
        " || gigapipe explain $? --output {output} --log {log} {resources.attempts} 2>> {log}"


rule evaluate_external:
    input:
        external=expand(OF_EXTERNAL, cohort=EXTERNAL, mpp=RESOLUTIONS, method=METHODS),
        predictions=rules.evaluate.input.predictions,
        trainings=rules.evaluate.input.trainings,
    output:
        table="<results>/external.tsv",
        text="<results>/external.md",
    log:
        "<logs>/evaluate_external.log",
    benchmark:
        "<benchmarks>/evaluate_external.tsv"
    localrule: True
    conda:
        "../../envs/gigapipe.yaml"
    params:
        folder=subpath(output.table, parent=True),
    shell:
        "gigapipe evaluate-external --external {input.external} --predictions {input.predictions}"
        " --trainings {input.trainings} --output {params.folder} {resources.attempts} > {log} 2>&1"
