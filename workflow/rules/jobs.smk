# On a cluster: how many jobs are going to be submitted, and for how many node-hours, said before the first.

from fractions import Fraction


def say_jobs(what, name, parts):
    """A line for what the rule of that name makes; each part is a count, the nodes of each, and how many share a node."""
    parts = [part for part in parts if part[0]]
    if not parts:
        return
    whole = [(count, nodes) for count, nodes, per_node in parts if per_node == 1]
    shared = [Fraction(count, per_node) for count, _, per_node in parts if per_node > 1]
    jobs = sum(count for count, _ in whole) + math.ceil(sum(shared))
    on_nodes = sum(count * nodes for count, nodes in whole) + math.ceil(sum(shared))
    hours = on_nodes * (of_profile("runtime", name) or 0) / 60
    most = max(per_node for *_, per_node in parts)
    unit = "node-hours" if NODE_MEMORY else "hours of jobs"
    together = f", up to {most} at the same time on a node" if most > 1 else ""
    print(
        f"{sum(count for count, *_ in parts)} {what}: {jobs} job{'s' if jobs > 1 else ''}{together}; "
        f"requesting {hours:,.4g} {unit}",
        file=sys.stderr,
    )


def missing(made_by, **of):
    """How many of a rule's first outputs are not there."""
    paths = expand(
        str(made_by.output[0]), slide=SHEET, division=DIVISIONS, fold=FOLDS, **of
    )
    made = [path.replace("<results>", CONFIG.pathvars.results) for path in paths]
    return sum(not Path(path).exists() for path in dict.fromkeys(made))


def threads_of_a_pyramid():
    """As the profile's `set-threads` say it."""
    threads = workflow.resource_settings.overwrite_threads.get("pyramid", 1)
    return int(getattr(threads, "raw", threads))


PYRAMIDS_PER_NODE = slides_per_node(None, threads_of_a_pyramid())


def announce_jobs():
    """Say of each rule that is submitted how many jobs it is, if all that it makes is asked for."""
    for what, name in {
        "pyramids": "pyramid",
        "masks": "mask",
        "trainings": "train",
        "predictions": "predict",
        "segmentations": "segment",
        "resolutions' maps": "map",
    }.items():
        if not workflow.is_rule(name) or (name == "map" and not CONFIG.maps):
            continue
        made_by = getattr(rules, name)
        if name in ("pyramid", "mask"):
            parts = [(missing(made_by, mpp=RESOLUTIONS), 1, PYRAMIDS_PER_NODE)]
        else:
            parts = [
                (
                    missing(made_by, mpp=mpp, method=method),
                    nodes,
                    1 if name == "train" else together_on_node(RANKS[mpp, method]),
                )
                for (mpp, method), nodes in NODES.items()
            ]
        say_jobs(what, name, parts)


if workflow.is_main_process and RANKS_PER_NODE and SHEET:
    announce_jobs()
