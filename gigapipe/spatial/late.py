"""Gradients summed over ranks while a backward pass goes on: a few large messages in place of one for each layer.

A backward function must hand on a gradient that is complete, for whoever asked may look at it at once: the pass waits
for a sum over ranks at each layer. Who only wants `.grad`, when all is over, says so, and gets the same but for
rounding:

    with late_gradients(mesh):
        loss.backward()

What ranks found of parameters that met images is then put into buckets, in the order in which it comes, which is the
same on all ranks. A full bucket is sent, and waited for at the end. Passes that add up to one step are a
`step_of_passes`: what is sent is their sum, once, in the last of them.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.transports import begin_sum

BUCKET = 25 * 2**20
"""Bytes from which a bucket is sent. The last one has nothing to hide behind, so it should be small; and each costs a
latency, so there should be few. torch's DistributedDataParallel has found the same."""

ALIGNED = 4
"""Elements that kernels read at a time, if a gradient begins at a multiple of them."""


class _Part(NamedTuple):
    """What this rank found of a leaf's gradient; in a bucket that was sent, what all ranks did."""

    leaf: torch.Tensor
    grad: torch.Tensor
    strides: Sequence[int]
    """Of the leaf's `.grad`."""


class _Sent(NamedTuple):
    parts: list[_Part]
    wait: Callable[[], None]


class Late:
    """What the passes of a step have put off."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.running = False
        """Whether a backward pass goes on whose gradients may be late."""
        self.left: list[int] = []
        """How many passes are left of each step of passes that is open, and of those within it."""
        self.earlier: dict[int, _Part] = {}
        """Of passes that others follow."""
        self.filling: dict[tuple[torch.dtype, torch.device], list[_Part]] = {}
        self.full: list[list[_Part]] = []
        self.sent: list[_Sent] = []

    def take(self, leaf: torch.Tensor, grad: torch.Tensor, strides: Sequence[int]) -> None:
        """Put off a leaf's gradient, of which this rank found `grad`."""
        if (before := self.earlier.pop(id(leaf), None)) is not None:
            grad = before.grad + grad
        part = _Part(leaf, grad, strides)
        if max(self.left, default=1) > 1:
            self.earlier[id(leaf)] = part
        else:
            self._put(part)

    def pass_done(self) -> None:
        if self.left:
            self.left[-1] -= 1

    def end(self) -> None:
        """Send what is left, wait for all, and add it to `.grad`."""
        for part in self.earlier.values():  # of what the last pass did not come by
            self._put(part)
        for parts in (*self.full, *self.filling.values()):
            self._send(parts)
        for parts, wait in self.sent:
            wait()
            for leaf, grad, _ in parts:
                leaf.grad = grad if leaf.grad is None else leaf.grad.add_(grad)

    def _put(self, part: _Part) -> None:
        kind = part.grad.dtype, part.grad.device
        bucket = self.filling.setdefault(kind, [])
        bucket.append(part)
        if sum(p.grad.nbytes for p in bucket) < BUCKET:
            return
        full = self.filling.pop(kind)
        # Where data ranks share no image, halos travel by other groups. Of two groups of NCCL that are under way at
        # once, ranks may begin with one or the other, and wait for ever.
        if self.mesh.data > 1 and part.grad.device.type != "cpu":
            self.full.append(full)
        else:
            self._send(full)

    def _send(self, parts: list[_Part]) -> None:
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + -(-part.grad.numel() // ALIGNED) * ALIGNED)
        flat = parts[0].grad.new_zeros(starts[-1])
        sums = [
            part._replace(grad=flat.as_strided(part.grad.shape, part.strides, start))
            for part, start in zip(parts, starts, strict=False)
        ]
        torch._foreach_copy_([part.grad for part in sums], [part.grad for part in parts])
        self.sent.append(_Sent(sums, begin_sum(self.mesh.everyone, flat)))


_OPEN: list[Late] = []
_ABANDONED: list[Late] = []
"""Those of which a pass failed: nobody waits for what others may never send, and into which they may still write."""


@contextlib.contextmanager
def late_gradients(mesh: Mesh) -> Iterator[None]:
    """Around `loss.backward()`, on all ranks: `.grad` of leaves is complete where this ends, not before.

    Within a `step_of_passes`, where that ends. Leaves with hooks have theirs at once, as without this: a hook must be
    on all ranks, or they wait for each other. It is not for `torch.autograd.grad` and `backward(inputs=…)`, whose
    results would lack what is late.
    """
    if mesh.size == 1:
        yield
        return
    with _step(mesh) as late:
        late.running = True
        try:
            yield
        finally:
            late.running = False
        late.pass_done()


@contextlib.contextmanager
def step_of_passes(mesh: Mesh, passes: int) -> Iterator[None]:
    """So many `late_gradients` follow within, or steps of passes: what they find is summed once, in the last.

    Where there are fewer, it is summed at the end.
    """
    if mesh.size == 1:
        yield
        return
    with _step(mesh) as late:
        late.left.append(passes)
        try:
            yield
        finally:
            late.left.pop()
        late.pass_done()


@contextlib.contextmanager
def _step(mesh: Mesh) -> Iterator[Late]:
    """The step that is open over a mesh, or a new one, which this ends."""
    if (there := next((late for late in _OPEN if late.mesh is mesh), None)) is not None:
        yield there
        return
    late = Late(mesh)
    _OPEN.append(late)
    try:
        yield late
        with torch.no_grad():
            late.end()
    except BaseException:
        if late.sent:
            _ABANDONED.append(late)
        raise
    finally:
        _OPEN.remove(late)


def late_over(mesh: Mesh) -> Late | None:
    """Where a backward pass over a mesh may put off gradients, if it may."""
    return next((late for late in _OPEN if late.mesh is mesh and late.running), None)


def hooked(leaf: torch.Tensor) -> bool:
    """Whether somebody looks at a leaf's gradient as soon as it is there."""
    return bool(leaf._backward_hooks or leaf._post_accumulate_grad_hooks)
