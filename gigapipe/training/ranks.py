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

from gigapipe.attempts import Attempts
from gigapipe.errors import InputError, Unavailable
from gigapipe.one_writer import only_writer
from gigapipe.spatial import Mesh
from gigapipe.spatial.transports import Transport
from gigapipe.spatial.transports.torch_distributed import TorchTransport
from gigapipe.training import launched
from gigapipe.training.carriers import AUTO, carrier
from gigapipe.training.devices import Choice, choose, identity, settled, use
from gigapipe.training.ending import end_all, on_hosts
from gigapipe.training.stopping import Unfinished
from gigapipe.training.watch import Watch

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=10)
STREAMING_TIMEOUT = timedelta(hours=2)  # where shards are streamed: one on tissue takes long, and one on glass no time
BACKENDS = {"cuda": "nccl", "xpu": "cpu:gloo,xpu:xccl"}
"""torch's, by kind of device; of numbers in float64, which the host's are, not all of Intel's GPUs have any."""
FLIGHT_RECORDER = {
    "TORCH_FR_DUMP_TEMP_FILE": "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "TORCH_NCCL_DUMP_ON_TIMEOUT",
}
"""By which torch (2.13's headers) is told where to write what NCCL was last asked for; and what they were called."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # by which torch is told through which networks to go


@contextlib.contextmanager
def started(
    data: int,
    rows: int,
    columns: int,
    threads: int | None = None,
    transport: str = AUTO,
    timeout: timedelta = TIMEOUT,
    attempts: Attempts | None = None,
    device: str = "auto",
    memory: int | None = None,
    deterministic: bool = False,
) -> Iterator[Mesh]:
    """The mesh of this run's ranks, each with `threads`, or its share of its machine's cores. A launcher started them.

    `device` is what `devices.choose` makes `mesh.device` of, and `deterministic` what `devices.use` is told. The
    `transport` is one of `carriers.TRANSPORTS`, `AUTO`, or the name of a function of the user's. A rank that waits for
    another for longer than `timeout` gives up. An error on any rank ends them all, and each says where it was, in
    `mesh.phase`; see `end_all`. So does the death of one; see `Watch`. This is one of the `attempts` at an output,
    whose ranks may take `memory` bytes each; while it lasts, no other of them begins, which raises Busy. Raises
    InputError if the launcher started another number of ranks than the mesh has: a launcher that does not match the MPI
    library starts as many single ranks, silently. One rank needs neither launcher nor MPI.
    """
    size = data * rows * columns
    if size == 1:
        if (count := launched.launched()) > 1:
            raise InputError(f"mesh 1 × 1 × 1 is one rank, but {count} were started; give the mesh, or start one")
        torch.set_num_threads(threads or torch.get_num_threads())
        alone = Mesh()
        choice = choose(device)
        logger.info(choice)
        use(choice.device, deterministic)
        alone.device = choice.device
        with _attempt(attempts, memory):
            yield alone
        return
    world = launched.world()
    from mpi4py import MPI

    hosts: list[str] = []
    mesh: Mesh | None = None
    watch: Watch | None = None
    try:
        if world.size != size:
            raise InputError(
                f"mesh {data} × {rows} × {columns} needs {size} ranks, but MPI knows of {world.size}; start it with "
                f"`mpiexec -n {size} gigapipe …`, and the mpiexec (or srun --mpi=…) of this MPI library"
            )
        hosts = world.allgather(socket.gethostname())
        host = world.Split_type(MPI.COMM_TYPE_SHARED)
        watch = Watch(
            world,
            host,
            lambda: address() or address_towards(hosts) or hosts[0],
            lambda: mesh.phase if mesh else "starting",
        )
        choice = _chosen(device, world, host)
        _say_where(world, host, hosts)
        torch.set_num_threads(threads or max(1, torch.get_num_threads() // host.size))
        use(choice.device, deterministic)
        if attempts and _by_nccl(choice):
            keep_flight_record(attempts.folder)
        mesh = Mesh(data, rows, columns, carrier(transport, choice.device.type, world, timeout, choice))
        mesh.device = choice.device
        with _attempt(attempts if world.rank == 0 else None, memory):
            if attempts and world.rank == 0 and _by_nccl(choice):
                attempts.folder.mkdir(parents=True, exist_ok=True)
            yield mesh
        _leave(mesh, watch)
    except Unfinished:  # all ranks have agreed to stop
        assert mesh is not None and watch is not None  # who trains raises it
        _leave(mesh, watch)
        raise
    except BaseException as error:
        if world.size == 1:
            raise
        end_all(world, error, hosts, mesh.phase if mesh else "starting", attempts, watch)


@contextlib.contextmanager
def _attempt(attempts: Attempts | None, memory: int | None) -> Iterator[None]:
    """One attempt begins and ends, and no other at the same output meanwhile."""
    if attempts is None:
        yield
        return
    with only_writer(attempts.output):
        attempts.begin(memory)
        try:
            yield
        except Unfinished:
            attempts.forget()
            raise
        attempts.forget()


def _by_nccl(choice: Choice) -> bool:
    return choice.device.type == "cuda" and not choice.shared


def keep_flight_record(folder: Path) -> None:
    """Have torch's watchdog, which ends a process that waits for NCCL in vain, write into `folder` what it waited for.

    Where the user has told torch, that stays.
    """
    values = str(folder.absolute() / "rank-nccl-"), "2000", "1"
    for (name, old), value in zip(FLIGHT_RECORDER.items(), values, strict=True):
        if old not in os.environ:
            os.environ.setdefault(name, value)


def _chosen(wanted: str, world, host) -> Choice:
    """Where this rank computes; the first says where all do."""
    several = host.size < world.size
    choice = choose(wanted, host.rank, host.size, several)
    choice = settled(choice, wanted, host.allgather(identity(choice.device)), several)
    kinds = sorted(set(world.allgather(choice.device.type)))
    if len(kinds) > 1:
        raise Unavailable(f"device {wanted}: would be {' on some hosts and '.join(kinds)} on others; give --device")
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


def _leave(mesh: Mesh, watch: Watch) -> None:
    mesh.everyone.sum_(torch.zeros(1))  # a barrier, at which nobody is waited for for ever
    watch.leave()
    watch.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def mpi_transport(world, timeout: timedelta, choice: Choice) -> Transport:
    """MPI between the ranks of a communicator."""
    from gigapipe.spatial.transports.mpi import MpiTransport

    if (kind := choice.device.type) not in ("cpu", "cuda"):
        raise InputError(f"transport mpi: MPI cannot read the memory of a device {kind}; give --transport torch")
    return MpiTransport(world, timeout.total_seconds())


def torch_transport(
    world,
    timeout: timedelta = TIMEOUT,
    choice: Choice = Choice(torch.device("cpu")),  # noqa: B008  is immutable
) -> Transport:
    """torch.distributed between the ranks of an MPI communicator: NCCL if each has a GPU of its own, else gloo.

    They meet at a free port of rank 0's host, which listens at one address alone: that in the network that `INTERFACES`
    name, if they do, or else that by which it reaches the others.
    """
    from mpi4py import MPI

    on_one_host = world.Split_type(MPI.COMM_TYPE_SHARED).size == world.size
    if on_one_host and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "gloo" if choice.shared else BACKENDS.get(choice.device.type, "gloo")
    told = None if on_one_host else address()
    hosts = world.allgather(socket.gethostname())
    if world.rank == 0:
        host = "127.0.0.1" if on_one_host else told or address_towards(hosts)
        listening = socket.create_server((host or "", 0))  # one that torch opens, it opens to all networks
        host, port = world.bcast((host or hosts[0], listening.getsockname()[1]))
        store = dist.TCPStore(
            host, port, world.size, True, timeout, wait_for_workers=False, master_listen_fd=listening.detach()
        )
    else:
        host, port = world.bcast(None)
        store = dist.TCPStore(host, port, world.size, False, timeout)
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    return TorchTransport()


def address() -> str | None:
    """This host's IPv4 address in the network that `INTERFACES` tell torch to use; None if they tell nothing.

    gloo's is a list of names. NCCL's is one of prefixes, or of names after `=`, and after `^` of what not to use; of
    those that are left the first counts, and loopback is none unless it is named. Unavailable if there is none.
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
        raise Unavailable(f"{variable}={told}: {socket.gethostname()} has no address there; it has {known}")
    return here[left[0]]


def address_towards(hosts: list[str]) -> str | None:
    """This host's IPv4 address by which it reaches the next of `hosts`, the first of which it is.

    None, with a warning, if that one's name is not known here: what listens for it then listens in all networks.
    """
    other = next((host for host in hosts if host != hosts[0]), hosts[0])  # several may have one name
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((other, 9))  # sends nothing: it chooses the way
            return way.getsockname()[0]
        except OSError as error:
            logger.warning(
                f"{hosts[0]}: cannot resolve the host name {other} ({error.strerror}), and accepts ranks from all "
                f"networks; set {INTERFACES[0]} to the network that they share"
            )
            return None
