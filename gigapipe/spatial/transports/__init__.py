"""Exchange of data between ranks: one small interface with two implementations.

`torch_distributed.py` (gloo on CPUs, NCCL on GPUs) needs only torch; `mpi.py` (mpi4py) is faster on CPUs, where a small
all-reduce with gloo takes much longer (`benchmarks/transports.py`).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

__all__ = ["Alone", "Message", "Transport", "begin_sum", "reduced_bytes"]

Message = tuple[int, torch.Tensor]
"""The other rank, and what is sent to it or where to put what it sends."""


class Transport(Protocol):
    """The ranks 0 … size - 1 of which this process is `rank`, and what they can do together.

    Tensors are contiguous, of any dtype and, where the carrier knows it, on any device. `sent_bytes` counts what
    this rank has sent, an all-reduce by its least possible share: 2 (size - 1) / size of the tensor.
    """

    rank: int
    size: int
    sent_bytes: int

    def subset(self, ranks: Sequence[int]) -> "Transport":
        """A transport of its own for these ranks, in this order; only they call."""

    def exchange(self, outgoing: list[Message], incoming: list[Message]) -> Callable[[], None]:
        """Begin to send and receive, at most one tensor to and one from each rank; the result waits for all to end."""

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        """Sum `x` over the ranks, in place; returns it."""


def begin_sum(ranks: Transport, x: torch.Tensor) -> Callable[[], None]:
    """Begin to sum `x` over `ranks`, in place; the result waits for it. Until then nobody touches `x`.

    A transport may have a method `begin_sum` for it. Others sum at once.
    """
    begin = getattr(ranks, "begin_sum", None)
    if begin is not None:
        return begin(x)
    ranks.sum_(x)
    return lambda: None


def reduced_bytes(x: torch.Tensor, size: int) -> int:
    """The least that each of `size` ranks must send for an all-reduce of `x`."""
    return 2 * (size - 1) * x.numel() * x.element_size() // size


class Alone:
    """One rank, which has nobody to send to."""

    rank, size, sent_bytes = 0, 1, 0

    def subset(self, ranks: Sequence[int]) -> "Alone":
        """This rank: there is no other."""
        return self

    def exchange(self, outgoing: list[Message], incoming: list[Message]) -> Callable[[], None]:
        """Nothing is sent, and nothing has to be waited for."""
        return lambda: None

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, which is its own sum."""
        return x
