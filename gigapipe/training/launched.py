"""The processes that a launcher has started, and their MPI, which some sites need before torch. Imports neither."""

import os
import sys

from gigapipe.training.left_segments import remove_left_segments

COUNTS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # by which launchers say how many they start
COUNTS_HERE = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")  # and how many of them on one host
MPI_FIRST = "GIGAPIPE_MPI_FIRST"
"""The variable by which a site says that MPI is to be initialised before torch is imported, whatever carries bytes."""

_BEGUN: list = []
"""The communicator, once MPI has begun before torch."""


def launched() -> int:
    """How many processes a launcher has started beside this one, and with it."""
    return max(int(os.environ.get(name, 1)) for name in COUNTS)


def world():
    """MPI's communicator of all processes. Initialises MPI, which only a process that a launcher has started may do."""
    if launched() == max(int(os.environ.get(name, 0)) for name in COUNTS_HERE) and sys.platform == "linux":
        os.environ.setdefault("UCX_NET_DEVICES", "lo")  # where UCX, which may carry MPI, lets others in
    remove_left_segments()
    from mpi4py import MPI

    return MPI.COMM_WORLD


def begin_mpi(transport: str) -> None:
    """Initialise MPI now, before torch, where it is the `transport`, or `MPI_FIRST` says so.

    On Frontier MPI may not start after torch is imported. Elsewhere it starts once it is known that it is needed: who
    fails before that leaves no other waiting.
    """
    if launched() > 1 and (transport == "mpi" or os.environ.get(MPI_FIRST) == "1"):
        _BEGUN.append(world())


def abort_mpi(status: int) -> None:
    """End all processes, where this one has begun with MPI and fails before the others could know of it."""
    for communicator in _BEGUN:
        if communicator.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            communicator.Abort(status)
