"""What may carry bytes between the ranks of a run, by name. Needs no torch: the command line asks what there is."""

from gigapipe import named

AUTO = "auto"
"""MPI between CPUs, torch between other devices."""

TRANSPORTS = {
    "mpi": "gigapipe.training.ranks:mpi_transport",
    "torch": "gigapipe.training.ranks:torch_transport",
}
"""The function that makes a `Transport` of an MPI communicator of all ranks, the time (timedelta) after which a rank
gives up that waits for another, and the `Choice` of this rank's device. All ranks call it together."""


def carrier(name: str, kind: str, *arguments):
    """What carries between devices of a kind, as `name` says: `AUTO`, one of `TRANSPORTS`, or a function of the user's.

    It is made of these `arguments`.
    """
    if name == AUTO:
        name = "mpi" if kind == "cpu" else "torch"
    return named.load(TRANSPORTS.get(name, name))(*arguments)
