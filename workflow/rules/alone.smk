# One run at a time writes a folder of results. Snakemake's own locks, which profiles/default puts off, outlive a run that
# is killed; this one the system lets go of, however its process ends.

import atexit
import contextlib

from gigapipe import left_jobs
from gigapipe.one_writer import only_writer


def hold_results():
    """End with a line if another run writes the same results, from this folder or another, or may do so elsewhere.

    What one that was killed has left at work here is stopped first: it goes on in this run.
    """
    held = contextlib.ExitStack()
    alone = only_writer(
        RESULTS / "workflow", "runs the workflow there", of_all_hosts=True
    )
    killed = or_refuse("", held.enter_context, alone)
    atexit.register(held.close)
    left_jobs.begin()
    if killed and (left := left_jobs.stop(killed)):
        refuse(
            f"{RESULTS}: jobs of a run that was killed do not stop; wait for them, or end them: processes "
            f"{', '.join(map(str, left))}"
        )
