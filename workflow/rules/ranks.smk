# What a job asks for that starts the ranks of a mesh: the mesh's, until an attempt has found that none can succeed.

import hashlib
import json

import gigapipe
from gigapipe.attempts import NEVER, Attempts

# `mesh_NAME` in a profile is what such jobs ask for instead of its NAME.
OF_MESHES = {
    name.removeprefix("mesh_"): of_profile(name)
    for name in workflow.resource_settings.default_resources or {}
    if name.startswith("mesh_")
}
# What all attempts with these settings are told, and by what their ranks are started.
TOLD = [
    gigapipe.__version__,
    CONFIG.model_dump_json(),
    [CODES_OF_NETWORKS, CODE_OF_TASK, READERS],
    [LAUNCHER, ALONE, RANKS_PER_NODE, CORES_PER_RANK, OF_MESHES],
]
MADE = tuple(
    f"{each}/" for each in (CONFIG.pathvars.results, CONFIG.pathvars.resources)
)


def as_given(path):
    """An input's name; of a user's file also its size and date, for another may come under its name."""
    try:
        found = None if path.startswith(MADE) else os.stat(path)
    except OSError:
        found = None
    return [path, found.st_size, int(found.st_mtime)] if found else path


def attempts_of(path, input):
    """The attempts at an output with these settings, on these inputs, started in this way."""
    text = json.dumps([TOLD, str(path), list(map(as_given, input))])
    return Attempts(Path(path), hashlib.sha256(text.encode()).hexdigest()[:16])


def attempts_at(output, wildcards, input):
    return attempts_of(path_of(output, wildcards), input)


def in_vain(output, wildcards, input, attempt):
    """Whether an attempt has found that none can succeed, no input has been made since, and nobody insists (-R, -F)."""
    attempts = attempts_at(output, wildcards, input)
    try:
        os.listdir(attempts.output.parent)  # a shared disk then looks what is there now
    except OSError:
        return False
    if attempts.verdict is None:
        return False
    forced = workflow.dag_settings
    if attempt == 1 and (forced.forcerun or forced.forceall or forced.forcetargets):
        tried = workflow.is_main_process  # what that submits finds no mark
    else:
        tried = attempts.overtaken(map(Path, input))
    if tried:
        if not workflow.dryrun:
            (attempts.folder / NEVER).unlink(missing_ok=True)
        return False
    let_be_the_last(str(attempts.output))
    return True


def let_be_the_last(output):
    """A job that fails for certain need not be tried again as often as the profile says: Snakemake has no rule for it."""
    if workflow.is_main_process:
        for job in getattr(workflow.dag, "jobs", ()):
            if output in job.output and job.attempt <= job.restart_times:
                job.attempt = job.restart_times + 1


def cores_for(output):
    """Of all ranks that write `output`; a job that is to say why there is no use needs one."""

    def cores(wildcards, input, attempt):
        return (
            1
            if in_vain(output, wildcards, input, attempt)
            else ranks_of(wildcards) * CORES_PER_RANK
        )

    return cores


def ranks_for(output, beside_others=False):
    """The resources of a rule that starts ranks, which write `output`, and may share a node with others.

    Resources, for others change nothing that is made. `mpi` is for Slurm's executor, and `cpus_per_task` is what Slurm
    calls the cores of a rank.
    """
    of_mesh = {
        "launcher": (command_before, ""),
        "mpi": (mpi_of, None),
        "nodes": (nodes_of, 1),
        "tasks": (ranks_of, 1),
        "cpus_per_task": (lambda wildcards: CORES_PER_RANK, 1),
        "per_node": (jobs_per_node if beside_others else lambda wildcards: 1, 1),
    }
    if CARDS:
        of_mesh["gpus"] = gpus_of, 0
    for name, value in OF_MESHES.items():
        # What a profile says of memory may be a formula, and a process that reads a file needs little.
        alone = 2000 if name == "mem_mb" else of_profile(name)
        of_mesh[name] = (lambda wildcards, value=value: value, alone)

    def chosen(full, alone):
        return lambda wildcards, input, attempt: (
            alone if in_vain(output, wildcards, input, attempt) else full(wildcards)
        )

    def attempts(wildcards, input):
        return f"--attempts {attempts_at(output, wildcards, input).key}"

    return {name: chosen(*each) for name, each in of_mesh.items()} | {
        "cores_per_rank": CORES_PER_RANK,
        "attempts": attempts,
    }
