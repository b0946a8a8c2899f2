"""What a training step costs one rank of any mesh, found by running it without pixels.

The decomposed step itself runs, forward and backward, on tensors that have shapes and no memory, as any rank of any
mesh; what it would send is counted in place of being sent. So the layers, the strips that they fetch, what autograd
keeps and when it lets go are those of the library, and no table of them is kept here.
"""

import contextlib
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gigapipe.spatial import Mesh, SpatialTensor, decompose, late_gradients
from gigapipe.spatial.costs import MOMENTS, flops, trained_bytes, training_state
from gigapipe.spatial.operators import convolution, normalisation, regathered
from gigapipe.spatial.pooled import averaging
from gigapipe.spatial.recording import without_pixels
from gigapipe.spatial.transports import Alone, Message


@dataclass(frozen=True)
class Exchange:
    """Bytes that go to each of some ranks at a time, by their numbers in the whole mesh."""

    to: dict[int, int]


@dataclass(frozen=True)
class Reduction:
    """A sum of `bytes` over `ranks` of the mesh."""

    bytes: int
    ranks: tuple[int, ...] | range


@dataclass(frozen=True)
class Cost:
    """What one step, forward and backward, costs one rank.

    `memory` is the most bytes of tensors at a time: the `state` (weights, buffers, gradients, AdamW's moments), the
    rank's part of the image and what is made of it. `operations` (operations, 2) are multiplications and additions, and
    bytes read and written.
    """

    rank: int
    memory: int
    state: int
    operations: np.ndarray
    exchanges: tuple[Exchange, ...]
    reductions: tuple[Reduction, ...]

    @property
    def flops(self) -> float:
        return float(self.operations[:, 0].sum())

    @property
    def sent(self) -> int:
        """Bytes, an all-reduce by the least that a rank must send."""
        return self.halo + sum(2 * (len(r.ranks) - 1) * r.bytes // len(r.ranks) for r in self.reductions)

    @property
    def halo(self) -> int:
        """Bytes to neighbours."""
        return sum(sum(exchange.to.values()) for exchange in self.exchanges)


class _Counting:
    """A transport that sends nothing and notes what would be sent."""

    def __init__(self, rank: int, ranks: Sequence[int], noted: list | None = None):
        self.ranks, self.size = ranks, len(ranks)
        self.rank = rank
        self.noted = [] if noted is None else noted
        self.sent_bytes = 0

    def subset(self, ranks: Sequence[int]) -> "_Counting":
        chosen = [self.ranks[rank] for rank in ranks]
        return _Counting(chosen.index(self.ranks[self.rank]), chosen, self.noted)

    def exchange(self, outgoing: list[Message], incoming: list[Message]) -> Callable[[], None]:
        if outgoing or incoming:
            self.noted.append(Exchange({self.ranks[rank]: tensor.nbytes for rank, tensor in outgoing}))
        return outgoing.clear

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            self.noted.append(Reduction(x.nbytes, tuple(self.ranks)))
        return x


class _Counter(TorchDispatchMode):
    """Counts what every operation computes, reads and writes, and the bytes of tensors that are alive."""

    def __init__(self):
        super().__init__()
        self.alive = self.most = 0
        self.known: set[int] = set()
        self.operations: list[tuple[float, float]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            return 0  # of a value, which nobody knows: whether ranks are alike is asked
        result = function(*args, **kwargs)
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        for tensor in made:
            self.hold(tensor)
        if made and not function.is_view and "empty" not in function.overloadpacket.__name__:
            read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            moved = sum(t.nbytes for t in (*read, *made))
            self.operations.append((flops(function, args, kwargs, result), moved))
        return result

    def hold(self, x: torch.Tensor) -> None:
        """Count the memory of a tensor until it is freed."""
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            size = storage.nbytes()
            self.alive += size
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


@contextlib.contextmanager
def _as_on_gpu() -> Iterator[None]:
    """By a GPU's kernels, of copied shards, without the bands of rows in which a CPU convolves an image."""
    before = normalisation.FUSED, convolution.LARGE, regathered.WITHOUT_COPY
    normalisation.FUSED, convolution.LARGE, regathered.WITHOUT_COPY = {"cpu"}, 2**62, set()
    try:
        yield
    finally:
        normalisation.FUSED, convolution.LARGE, regathered.WITHOUT_COPY = before


def default_loss(output: torch.Tensor | SpatialTensor) -> torch.Tensor:
    """Cross-entropy of logits (batch, classes); of an image (batch, channels, rows, columns) binary, of every pixel."""
    if isinstance(output, SpatialTensor):
        return F.binary_cross_entropy_with_logits(output.float(), torch.zeros_like(output, dtype=torch.float32))
    return F.cross_entropy(output.float(), torch.zeros(len(output), dtype=torch.long, device=output.device))


def step_cost(
    make: Callable[[], nn.Module],
    shape: tuple[int, int, int, int],
    mesh: tuple[int, int, int] = (1, 1, 1),
    rank: int = 0,
    precision: torch.dtype = torch.float32,
    loss: Callable = default_loss,
    on_gpu: bool = False,
) -> Cost:
    """What a step costs `rank` of a mesh (data, rows, columns) whose data ranks have images of `shape` each.

    `make` makes the model; `shape` is (batch, channels, rows, columns). Weights are float32, in channels_last, and
    activations `precision` by autocast, as `gigapipe train` has them. What this does not see: memory and time that a
    kernel takes for itself, and what an allocator loses between tensors. Raises NotDecomposed for models that cannot be
    decomposed, and ValueError where an image is too small for the model.
    """
    transport = _Counting(rank, range(math.prod(mesh)))
    with without_pixels(), warnings.catch_warnings(), _as_on_gpu() if on_gpu else contextlib.nullcontext():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # only compared
        model = _channels_last(make()).train()
        ranks = Mesh(*mesh, transport=transport)
        decompose(model, Mesh(transport=Alone()))  # ranks' weights are the same
        counter = _Counter()
        for tensor in (*model.parameters(), *model.buffers()):
            counter.hold(tensor)
        size = shape[-2], shape[-1]
        with counter:
            local = torch.empty(*shape[:2], *ranks.rectangle(size).shape).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                output = model(SpatialTensor(local, size, ranks))
            value = loss(output)
            del output
            with late_gradients(ranks), averaging([value], ranks):
                value.backward()
    return Cost(
        rank,
        counter.most + MOMENTS * trained_bytes(model),
        sum(t.nbytes for t in (*model.parameters(), *model.buffers())) + training_state(model),
        np.array(counter.operations, dtype=float).reshape(-1, 2),
        tuple(n for n in transport.noted if isinstance(n, Exchange)),
        tuple(n for n in transport.noted if isinstance(n, Reduction)),
    )


def _channels_last(model: nn.Module) -> nn.Module:
    """What `model.to(memory_format=torch.channels_last)` does, which cannot be done to tensors without pixels."""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.dim() == 4:
                changed = p.detach().contiguous(memory_format=torch.channels_last)
                setattr(module, name, nn.Parameter(changed, requires_grad=p.requires_grad))
    return model
