# One run at a time writes a folder of results. Snakemake's own locks, which profiles/default puts off, outlive a run that
# is killed; this one the system lets go of, however its process ends.

import atexit
import contextlib

from gigapipe.one_writer import only_writer


def hold_results():
    """End with a line if another run writes the same results, from this folder or another, or may do so elsewhere."""
    held = contextlib.ExitStack()
    alone = only_writer(
        RESULTS / "workflow", "runs the workflow there", of_all_hosts=True
    )
    or_refuse("", held.enter_context, alone)
    atexit.register(held.close)
