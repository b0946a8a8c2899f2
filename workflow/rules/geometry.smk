# Where ranks run and how they are started: from the config's meshes, and from what the profile says of a node.

import math
import sys


def of_profile(name, rule=None):
    """What the profile's `set-resources` for a rule, or its `default-resources`, say of a resource; None if nothing."""
    settings = workflow.resource_settings
    for said in (settings.overwrite_resources.get(rule), settings.default_resources):
        if said and name in said:
            return said[name].raw
    return None


def refuse_unset_variables():
    """Snakemake leaves `$NAME` in a profile as it is where no such variable is set, and a scheduler takes it as text."""
    settings = workflow.resource_settings
    for resources in (
        settings.default_resources or {},
        *settings.overwrite_resources.values(),
    ):
        for name, resource in resources.items():
            for variable in re.findall(r"\$\{?(\w+)", str(resource.raw)):
                if variable not in os.environ:
                    refuse(
                        f"profile: {name} is taken from the environment, where {variable} is not set; "
                        f"export {variable}=… before you start, or write the value into the profile"
                    )


def choice_for(resolution):
    """How many ranks share an image, and the memory that each may take, where the config leaves the mesh open.

    Jobs, which read this file too, must find the same: on one machine they do not, and on a cluster the profile decides.
    """
    from gigapipe.planning.automatic_mesh import choose, cluster, one_machine

    side = resolution.canvas if resolution.canvas != "auto" and LABELLED else None
    try:
        if RANKS_PER_NODE:
            place = cluster(of_profile("machine"), RANKS_PER_NODE)
        else:
            cores = workflow.resource_settings.cores or os.cpu_count()
            side_by_side = max(1, cores // CORES_PER_RANK)
            place = one_machine(CONFIG.training.device, side_by_side)
        choice = choose(resolution, side, CONFIG, place)
    except InputError as error:
        refuse(str(error))
    if workflow.is_main_process:
        print(f"mesh at {resolution}: {choice.why}", file=sys.stderr)
    return choice


def nodes_of_mesh(ranks, mesh, mpp):
    """On how many nodes the ranks of a mesh run, as many on each."""
    nodes = -(-ranks // RANKS_PER_NODE) if RANKS_PER_NODE else 1
    mesh = mesh if mesh == "auto" else " × ".join(map(str, mesh))
    where = f"config: mesh {mesh} at {mpp:g} µm/px"
    if ranks % nodes:
        refuse(
            f"{where}: {ranks} ranks do not spread evenly over {nodes} nodes of {RANKS_PER_NODE}; "
            f"give a mesh of {nodes * (ranks // nodes)} or {nodes * RANKS_PER_NODE}"
        )
    if MOST_NODES and nodes > MOST_NODES:
        refuse(
            f"{where}: {ranks} ranks need {nodes} nodes of {RANKS_PER_NODE}, and the profile has {MOST_NODES}; "
            "give a smaller mesh, or correct most_nodes"
        )
    return nodes


refuse_unset_variables()
LAUNCHER = of_profile("launcher") or "mpiexec -n {ranks}"
ALONE = of_profile("alone") or ""  # what starts a single process
RANKS_PER_NODE = of_profile("ranks_per_node")
CORES_PER_RANK = of_profile("cores_per_rank") or 1
MOST_NODES = of_profile("most_nodes")
CHOICES = {
    mpp: choice_for(resolution)
    for mpp, resolution in RESOLUTIONS.items()
    if resolution.mesh == "auto"
}
RANKS = {
    mpp: CHOICES[mpp].ranks if mpp in CHOICES else math.prod(resolution.mesh)
    for mpp, resolution in RESOLUTIONS.items()
}
NODES = {
    mpp: nodes_of_mesh(RANKS[mpp], resolution.mesh, resolution.mpp)
    for mpp, resolution in RESOLUTIONS.items()
}

for mpp, resolution in RESOLUTIONS.items() if workflow.is_main_process else []:
    cores = RANKS[mpp] * CORES_PER_RANK
    if not RANKS_PER_NODE and mpp not in CHOICES and cores > os.cpu_count():
        print(
            f"config: mesh {' × '.join(map(str, resolution.mesh))} at {resolution}: its ranks want {cores} cores, and this "
            f"machine has {os.cpu_count()}: they take turns, which is slower than a smaller mesh",
            file=sys.stderr,
        )


def mesh_of(wildcards):
    """Data, rows, columns of the ranks at a resolution, or `auto`: its ranks share each image."""
    return RESOLUTIONS[wildcards.mpp].mesh


def ranks_of(wildcards):
    return RANKS[wildcards.mpp]


def cores_of(wildcards):
    return ranks_of(wildcards) * CORES_PER_RANK


def nodes_of(wildcards):
    return NODES[wildcards.mpp]


def launcher_of(wildcards):
    """The command that starts the ranks of a resolution."""
    ranks, nodes = ranks_of(wildcards), nodes_of(wildcards)
    if ranks == 1:
        return ALONE
    return LAUNCHER.format(
        ranks=ranks,
        nodes=nodes,
        ranks_per_node=ranks // nodes,
        cores_per_rank=CORES_PER_RANK,
    )


def limits_of(wildcards):
    """Where and in what the ranks of a resolution compute: for another, nothing is done again."""
    chosen = CHOICES.get(wildcards.mpp)
    limits = arguments(CONFIG.training, Computing)
    if chosen and chosen.memory and not CONFIG.training.memory:
        limits += f" --memory {chosen.memory}"
    return limits


def training_limits_of(wildcards):
    """The same, and how many states a training keeps."""
    return (
        f"{limits_of(wildcards)} --keep-checkpoints {CONFIG.training.keep_checkpoints}"
    )


def mpi_of(wildcards):
    """The word that tells Slurm's executor to leave the starting of ranks to the rule; for one rank there is none."""
    return "launcher" if ranks_of(wildcards) > 1 else None


def time_limit_of(rule):
    """The option that tells a training how long its job may take."""
    runtime = of_profile("runtime", rule)
    return f"--time-limit {runtime}" if runtime else ""
