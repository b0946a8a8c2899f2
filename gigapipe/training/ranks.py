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
from gigapipe.training.stopping import Unfinished

COUNTS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # by which launchers say how many they start
SILENCE = timedelta(minutes=10)
LONG_SILENCE = timedelta(hours=2)  # where shards are streamed: one on tissue takes long, and one on glass no time


@contextlib.contextmanager
def started(
    data: int,
    rows: int,
    columns: int,
    threads: int | None = None,
    transport: str = "mpi",
    silence: timedelta = SILENCE,
) -> Iterator[Mesh]:
    """The mesh of this run's ranks, each with `threads`, or its share of its machine's cores. A launcher started them.

    A rank that waits for another for longer than `silence` gives up. An error on any rank ends them all. Raises
    InputError if the launcher started another number of ranks than the mesh has: a launcher that does not match the MPI
    library starts as many single ranks, silently. One rank needs neither launcher nor MPI.
    """
    size = data * rows * columns
    if size == 1:
        if (launched := _launched()) > 1:
            raise InputError(f"mesh 1 × 1 × 1 is one rank, but {launched} were started; give the mesh, or start one")
        torch.set_num_threads(threads or torch.get_num_threads())
        yield Mesh()
        return
    from mpi4py import MPI  # initialises MPI, which only a process that a launcher has started may do

    world = MPI.COMM_WORLD
    try:
        if world.size != size:
            raise InputError(
                f"mesh {data} × {rows} × {columns} needs {size} ranks, but MPI knows of {world.size}; start it with "
                f"`mpiexec -n {size} gigapipe …`, and the mpiexec (or srun --mpi=…) of this MPI library"
            )
        on_this_host = world.Split_type(MPI.COMM_TYPE_SHARED).size
        torch.set_num_threads(threads or max(1, torch.get_num_threads() // on_this_host))
        if transport == "mpi":
            from gigapipe.spatial.transports.mpi import MpiTransport

            yield Mesh(data, rows, columns, MpiTransport(world, silence.total_seconds()))
        else:
            yield Mesh(data, rows, columns, torch_transport(world, silence))
        _leave(world)
    except Unfinished:  # all ranks have agreed to stop
        _leave(world)
        raise
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


def _launched() -> int:
    """How many processes a launcher has started beside this one, and with it."""
    return max(int(os.environ.get(name, 1)) for name in COUNTS)


def _leave(world) -> None:
    world.Barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


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
