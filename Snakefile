# The road: slides -> pyramids -> trained models -> table and report. Each rule calls one `gigapipe VERB`.

from snakemake.utils import min_version

min_version("9.20")


configfile: "config/config.yaml"


# Everything of one run lies below one folder; a config that sets `pathvars: results:` gets one of its own.
pathvars:
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/geometry.smk"


if SHEET is None:

    include: "workflow/rules/cohort.smk"

    rule all:
        default_target: True
        input:
            rules.cohort.output,

else:

    include: "workflow/rules/slides.smk"
    include: "workflow/rules/pyramids.smk"
    include: "workflow/rules/folds.smk"

    if config["task"] == "tissue":

        include: "workflow/rules/tissue.smk"

    else:

        include: "workflow/rules/train.smk"
        include: "workflow/rules/evaluate.smk"
        include: "workflow/rules/report.smk"

    rule all:
        default_target: True
        input:
            rules.survey.output,
            for_each_model(f"<results>/{DIVISION}folds.tsv"),
            rules.evaluated.input,
            rules.page.output if LABELLED else [],
