# One run at a time writes a folder of results. Snakemake's own locks, which profiles/default puts off, outlive a run that
# is killed; this one the system lets go of, however its process ends.

import atexit
import contextlib
import itertools

from gigapipe import left_jobs
from gigapipe.one_writer import only_writer, writer_of


def hold_results():
    """End with a line if another run writes the same results, from this folder or another, or may do so elsewhere.

    What one that was killed has left at work here is stopped first: it goes on in this run.
    """
    held = contextlib.ExitStack()
    alone = only_writer(
        RESULTS / "workflow", "is running the workflow there", of_all_hosts=True
    )
    or_refuse("", held.enter_context, alone)
    atexit.register(held.close)
    if left := left_jobs.stop(RESULTS):
        refuse(
            f"{RESULTS}: jobs of a killed run do not stop; wait for them, or end processes "
            f"{', '.join(map(str, left))}"
        )
    left_jobs.begin(RESULTS)
    if left := list(itertools.islice(being_written(), 3)):
        refuse(
            f"other processes, possibly jobs of a killed run, are writing what this run would make: "
            f"{'; '.join(left)}; wait for them, or cancel them"
        )


def being_written():
    """What this run is to make and others are making, with who does: jobs on the nodes of a cluster."""
    for job in workflow.dag.needrun_jobs():
        for output in map(Path, job.output):
            if writer := writer_of(output):
                yield f"{output}: {writer}"
