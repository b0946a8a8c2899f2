"""Starting the ranks: MPI says who they are, and carries what they exchange unless torch.distributed does."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from gigapipe.errors import InputError
from gigapipe.spatial import Mesh
from gigapipe.spatial.transports import Transport
from gigapipe.spatial.transports.torch_distributed import TorchTransport
from gigapipe.training.devices import device_of, identity, refuse_shared
from gigapipe.training.ending import end_all, on_hosts
from gigapipe.training.stopping import Unfinished

COUNTS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # by which launchers say how many they start
SILENCE = timedelta(minutes=10)
LONG_SILENCE = timedelta(hours=2)  # where shards are streamed: one on tissue takes long, and one on glass no time
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # by which torch is told through which network to go


@contextlib.contextmanager
def started(
    data: int,
    rows: int,
    columns: int,
    threads: int | None = None,
    transport: str = "auto",
    silence: timedelta = SILENCE,
    last_words: Path | None = None,
) -> Iterator[Mesh]:
    """The mesh of this run's ranks, each with `threads`, or its share of its machine's cores. A launcher started them.

    `mesh.device` is a GPU of the rank's own where there are any. The `transport` is mpi, torch, or auto: torch
    between GPUs, MPI elsewhere. A rank that waits for another for longer than `silence` gives up. An error on any
    rank ends them all, and each says where it was, in `mesh.stage`; see `end_all`. Raises InputError if the launcher
    started another number of ranks than the mesh has: a launcher that does not match the MPI library starts as many
    single ranks, silently. One rank needs neither launcher nor MPI.
    """
    size = data * rows * columns
    if size == 1:
        if (launched := _launched()) > 1:
            raise InputError(f"mesh 1 × 1 × 1 is one rank, but {launched} were started; give the mesh, or start one")
        torch.set_num_threads(threads or torch.get_num_threads())
        mesh = Mesh()
        mesh.device = device_of(0, 1)
        yield mesh
        return
    from mpi4py import MPI  # initialises MPI, which only a process that a launcher has started may do

    world, hosts, mesh = MPI.COMM_WORLD, [], None
    try:
        if world.size != size:
            raise InputError(
                f"mesh {data} × {rows} × {columns} needs {size} ranks, but MPI knows of {world.size}; start it with "
                f"`mpiexec -n {size} gigapipe …`, and the mpiexec (or srun --mpi=…) of this MPI library"
            )
        if last_words and world.rank == 0:
            for former in last_words.glob("rank-*.txt"):
                former.unlink()
            with contextlib.suppress(OSError):  # there was none, or it holds what is not ours
                last_words.rmdir()
        hosts = world.allgather(socket.gethostname())
        host = world.Split_type(MPI.COMM_TYPE_SHARED)
        _say_where(world, host, hosts)
        torch.set_num_threads(threads or max(1, torch.get_num_threads() // host.size))
        device = device_of(host.rank, host.size)
        refuse_shared(host.allgather(identity(device)))
        if transport == "mpi" or (transport == "auto" and device.type == "cpu"):
            from gigapipe.spatial.transports.mpi import MpiTransport

            carrier = MpiTransport(world, silence.total_seconds())
        else:
            carrier = torch_transport(world, silence, device)
        mesh = Mesh(data, rows, columns, carrier)
        mesh.device = device
        yield mesh
        _leave(mesh)
    except Unfinished:  # all ranks have agreed to stop
        _leave(mesh)
        raise
    except BaseException as error:
        if world.size == 1:
            raise
        end_all(world, error, hosts, mesh.stage if mesh else "starting", last_words)


def _launched() -> int:
    """How many processes a launcher has started beside this one, and with it."""
    return max(int(os.environ.get(name, 1)) for name in COUNTS)


def _say_where(world, host, hosts: list[str]) -> None:
    """Say, by host, which process is which rank: of one that dies, a launcher may name no more than its process."""
    processes = host.gather(os.getpid())
    ranks = host.gather(world.rank)
    if processes:
        numbers = ", ".join(map(str, processes))
        print(f"{on_hosts(ranks, hosts)}: processes {numbers}", file=sys.stderr, flush=True)


def _leave(mesh: Mesh) -> None:
    mesh.everyone.sum_(torch.zeros(1))  # a barrier, at which nobody is waited for for ever
    if dist.is_initialized():
        dist.destroy_process_group()


def torch_transport(
    world,
    silence: timedelta = SILENCE,
    device: torch.device = torch.device("cpu"),  # noqa: B008  is immutable
) -> Transport:
    """torch.distributed between the ranks of an MPI communicator: NCCL if their `device` is a GPU, else gloo.

    They meet at a free port of rank 0's host, at its address in the network that `INTERFACES` name, if they do.
    """
    from mpi4py import MPI

    on_one_host = world.Split_type(MPI.COMM_TYPE_SHARED).size == world.size
    if on_one_host and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    interface = next((os.environ[name] for name in INTERFACES if name in os.environ), None)
    host = "127.0.0.1" if on_one_host else world.bcast(address(interface) if interface else socket.gethostname())
    store = None
    if world.rank == 0:
        store = dist.TCPStore(host, 0, world.size, is_master=True, timeout=silence, wait_for_workers=False)
    port = world.bcast(store.port if store else None)
    if store is None:
        store = dist.TCPStore(host, port, world.size, is_master=False, timeout=silence)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=silence)
    return TorchTransport()


def address(interface: str) -> str:
    """This host's IPv4 address on a network interface. InputError if it has none."""
    import psutil

    here = {
        name: [a.address for a in addresses if a.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    if not here.get(interface):
        known = ", ".join(f"{name} ({', '.join(found)})" for name, found in here.items() if found)
        raise InputError(f"interface {interface}: {socket.gethostname()} has no address there; it has {known}")
    return here[interface][0]
