# The config, checked before anything runs, and what in it is code of the user's own.

import logging
import os
from pathlib import Path

from gigapipe import named
from gigapipe.cli.messages import log_to_stderr
from gigapipe.configuration import Configuration
from gigapipe.configuration.tasks import code_of, task_named
from gigapipe.disks import in_one_line
from gigapipe.errors import InputError
from gigapipe.given_text import refuse_unreadable
from gigapipe.training.curves import refuse_without_package

# What is read, and what was assumed of it, is said once: jobs read this file, too.
if workflow.is_main_process:
    log_to_stderr()
else:
    logging.getLogger("gigapipe").addHandler(logging.NullHandler())


def refuse(message):
    """End before anything runs, with one line: Snakemake would add places in these files, which say nothing to users."""
    raise SystemExit(message)


def said(error):
    """What is wrong, in a line: an InputError is one, and an OSError becomes one."""
    return in_one_line(error) if isinstance(error, OSError) else str(error)


try:
    refuse_unreadable([os.getcwd(), workflow.basedir])
except InputError as error:
    refuse(str(error))


def or_refuse(where, function, *arguments):
    """What a function returns; or the end, with a line that begins with `where`."""
    try:
        return function(*arguments)
    except (InputError, OSError) as error:
        refuse(f"{where}{said(error)}")


def configuration():
    """The config, checked; what it does not set is at its default."""
    checked = or_refuse("", Configuration.of, config, "config: ")
    # The files of what is a user's own lie beside the config, or here.
    folders = [Path(file).parent for file in reversed(workflow.configfiles)]
    found = {}
    if ":" in checked.task:
        found["task"] = named.beside(checked.task, folders)

    def found_beside(training):
        if not training.own:
            return training
        network = named.beside(training.network, folders)
        return training.model_copy(update={"network": network})

    found["training"] = found_beside(checked.training)
    found["methods"] = [found_beside(method) for method in checked.methods]
    if own := checked.pyramids.readers:
        readers = {suffix: named.beside(name, folders) for suffix, name in own.items()}
        found["pyramids"] = checked.pyramids.model_copy(update={"readers": readers})
    return checked.model_copy(update=found)


def folder_of(training):
    """What follows the folder of a resolution, before those of networks: `/probe` of a method, or nothing."""
    return getattr(training, "folder", "")


def folder_of_method(wildcards):
    """The same, of a network; tasks that have no methods name none."""
    return dict(wildcards.items()).get("method", "")


def code_of_network(wildcards):
    return CODES_OF_NETWORKS[folder_of_method(wildcards)] or NOTHING


CONFIG = configuration()
TASK = or_refuse("config: task: ", task_named, CONFIG.task)
for contradiction in CONFIG.contradictions(
    TASK
):  # of a task of the user's, whose code is run only here
    refuse(f"config: {contradiction}")
# What changes when the code of a network or a task of the user's does: then it is trained again. Of networks by the
# folder of the method, within that of a resolution; where there are no methods, there is none.
CODES_OF_NETWORKS = {}
for where, training in CONFIG.trainings.items():
    if training.tensorboard:
        or_refuse(f"config: {where}.", refuse_without_package)
    CODES_OF_NETWORKS[folder_of(training)] = or_refuse(
        f"config: {where}.network: ", training.code
    )
CODE_OF_TASK = or_refuse("config: task: ", code_of, TASK)
CODE = {
    **({"code_of_network": code_of_network} if any(CODES_OF_NETWORKS.values()) else {}),
    **({"code_of_task": CODE_OF_TASK} if CODE_OF_TASK else {}),
}
# And when the code does that reads slides of a suffix: then their pyramids are made again.
READERS = {
    suffix: or_refuse("config: pyramids.readers: ", named.code_of, name)
    for suffix, name in CONFIG.pyramids.readers.items()
}
