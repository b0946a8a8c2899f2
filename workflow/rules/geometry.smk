# Where ranks run and how they are started: from the config's meshes, and from what the profile says of a node.

import math
import shlex
import sys
import types

from gigapipe.cards import cards, visible
from gigapipe.packing import share_nodes


def of_profile(name, rule=None):
    """What the profile's `set-resources` for a rule, or its `default-resources`, say of a resource; None if nothing."""
    settings = workflow.resource_settings
    for said in (settings.overwrite_resources.get(rule), settings.default_resources):
        if said and name in said:
            return said[name].raw
    return None


def number_of_profile(name):
    """The whole number that the profile says of a resource; None if it says nothing."""
    value = of_profile(name)
    if value is not None and not isinstance(value, int):
        refuse(f"profile: {name}: found {value!r}; give a whole number")
    return value


def check_profile():
    """Refuse what a scheduler, a shell or Snakemake, which evaluates it, would make something else of in a profile.

    Snakemake leaves `$NAME` as it is where no such variable is set. `launcher` and `alone` are commands.
    """
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
                        f"export {variable}=… first, or write the value into the profile"
                    )
                if not re.fullmatch(r"[\w.,:@%+/=-]*", os.environ[variable]):
                    refuse(
                        f"profile: {name} is taken from the environment, where {variable} is "
                        f"{os.environ[variable]!r}; use only letters, digits and the characters . , : @ % + / = - _"
                    )
            commands = re.findall(r"`|\$\(|;|[\n\r]", str(resource.raw))
            if name not in ("launcher", "alone") and commands:
                refuse(
                    f"profile: {name}: {resource.raw!r} contains {commands[0]!r}, which a shell would execute as a command; "
                    "remove it"
                )
    try:
        LAUNCHER.format(ranks=1, nodes=1, ranks_per_node=1, cores_per_rank=1)
    except (LookupError, ValueError) as error:
        refuse(
            f"profile: launcher: {LAUNCHER!r} is not a valid pattern ({error!r}); allowed in braces are ranks, nodes, "
            "ranks_per_node and cores_per_rank; write a literal brace twice"
        )


