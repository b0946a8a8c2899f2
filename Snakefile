# `snakemake` in this folder runs workflow/Snakefile. An included file's default target does not count: it is said again.


include: "workflow/Snakefile"


workflow.default_target = "all"
