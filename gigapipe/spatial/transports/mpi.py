"""Transport by MPI, through mpi4py's buffers: CPUs, and GPUs where the MPI library is CUDA-aware."""

import os
import time
import weakref
from collections.abc import Callable, Sequence

import torch
from mpi4py import MPI

from gigapipe.spatial.transports import Message, reduced_bytes

AT_ONCE = 2**20  # elements that a sum takes at a time, for which MPI takes as much memory again
BUSY = 1e-3  # seconds of a wait in which a rank that has a core of its own polls without a pause
PAUSES = 2e-5, 1e-3  # seconds between two polls after that: at first, and at most
_SUMMABLE = {
    torch.float32: MPI.FLOAT,
    torch.float64: MPI.DOUBLE,
    torch.int64: MPI.INT64_T,
    torch.int32: MPI.INT32_T,
    torch.uint8: MPI.UINT8_T,
}


class MpiTransport:
    """The ranks of an MPI communicator. A rank that waits longer than `timeout` seconds raises TimeoutError.

    If MPI itself finds that another rank cannot be reached, it is ConnectionError.
    """

    def __init__(self, communicator: MPI.Intracomm, timeout: float = 600):
        # A communicator of its own: no message of another user of MPI can be taken for one of ours.
        self._take(communicator.Dup(), timeout, 0.0 if _share_cores(communicator) else BUSY)

    def _take(self, communicator: MPI.Intracomm, timeout: float, busy: float) -> None:
        self.communicator = communicator
        weakref.finalize(self, _free, communicator).atexit = False  # where MPI ends
        self.rank, self.size = communicator.rank, communicator.size
        self.timeout, self.busy = timeout, busy
        self.sent_bytes = 0

    def subset(self, ranks: Sequence[int]) -> "MpiTransport":
        subset = MpiTransport.__new__(MpiTransport)
        members = self.communicator.Create_group(self.communicator.group.Incl(ranks))
        subset._take(members, self.timeout, self.busy)
        return subset

    def exchange(self, outgoing: list[Message], incoming: list[Message]) -> Callable[[], None]:
        self.sent_bytes += sum(tensor.nbytes for _, tensor in outgoing)
        _finish([tensor for _, tensor in outgoing + incoming])
        requests = [self.communicator.Irecv(_bytes(tensor), rank) for rank, tensor in incoming]
        requests += [self.communicator.Isend(_bytes(tensor), rank) for rank, tensor in outgoing]

        def wait() -> None:
            peers = sorted({rank for rank, _ in incoming + outgoing})
            self._wait(requests, f"an exchange with ranks {peers}")
            outgoing.clear()  # a tensor on its way must live until here

        return wait

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        if self.size == 1:
            return x
        if x.is_complex():
            self.sum_(torch.view_as_real(x))
            return x
        if x.dtype not in _SUMMABLE:  # MPI does not know bfloat16
            return x.copy_(self.sum_(x.float()))
        self.sent_bytes += reduced_bytes(x, self.size)
        _finish([x])
        for buffer in _buffers(x):
            self._wait([self.communicator.Iallreduce(MPI.IN_PLACE, buffer)], "a sum over ranks")
        return x

    def begin_sum(self, x: torch.Tensor) -> Callable[[], None]:
        """All of `x` is under way at once, for which MPI may take as much memory again."""
        if self.size == 1 or x.dtype not in _SUMMABLE:
            self.sum_(x)
            return lambda: None
        self.sent_bytes += reduced_bytes(x, self.size)
        _finish([x])
        requests = [self.communicator.Iallreduce(MPI.IN_PLACE, buffer) for buffer in _buffers(x)]
        return lambda: self._wait(requests, "a sum over ranks")

    def _wait(self, requests: list[MPI.Request], what: str) -> None:
        begun, (pause, longest) = time.monotonic(), PAUSES
        while not _done(requests, what):
            waited = time.monotonic() - begun
            if waited < self.busy:
                os.sched_yield()
            else:  # a longer wait leaves the core to others
                time.sleep(pause)
                pause = min(1.5 * pause, longest)
            if waited > self.timeout:
                raise TimeoutError(f"rank {self.rank} of {self.size} waited {self.timeout:g} s for {what}")


def _share_cores(communicator: MPI.Intracomm) -> bool:
    """Whether this host has more of the ranks than cores for them: who waits must then leave its core to the others."""
    here = communicator.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        return len(set().union(*here.allgather(os.sched_getaffinity(0)))) < here.size
    finally:
        here.Free()


def _free(communicator: MPI.Comm) -> None:
    if not MPI.Is_finalized():
        communicator.Free()


def _done(requests: list[MPI.Request], what: str) -> bool:
    try:
        return MPI.Request.Testall(requests)
    except MPI.Exception as error:
        raise ConnectionError(f"{what}: {error}") from None


def _finish(tensors: list[torch.Tensor]) -> None:
    """MPI knows nothing of a GPU's streams: what is queued there must be done before it touches a tensor."""
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.current_stream().synchronize()


def _buffers(x: torch.Tensor) -> list[list]:
    """A contiguous tensor, in parts that are summed at a time."""
    memory, size = _bytes(x), x.element_size()
    cuts = [(start, min(start + AT_ONCE, x.numel())) for start in range(0, x.numel(), AT_ONCE)]
    return [[memory[start * size : stop * size], stop - start, _SUMMABLE[x.dtype]] for start, stop in cuts]


def _bytes(x: torch.Tensor) -> MPI.buffer:
    """The memory of a contiguous tensor, wherever it is; MPI asks the pointer whose it is."""
    return MPI.buffer.fromaddress(x.data_ptr(), x.nbytes)
