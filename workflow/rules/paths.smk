# Files that are given: what Snakemake, or an executor of its, would not take as it is, is refused before anything runs.

import time

from snakemake.io import WILDCARD_REGEX
from snakemake.pathvars import PATHVAR_REGEX

# An executor hands a job its paths in a command: in quotes of Python's, in which a shell finds variables and commands,
# and Snakemake options.
NOT_FOR_JOBS = r"^-|['\"\\$`;&|<>()]"


def given_files():
    """Each file that the config or the sheet names and a job is given, and where it is named."""
    yield "config: slides", CONFIG.slides
    for where, path in WEIGHTS.items():
        yield f"config: {where}.weights", path
    if CONFIG.cohort:
        yield "config: cohort.sites", CONFIG.cohort.sites
        for path in (CONFIG.cohort.manifests or {}).values():
            yield "config: cohort.manifests", path
    for row in (SHEET or {}).values() if CONFIG.slides else []:
        for column in ("source", "tissue", "mask"):
            if column != "source" or not is_remote(row["source"]):
                where = f"sample sheet {CONFIG.slides}: slide {row['slide']}: {column}"
                yield where, row.get(column)


def date_of(path):
    """When a file was changed, in seconds; 0 if there is none."""
    return Path(path).stat().st_mtime if Path(path).exists() else 0


def check_paths(named):
    """Refuse those of `named` (where, path) in whose paths Snakemake would fill something in, or that are dated in the
    future, and on a cluster paths that no job is told as they are.
    """
    if re.search("[{}]", workflow.basedir):
        refuse(
            f"{workflow.basedir}: the workflow is in a folder with a brace in its name, which Snakemake would "
            "replace; move it (the folder in which you run it may have any name)"
        )
    files = [(where, path) for where, path in named if path]
    for where, path in files:
        if filled := WILDCARD_REGEX.search(path) or PATHVAR_REGEX.search(path):
            refuse(
                f"{where}: {path} contains {filled[0]}, which Snakemake would replace; rename it, or give a "
                "link to it"
            )
        if (dated := date_of(path)) > time.time() + 60:
            refuse(
                f"{where}: {path} is dated {time.ctime(dated)}, in the future by this machine's clock, so that "
                "Snakemake would compute everything from it again each time; correct its date (`touch` it), or the clock"
            )
    told = [("the working folder", os.getcwd())]
    told += [("the config", str(path)) for path in workflow.configfiles]
    for where, path in [*files, *told] if RANKS_PER_NODE else []:
        if sign := re.search(NOT_FOR_JOBS, path):
            refuse(
                f"{where}: {path} contains {sign[0]}, which the job submission would change; rename it, or "
                "give a link to it"
            )


if workflow.is_main_process:
    check_paths(given_files())
