"""Images that are kept in the host's memory while no tile of them is computed, for they do not fit into a GPU's.

What a tile needs of them is sent while the GPU computes the tile before it, and what comes of it is brought back while
it computes the next. `on_disk.py` keeps them in files instead.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gigapipe.spatial.torch_internals import number_of_backward_pass

ASYNCHRONOUS = ("cuda", "xpu")
"""Kinds of devices that copy while they compute; the host waits for others."""

AHEAD = 2
"""How many tiles the host is ahead of the device at most, each with its copies there, which `Layers.tiled` counts."""


@dataclass(eq=False)
class OnHost:
    """One image of a model, and in the backward pass its gradient, in the host's memory."""

    elsewhere: bool = False
    """Whether more than segments use the image: then its gradient is autograd's to add up, on the device."""
    _gradient: tuple[int, torch.Tensor] | None = None
    """In which backward pass, and the sum so far."""

    def room(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor of zeros on the host, of the shape, dtype and strides of `like`, without gaps."""
        return torch.zeros_like(like, device="cpu")

    def gradient(self, image: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """To which the gradients of `image` are added, and whether it was made now: then it is to be returned.

        All segments that use the image add to one tensor, which autograd is given once, for its sum of two would be in
        memory.
        """
        number = number_of_backward_pass()
        if self.elsewhere or self._gradient is None or self._gradient[0] != number:
            total = self.room(torch.empty_like(image, device="meta"))
            self._gradient = None if self.elsewhere else (number, total)
            return total, True
        return self._gradient[1], False

    def complete(self) -> None:
        """All have added to the gradient; whoever made the image has it."""
        self._gradient = None

    def release(self) -> None:
        """No tile works with the image now."""

    def read_ahead(self, image: torch.Tensor, axis: int, rows: slice) -> None:
        """These rows of `image` come next."""


class Transfer:
    """Sends what tiles need to the device that computes them, and brings back what comes of them, in their order.

    On a CPU both are what is there. Memory of the host that is sent from, and brought to, is locked (pinned) by torch,
    which uses it again; whole images are not, for to lock them takes long.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._there: torch.Stream | None = None
        self._back: torch.Stream | None = None
        self._begun: deque[torch.Event] = deque()
        self._coming: deque[tuple[torch.Event, torch.Tensor, Callable[[torch.Tensor], object]]] = deque()

    def next_tile(self) -> None:
        """Called before each tile: lets the host be `AHEAD` of the device, so that copies do not fill its memory."""
        if self._there or self._back:
            self._begun.append(torch.accelerator.current_stream(self.device).record_event())
            if len(self._begun) > AHEAD:
                self._begun.popleft().synchronize()

    def send(self, part: torch.Tensor) -> torch.Tensor:
        """A part of an image, on the device."""
        if part.device.type != "cpu" or self.device.type not in ASYNCHRONOUS:
            return part.to(self.device)
        self._there = self._there or torch.Stream(self.device)
        staged = torch.empty_like(part, pin_memory=True).copy_(part)
        with self._there:
            sent = staged.to(self.device, non_blocking=True)
        computing = torch.accelerator.current_stream(self.device)
        computing.wait_stream(self._there)
        sent.record_stream(computing)
        return sent

    def bring(self, found: torch.Tensor, to: torch.device, take: Callable[[torch.Tensor], object]) -> None:
        """Call `take` of what is found, on the device `to`, in the order of these calls; `finish` waits for the last.

        What it is taken into is not to be looked at before.
        """
        if to.type != "cpu" or found.device.type not in ASYNCHRONOUS:
            take(found.to(to))
            return
        self._back = self._back or torch.Stream(self.device)
        brought = torch.empty_like(found, device=to, pin_memory=True)
        self._back.wait_stream(torch.accelerator.current_stream(self.device))
        with self._back:
            brought.copy_(found, non_blocking=True)
        found.record_stream(self._back)
        self._coming.append((self._back.record_event(), brought, take))
        if len(self._coming) > AHEAD:
            self._take()

    def finish(self) -> None:
        """All that was to be brought has been taken."""
        while self._coming:
            self._take()

    def _take(self) -> None:
        event, brought, take = self._coming.popleft()
        event.synchronize()
        take(brought)
