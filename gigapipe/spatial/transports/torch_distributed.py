"""Transport by torch.distributed: gloo between CPUs, NCCL between GPUs."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from gigapipe.spatial.transports import Message, reduced_bytes


class TorchTransport:
    """The ranks of the default process group, or those of them that are listed, in that order.

    What gloo waits for longer than the group's timeout raises TimeoutError, and what cannot be reached ConnectionError.
    """

    def __init__(self, ranks: Sequence[int] | None = None):
        whole = list(range(dist.get_world_size()))
        self.ranks = whole if ranks is None else list(ranks)
        # Only members call, so that ranks which belong to something else need not take part.
        self.group = (
            dist.group.WORLD if self.ranks == whole else dist.new_group(self.ranks, use_local_synchronization=True)
        )
        if self.group is not dist.group.WORLD:
            weakref.finalize(self, _destroy, self.group).atexit = False
        self.rank = self.ranks.index(dist.get_rank())
        self.size = len(self.ranks)
        self.sent_bytes = 0
        if dist.get_backend(self.group) == "nccl":
            # NCCL makes a group's connections in its first call, which all must take part in; an exchange is for some.
            dist.all_reduce(torch.zeros(1, device="cuda"), group=self.group)

    def subset(self, ranks: Sequence[int]) -> "TorchTransport":
        return TorchTransport([self.ranks[rank] for rank in ranks])

    def exchange(self, outgoing: list[Message], incoming: list[Message]) -> Callable[[], None]:
        self.sent_bytes += sum(tensor.nbytes for _, tensor in outgoing)
        arriving = incoming
        if any(x.is_cuda for _, x in outgoing + incoming) and dist.get_backend(self.group) == "gloo":
            # gloo sends from the host's memory alone, and receives into it.
            outgoing = [(rank, x.cpu()) for rank, x in outgoing]
            arriving = [(rank, torch.empty_like(x, device="cpu")) for rank, x in incoming]
        operations = [dist.P2POp(dist.irecv, x, self.ranks[rank], self.group) for rank, x in arriving]
        operations += [dist.P2POp(dist.isend, x, self.ranks[rank], self.group) for rank, x in outgoing]
        requests = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            with self._named(f"an exchange with ranks {sorted({rank for rank, _ in incoming + outgoing})}"):
                for request in requests:
                    request.wait()
            outgoing.clear()  # a tensor on its way must live until here
            if arriving is not incoming:
                for (_, x), (_, arrived) in zip(incoming, arriving, strict=True):
                    x.copy_(arrived)

        return wait

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            self.sent_bytes += reduced_bytes(x, self.size)
            # NCCL sums on GPUs alone.
            summed = x.cuda() if dist.get_backend(self.group) == "nccl" else x
            with self._named("a sum over ranks"):
                dist.all_reduce(summed, group=self.group)
            if summed is not x:
                x.copy_(summed)
        return x

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of gloo
            kind = TimeoutError if "timed out" in str(error).lower() else ConnectionError
            raise kind(f"rank {self.rank} of {self.size}, {what}: {error}") from None


def _destroy(group: dist.ProcessGroup) -> None:
    if dist.is_initialized():
        dist.destroy_process_group(group)
