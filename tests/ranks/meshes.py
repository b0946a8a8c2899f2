"""Meshes of the first of the ranks that are up. Each is made only once, for it takes communicators."""

import functools
import math
from datetime import timedelta

from mpi4py import MPI

from gigapipe.spatial import Mesh
from gigapipe.spatial.transports.mpi import MpiTransport
from gigapipe.spatial.transports.torch_distributed import TorchTransport
from gigapipe.training.ranks import torch_transport

WORLD = MPI.COMM_WORLD
TIMEOUT = timedelta(seconds=30)  # a rank that waits for another for so long gives up


@functools.cache
def mesh_of(shape: tuple[int, int, int], transport: str = "mpi") -> Mesh:
    ranks = range(math.prod(shape))
    if transport == "torch":
        return Mesh(*shape, transport=TorchTransport(ranks))
    members = WORLD.Create_group(WORLD.group.Incl(list(ranks)))
    return Mesh(*shape, transport=MpiTransport(members, TIMEOUT.total_seconds()))


@functools.cache
def join_torch() -> None:
    """Make all ranks torch's default process group."""
    torch_transport(WORLD, TIMEOUT)
