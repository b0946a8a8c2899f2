"""Starting the ranks: MPI says who they are, and carries what they exchange unless torch.distributed is chosen."""

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from gigapipe.errors import InputError
from gigapipe.spatial import Mesh
from gigapipe.spatial.transports import Transport
from gigapipe.spatial.transports.torch_distributed import TorchTransport

SILENCE = timedelta(minutes=10)
LONG_SILENCE = timedelta(hours=2)  # where shards are streamed: one on tissue takes long, and one on glass no time


@contextlib.contextmanager
def started(
    data: int, rows: int, columns: int, threads: int, transport: str = "mpi", silence: timedelta = SILENCE
) -> Iterator[Mesh]:
    """The mesh of this run's ranks, `threads` of the job shared out among them. The launcher has started the ranks.

    A rank that waits for another for longer than `silence` gives up. An error on any rank ends them all. Raises
    InputError if the launcher started another number of ranks than the mesh has: a launcher that does not match the MPI
    library starts as many single ranks, silently.
    """
    from mpi4py import MPI  # initialises MPI, which only a process that a launcher has started may do

    world = MPI.COMM_WORLD
    try:
        size = data * rows * columns
        if world.size != size:
            raise InputError(
                f"mesh {data} × {rows} × {columns} needs {size} ranks, but MPI knows of {world.size}; start it with "
                f"`mpiexec -n {size} gigapipe …`, and the mpiexec (or srun --mpi=…) of this MPI library"
            )
        torch.set_num_threads(max(1, threads // size))
        if size == 1:
            yield Mesh()
        elif transport == "mpi":
            from gigapipe.spatial.transports.mpi import MpiTransport

            yield Mesh(data, rows, columns, MpiTransport(world, silence.total_seconds()))
        else:
            yield Mesh(data, rows, columns, torch_transport(world, silence))
        world.Barrier()
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException as error:
        if world.size == 1:
            raise
        # What is wrong for all is said once: the other ranks leave rank 0 a moment to end the job.
        time.sleep(4 * min(world.rank, 1))
        if isinstance(error, InputError):
            print(f"gigapipe: {error}", file=sys.stderr, flush=True)
        else:
            print(f"rank {world.rank} on {socket.gethostname()} failed:", file=sys.stderr)
            traceback.print_exception(error)
            sys.stderr.flush()
        time.sleep(1)  # an aborted launcher drops what it has not yet passed on
        world.Abort(1)
        os._exit(1)  # Abort may return before the launcher has ended this process


def torch_transport(world, silence: timedelta = SILENCE) -> Transport:
    """torch.distributed (gloo) between the ranks of an MPI communicator, meeting at a free port of rank 0's host."""
    from mpi4py import MPI

    on_one_host = world.Split_type(MPI.COMM_TYPE_SHARED).size == world.size
    if on_one_host and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    host = "127.0.0.1" if on_one_host else world.bcast(socket.gethostname())
    store = None
    if world.rank == 0:
        store = dist.TCPStore(host, 0, world.size, is_master=True, timeout=silence, wait_for_workers=False)
    port = world.bcast(store.port if store else None)
    if store is None:
        store = dist.TCPStore(host, port, world.size, is_master=False, timeout=silence)
    dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size, timeout=silence)
    return TorchTransport()
