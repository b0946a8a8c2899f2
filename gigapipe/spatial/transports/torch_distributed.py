"""Transport by torch.distributed: gloo between CPUs, NCCL between GPUs."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from gigapipe.spatial.transports import Message, reduced_bytes


class TorchTransport:
    """The ranks of the default process group, or those of them that are listed, in that order.

    A GPU's tensors go by NCCL, where the group has it, and must then be on the process's current GPU
    (`torch.cuda.set_device`); else through the host's memory. What gloo waits for longer than the group's timeout
    raises TimeoutError, and what cannot be reached ConnectionError.
    """

    def __init__(self, ranks: Sequence[int] | None = None):
        whole = list(range(dist.get_world_size()))
        self.ranks = whole if ranks is None else list(ranks)
        # Only members call, so that ranks which belong to something else need not take part.
        self.group = dist.group.WORLD
        if self.ranks != whole:
            group = dist.new_group(self.ranks, use_local_synchronization=True)
            weakref.finalize(self, _destroy, group).atexit = False
            self.group = group
        self.rank = self.ranks.index(dist.get_rank())
        self.size = len(self.ranks)
        self.sent_bytes = 0
        self.carriers = dict(pair.split(":") for pair in dist.get_backend_config(self.group).split(","))
        """By kind of device, what carries its tensors: one group may have several backends."""
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator and self.carriers.get(accelerator.type, "gloo") != "gloo":
            # NCCL makes a group's connections in its first call, which all must take part in; an exchange is for some.
            dist.all_reduce(torch.zeros(1, device=accelerator.type), group=self.group)

    def subset(self, ranks: Sequence[int]) -> "TorchTransport":
        return TorchTransport([self.ranks[rank] for rank in ranks])

    def exchange(self, outgoing: list[Message], incoming: list[Message]) -> Callable[[], None]:
        self.sent_bytes += sum(tensor.nbytes for _, tensor in outgoing)
        leaving = [(rank, x.to(self._carried_on(x))) for rank, x in outgoing]
        arriving = [
            (rank, x if self._carried_on(x) == x.device else torch.empty_like(x, device=self._carried_on(x)))
            for rank, x in incoming
        ]
        operations = [dist.P2POp(dist.irecv, x, self.ranks[rank], self.group) for rank, x in arriving]
        operations += [dist.P2POp(dist.isend, x, self.ranks[rank], self.group) for rank, x in leaving]
        requests = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            with self._named(f"an exchange with ranks {sorted({rank for rank, _ in incoming + leaving})}"):
                for request in requests:
                    request.wait()
            leaving.clear()  # a tensor on its way must live until here
            outgoing.clear()
            for (_, x), (_, arrived) in zip(incoming, arriving, strict=True):
                if arrived is not x:
                    x.copy_(arrived)

        return wait

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            self.sent_bytes += reduced_bytes(x, self.size)
            summed = x.to(self._carried_on(x))
            with self._named("a sum over ranks"):
                dist.all_reduce(summed, group=self.group)
            if summed is not x:
                x.copy_(summed)
        return x

    def begin_sum(self, x: torch.Tensor) -> Callable[[], None]:
        if self.size == 1:
            return lambda: None
        self.sent_bytes += reduced_bytes(x, self.size)
        summed = x.to(self._carried_on(x))
        with self._named("a sum over ranks"):
            request = dist.all_reduce(summed, group=self.group, async_op=True)
        assert request is not None  # as of a member of the group

        def wait() -> None:
            with self._named("a sum over ranks"):
                request.wait()
            if summed is not x:
                x.copy_(summed)

        return wait

    def _carried_on(self, x: torch.Tensor) -> torch.device:
        """Where a tensor lies when it is sent: gloo sends from the host's memory alone, NCCL from GPUs'."""
        kind = x.device.type
        if kind == "cpu" and "cpu" not in self.carriers:
            kind = next(iter(self.carriers))
            return torch.device(kind, torch.get_device_module(kind).current_device())
        return torch.device("cpu") if self.carriers.get(kind, "gloo") == "gloo" else x.device

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