def choice_for(resolution, method):
    """How many ranks share an image, and the memory that each may take, where the config leaves the mesh open.

    Jobs, which read this file too, must find the same: on one machine they do not, and on a cluster the profile decides.
    """
    from gigapipe.planning.automatic_mesh import choose, cluster, one_machine

    side = resolution.canvas if resolution.canvas != "auto" and TASK.canvas else None
    try:
        if RANKS_PER_NODE:
            place = cluster(of_profile("machine"), RANKS_PER_NODE)
        else:
            cores = workflow.resource_settings.cores or os.cpu_count()
            side_by_side = max(1, cores // CORES_PER_RANK)
            place = one_machine(METHODS[method].training.device, side_by_side)
        choice = choose(resolution, side, METHODS[method], place)
    except InputError as error:
        refuse(str(error))
    if workflow.is_main_process:
        of = f", {method.removeprefix('/')}" if method else ""
        print(f"mesh at {resolution}{of}: {choice.why}", file=sys.stderr)
    return choice


def nodes_of_mesh(ranks, mesh, mpp):
    """On how many nodes the ranks of a mesh run, as many on each."""
    nodes = -(-ranks // RANKS_PER_NODE) if RANKS_PER_NODE else 1
    mesh = mesh if mesh == "auto" else " × ".join(map(str, mesh))
    where = f"config: mesh {mesh} at {mpp:g} µm/px"
    if ranks % nodes:
        refuse(
            f"{where}: {ranks} ranks cannot be distributed evenly over {nodes} nodes of {RANKS_PER_NODE}; "
            f"give a mesh of {nodes * (ranks // nodes)} or {nodes * RANKS_PER_NODE}"
        )
    if MOST_NODES and nodes > MOST_NODES:
        refuse(
            f"{where}: {ranks} ranks need {nodes} nodes of {RANKS_PER_NODE}, and the profile has {MOST_NODES}; "
            "give a smaller mesh, or correct most_nodes"
        )
    return nodes


def take_environment():
    """Let each command begin with the profile's modules and variables."""
    environment = os.path.expandvars(of_profile("environment") or "")
    if environment and not Path(environment).is_file():
        refuse(
            f"profile: environment: {environment}: no such file; correct it, or remove it"
        )
    if environment:
        sourced = shlex.quote(environment).replace("{", "{{").replace("}", "}}")
        shell.prefix(f"source -- {sourced}; set -euo pipefail; ")


LAUNCHER = of_profile("launcher") or "mpiexec -n {ranks}"
check_profile()
take_environment()
RANKS_PER_NODE = number_of_profile("ranks_per_node")
CORES_PER_RANK = number_of_profile("cores_per_rank") or 1
MOST_NODES = number_of_profile("most_nodes")
# Of a node; where it is not said, no two jobs share one.
NODE_MEMORY = number_of_profile("node_mem_mb") if RANKS_PER_NODE else None
SLIDE_MEMORY = 2000  # MB of a slide whose pyramid is made, or its mask, by few threads; measured: docs/pyramids.md
if NODE_MEMORY and workflow.is_main_process:
    share_nodes()
# Of one machine, whose jobs share its GPUs; on a cluster the scheduler gives each job its own.
CARDS = [] if RANKS_PER_NODE else cards()
if CARDS:
    os.environ[visible()] = ",".join(CARDS)  # so that jobs need not ask torch
    if "gpus" not in workflow.global_resources:
        workflow.register_resource("gpus", len(CARDS))
# What starts a single process; one that shares a node is started on it.
ALONE = of_profile("alone") or ""
ON_NODE, BESIDE_OTHERS = (ALONE, "") if NODE_MEMORY else ("", ALONE)
# By resolution and method.
CHOICES = {
    (mpp, method): choice_for(resolution, method)
    for mpp, resolution in RESOLUTIONS.items()
    for method in METHODS
    if resolution.mesh == "auto"
}
RANKS = {
    (mpp, method): (
        CHOICES[mpp, method].ranks
        if (mpp, method) in CHOICES
        else math.prod(resolution.mesh)
    )
    for mpp, resolution in RESOLUTIONS.items()
    for method in METHODS
}
NODES = {
    of: nodes_of_mesh(ranks, RESOLUTIONS[of[0]].mesh, RESOLUTIONS[of[0]].mpp)
    for of, ranks in RANKS.items()
}

for mpp, resolution in RESOLUTIONS.items() if workflow.is_main_process else []:
    if resolution.mesh == "auto":
        continue
    cores = math.prod(resolution.mesh) * CORES_PER_RANK
    if not RANKS_PER_NODE and cores > os.cpu_count():
        print(
            f"config: mesh {' × '.join(map(str, resolution.mesh))} at {resolution}: its ranks need {cores} cores, but this "
            f"machine has {os.cpu_count()}: this is slower than a smaller mesh",
            file=sys.stderr,
        )


def kind_of(wildcards):
    """Resolution and method of a network, or of networks."""
    return wildcards.mpp, folder_of_method(wildcards)


def ranks_of(wildcards):
    return RANKS[kind_of(wildcards)]


def nodes_of(wildcards):
    return NODES[kind_of(wildcards)]


def slides_per_node(wildcards, threads):
    """On how many slides a node works at a time, by its cores and its memory."""
    if not NODE_MEMORY:
        return 1
    cores = RANKS_PER_NODE * CORES_PER_RANK
    return max(1, min(cores // threads, NODE_MEMORY // SLIDE_MEMORY))


def together_on_node(ranks):
    """How many jobs of so many ranks fit a node side by side."""
    return max(1, RANKS_PER_NODE // ranks) if NODE_MEMORY else 1


def jobs_per_node(wildcards):
    return together_on_node(ranks_of(wildcards))


def launcher_of(wildcards):
    """The command that starts the ranks of a resolution; on one machine one rank needs none."""
    ranks, nodes = ranks_of(wildcards), nodes_of(wildcards)
    if ranks == 1 and not RANKS_PER_NODE:
        return ALONE
    return LAUNCHER.format(
        ranks=ranks,
        nodes=nodes,
        ranks_per_node=ranks // nodes,
        cores_per_rank=CORES_PER_RANK,
    )


def limits_of(wildcards):
    """Where and in what the ranks of a resolution compute: for another, nothing is done again."""
    chosen, training = CHOICES.get(kind_of(wildcards)), training_of(wildcards)
    limits = arguments(training, Computing)
    if chosen and chosen.memory and not training.memory:
        limits += f" --memory {chosen.memory}"
    return limits


def own_network(wildcards):
    """The options that name a network of the user's; of gigapipe's own there are none."""
    training = training_of(wildcards)
    return arguments(training, OwnNetwork) if training.own else ""


def method_option(wildcards):
    """The option that says which method a training belongs to; none where there are no methods."""
    method = folder_of_method(wildcards).removeprefix("/")
    return shlex.join(option("--method", method)) if method else ""


def own_task():
    """The option that names a task of the user's; none for gigapipe's own."""
    return shlex.join(option("--task", TASK.own)) if TASK.own else ""


def applying_limits_of(wildcards):
    """The limits of what applies a model, and which code it may run for it."""
    return " ".join(
        filter(None, [limits_of(wildcards), own_network(wildcards), own_task()])
    )


def training_limits_of(wildcards):
    """The same, how many states a training keeps, and whether TensorBoard may watch it."""
    training = training_of(wildcards)
    kept = f"--keep-checkpoints {training.keep_checkpoints}"
    watched = " --tensorboard" if training.tensorboard else ""
    return f"{limits_of(wildcards)} {kept}{watched}"


def gpus_of(wildcards):
    """How many of this machine's GPUs a job takes: one for each rank, as far as there are, where ranks choose them."""
    chosen = training_of(wildcards).device in ("auto", "cuda")
    return min(ranks_of(wildcards), len(CARDS)) if chosen else 0


def command_before(wildcards):
    """What starts the ranks of a resolution, on GPUs that are theirs alone."""
    gpus = f"gigapipe cards {gpus} " if (gpus := gpus_of(wildcards)) else ""
    return gpus + launcher_of(wildcards)


def mpi_of(wildcards):
    """What tells Slurm's executor to leave the starting of ranks to the rule, which it refuses if they are one.

    A word does; if it is empty there may be one rank. Where the rule starts nothing there is none.
    """
    if not launcher_of(wildcards):
        return None
    return "launcher" if ranks_of(wildcards) > 1 else ""


def time_limit_of(rule):
    """The option that tells a training how long its job may take."""
    runtime = of_profile("runtime", rule)
    return shlex.join(option("--time-limit", runtime)) if runtime else ""
