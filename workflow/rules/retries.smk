# What cannot succeed is tried once in a run of the workflow, whatever the profile's `retries` say, where no ranks are
# started: rules whose command has {resources.attempts}. The next run tries it anew, for that costs little.

import dataclasses
import shutil

from snakemake.io import apply_wildcards

FAILED = RESULTS / "workflow/failed"


def of_this_run(output, wildcards, input):
    """The attempts at an output in this run, which leave word in a folder of their own."""
    attempts = attempts_of(apply_wildcards(output, dict(wildcards.items())), input)
    return dataclasses.replace(attempts, place=FAILED / attempts.key)


def forget_failures():
    """What runs before this one have left is of no use to it."""
    shutil.rmtree(FAILED, ignore_errors=True)


def is_seen(folder):
    """Whether a folder is there; a shared disk then looks what is there now."""
    try:
        return folder.name in os.listdir(folder.parent)
    except OSError:
        return False


def try_once(made_by):
    """Let a later attempt at what a rule makes ask for one core, and be the last, once one has left word."""
    output, full = str(made_by.output[0]), made_by.resources["_cores"]

    def attempts(wildcards, input):
        one = of_this_run(output, wildcards, input)
        return shlex.join(["--attempts", one.key, str(one.place)])

    def cores(wildcards, input, attempt):
        if attempt == 1:
            return full.value
        one = of_this_run(output, wildcards, input)
        if is_seen(one.place) and one.verdict:
            let_be_the_last(str(one.output))
            return 1
        return full.value

    made_by.resources["attempts"] = attempts
    if not full.is_evaluable():
        made_by.resources["_cores"] = cores


for retried in workflow.rules:
    if "{resources.attempts}" in (retried.shellcmd or "") and (
        "attempts" not in retried.resources
    ):
        try_once(retried)
