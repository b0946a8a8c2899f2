"""A transport: MPI, of which a file says that it was this one."""

from pathlib import Path

from gigapipe.spatial.transports.mpi import MpiTransport


def told(world, timeout, choice) -> MpiTransport:
    if world.rank == 0:
        Path("carried").touch()
    return MpiTransport(world, timeout.total_seconds())
