"""Starting the ranks: MPI says who they are, and carries what they exchange unless torch.distributed does."""

import contextlib
import logging
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
from gigapipe.training.devices import Choice, choose, identity, settled, use
from gigapipe.training.ending import end_all, on_hosts
from gigapipe.training.stopping import Unfinished

logger = logging.getLogger(__name__)

COUNTS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # by which launchers say how many they start
TIMEOUT = timedelta(minutes=10)
STREAMING_TIMEOUT = timedelta(hours=2)  # where shards are streamed: one on tissue takes long, and one on glass no time
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # by which torch is told through which networks to go


@contextlib.contextmanager
def started(
    data: int,
    rows: int,
    columns: int,
    threads: int | None = None,
    transport: str = "auto",
    timeout: timedelta = TIMEOUT,
    failure_records: Path | None = None,
    device: str = "auto",
) -> Iterator[Mesh]:
    """The mesh of this run's ranks, each with `threads`, or its share of its machine's cores. A launcher started them.

    `device` is what `devices.choose` makes `mesh.device` of. The `transport` is mpi, torch, or auto: MPI between CPUs,
    torch between other devices. A rank that waits for another for longer than `timeout` gives up. An error on any
    rank ends them all, and each says where it was, in `mesh.phase`; see `end_all`. Raises InputError if the launcher
    started another number of ranks than the mesh has: a launcher that does not match the MPI library starts as many
    single ranks, silently. One rank needs neither launcher nor MPI.
    """
    size = data * rows * columns
    if size == 1:
        if (count := launched()) > 1:
            raise InputError(f"mesh 1 × 1 × 1 is one rank, but {count} were started; give the mesh, or start one")
        torch.set_num_threads(threads or torch.get_num_threads())
        alone = Mesh()
        choice = choose(device)
        logger.info(choice)
        use(choice.device)
        alone.device = choice.device
        yield alone
        return
    from mpi4py import MPI  # initialises MPI, which only a process that a launcher has started may do

    world = MPI.COMM_WORLD
    hosts: list[str] = []
    mesh: Mesh | None = None
    try:
        if world.size != size:
            raise InputError(
                f"mesh {data} × {rows} × {columns} needs {size} ranks, but MPI knows of {world.size}; start it with "
                f"`mpiexec -n {size} gigapipe …`, and the mpiexec (or srun --mpi=…) of this MPI library"
            )
        if failure_records and world.rank == 0:
            for former in failure_records.glob("rank-*.txt"):
                former.unlink()
            with contextlib.suppress(OSError):  # there was none, or it holds what is not ours
                failure_records.rmdir()
        hosts = world.allgather(socket.gethostname())
        host = world.Split_type(MPI.COMM_TYPE_SHARED)
        choice = _chosen(device, world, host)
        _say_where(world, host, hosts)
        torch.set_num_threads(threads or max(1, torch.get_num_threads() // host.size))
        use(choice.device)
        kind = choice.device.type
        if transport == "mpi" and kind not in ("cpu", "cuda"):
            raise InputError(f"transport mpi: no MPI reads the memory of a device {kind}; give --transport torch")
        if transport == "mpi" or (transport == "auto" and kind == "cpu"):
            from gigapipe.spatial.transports.mpi import MpiTransport

            carrier: Transport = MpiTransport(world, timeout.total_seconds())
        else:
            carrier = torch_transport(world, timeout, choice)
        mesh = Mesh(data, rows, columns, carrier)
        mesh.device = choice.device
        yield mesh
        _leave(mesh)
    except Unfinished:  # all ranks have agreed to stop
        assert mesh is not None  # who trains raises it
        _leave(mesh)
        raise
    except BaseException as error:
        if world.size == 1:
            raise
        end_all(world, error, hosts, mesh.phase if mesh else "starting", failure_records)


def launched() -> int:
    """How many processes a launcher has started beside this one, and with it."""
    return max(int(os.environ.get(name, 1)) for name in COUNTS)


def _chosen(wanted: str, world, host) -> Choice:
    """Where this rank computes; the first says where all do."""
    several = host.size < world.size
    choice = choose(wanted, host.rank, host.size, several)
    choice = settled(choice, wanted, host.allgather(identity(choice.device)), several)
    kinds = sorted(set(world.allgather(choice.device.type)))
    if len(kinds) > 1:
        raise InputError(f"device {wanted}: would be {' on some hosts and '.join(kinds)} on others; give --device")
    if world.rank == 0:
        logger.info(choice)
    return choice


def _say_where(world, host, hosts: list[str]) -> None:
    """Say, by host, which process is which rank: of one that dies, a launcher may name no more than its process."""
    processes = host.gather(os.getpid())
    ranks = host.gather(world.rank)
    if processes:
        numbers = ", ".join(map(str, processes))
        logger.info(f"{on_hosts(ranks, hosts)}: processes {numbers}")


def _leave(mesh: Mesh) -> None:
    mesh.everyone.sum_(torch.zeros(1))  # a barrier, at which nobody is waited for for ever
    if dist.is_initialized():
        dist.destroy_process_group()


def torch_transport(
    world,
    timeout: timedelta = TIMEOUT,
    choice: Choice = Choice(torch.device("cpu")),  # noqa: B008  is immutable
) -> Transport:
    """torch.distributed between the ranks of an MPI communicator: NCCL if each has a GPU of its own, else gloo.

    They meet at a free port of rank 0's host, at its address in the network that `INTERFACES` name, if they do.
    """
    from mpi4py import MPI

    on_one_host = world.Split_type(MPI.COMM_TYPE_SHARED).size == world.size
    if on_one_host and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "gloo" if choice.shared else {"cuda": "nccl", "xpu": "xccl"}.get(choice.device.type, "gloo")
    host = "127.0.0.1" if on_one_host else world.bcast(address() or socket.gethostname())
    store = None
    if world.rank == 0:
        store = dist.TCPStore(host, 0, world.size, is_master=True, timeout=timeout, wait_for_workers=False)
    port = world.bcast(store.port if store else None)
    if store is None:
        store = dist.TCPStore(host, port, world.size, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    return TorchTransport()


def address() -> str | None:
    """This host's IPv4 address in the network that `INTERFACES` tell torch to use; None if they tell nothing.

    gloo's is a list of names. NCCL's is one of prefixes, or of names after `=`, and after `^` of what not to use; of
    those that are left the first counts, and loopback is none unless it is named. InputError if there is none.
    """
    import psutil

    variable = next((name for name in INTERFACES if os.environ.get(name)), None)
    if variable is None:
        return None
    told = os.environ[variable]
    of_each = {
        name: [a.address for a in addresses if a.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    here = {name: found[0] for name, found in of_each.items() if found}
    names = told.removeprefix("^").removeprefix("=").split(",")
    whole = variable == INTERFACES[0] or told.removeprefix("^").startswith("=")

    def meant(interface: str, name: str) -> bool:
        return interface == name if whole else interface.startswith(name)

    if told.startswith("^"):
        left = [i for i in here if not any(meant(i, name) for name in names) and not here[i].startswith("127.")]
    else:
        left = [i for name in names for i in here if meant(i, name)]
    if not left:
        known = ", ".join(f"{name} ({found})" for name, found in here.items())
        raise InputError(f"{variable}={told}: {socket.gethostname()} has no address there; it has {known}")
    return here[left[0]]
