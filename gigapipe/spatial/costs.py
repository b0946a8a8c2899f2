"""What operations cost, in arithmetic, memory and time, and what a training holds: for tiles and for meshes.

Streaming (`planning.py`) and meshes (`gigapipe/planning`) count arithmetic, a rank's part of an image and the state of
a training alike, by what stands here. In the rest they differ:

- What a backward pass holds is counted of a mesh, whose step runs without pixels (`gigapipe/planning/cost.py`). Of
  tiles, of which there are too many ways to run them all, it is put together of what autograd keeps of each operation
  (`keeping`) and `GRADIENTS`.
- Traffic of a mesh is every tensor that an operation of ATen reads or makes; of tiles, the images of a recorded
  operation, which may be several of ATen's.
- Time of a mesh is in seconds of a known machine: an operation's arithmetic or its traffic, whichever takes longer, and
  a backward pass as it is counted (`gigapipe/planning/scaling.py`). Time of tiles is by the `Speed` of the device:
  arithmetic and traffic together, and a backward pass as so many forward ones (`passes`). It only compares ways to
  compute the same.
"""

import math
import operator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from gigapipe.spatial.blocks import Blocks
from gigapipe.spatial.operators.convolution import convolved
from gigapipe.spatial.recording import Node, Ref, map_arguments, without_pixels
from gigapipe.spatial.speed import IN_CACHES, Speed
from gigapipe.spatial.tensor import SpatialTensor
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.torch_internals import counts_of_arithmetic, memory_of
from gigapipe.spatial.window import Interval

MOMENTS = 2
"""That AdamW keeps of each weight."""

BACKWARD = 2
"""Time of a backward pass over tiles, in forward passes."""

SIDE_BY_SIDE = 0.8
"""Time of tiles that threads compute side by side, one each, in the time of these tiles computed one after another by
all threads, on a CPU: careful, for 0.4 to 0.8 were measured of two threads beside other programs."""

GRADIENTS = 2.5
"""Of the images that an operation's backward pass makes at a time: gradients of result and operand, and a copy."""

GRADIENTS_OF_16_BITS = 4.0
"""The same of a convolution in 16 bits on a CPU: oneDNN copies image and gradient for the weights' gradient (measured
with AVX-512, without AMX)."""

CONVOLUTIONS = {torch.conv2d: False, convolved: False, torch.conv_transpose2d: True}
"""Recorded functions that multiply by weights, and whether they are transposed."""


def flops(function, args: tuple, kwargs: dict, result) -> int:
    """Multiplications and additions of an operation of ATen, as torch counts them: where it does not, 0."""
    count = counts_of_arithmetic().get(function.overloadpacket)
    return count(*args, **kwargs, out_val=result) if count else 0


def recorded_flops(node: Node) -> int:
    """The same of a recorded operation, on the whole image."""
    if node.is_source or node.function not in CONVOLUTIONS:
        return 0
    convolution = node.operands[0].image.shape, node.tensors[0].shape, None, None, None, None
    operation = torch.ops.aten.convolution.default
    return flops(operation, (*convolution, CONVOLUTIONS[node.function]), {}, node.results[0].shape)


def passes(again: bool) -> int:
    """Time of a training step in forward passes; `again`: what is computed forward is computed once more, backward."""
    return 1 + again + BACKWARD


def trained_bytes(model: nn.Module) -> int:
    """Of the weights that ask for a gradient, and so of their gradients."""
    return sum(p.nbytes for p in model.parameters() if p.requires_grad)


def training_state(model: nn.Module) -> int:
    """Bytes of gradients and AdamW's moments."""
    return (1 + MOMENTS) * trained_bytes(model)


def largest_part(size: tuple[int, int], ranks: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of an image of `size` on the rank that has most, of `ranks` (rows, columns)."""
    rows, columns = (math.ceil(n / parts) for n, parts in zip(size, ranks, strict=True))
    return rows, columns


def size_of(node: Node) -> tuple[int, int]:
    """Rows and columns of what a node makes, or sums over."""
    return (node.operands[0] if node.sums else Ref(node)).image.image_size


def bytes_a_pixel(ref: Ref) -> float:
    """Of an image, its batch and channels."""
    return ref.node.bytes_a_pixel[ref.item]


class Spent(NamedTuple):
    """The time of a step by what it goes to; what none of it goes to is 0."""

    arithmetic: float = 0.0
    memory: float = 0.0
    """To move images between memory and processor."""
    starting: float = 0.0
    """To start operations, and tiles."""
    reading: float = 0.0
    disk: float = 0.0
    """Of images that are kept there."""
    host: float = 0.0
    """Of those that are kept in its memory, and sent to a GPU."""
    messages: float = 0.0
    """Between ranks."""

    @property
    def total(self) -> float:
        return sum(self)

    def __add__(self, other: "Spent") -> "Spent":  # as of numbers, not as tuples are joined
        return Spent(*map(operator.add, self, other))

    def times(self, factor: float) -> "Spent":
        return Spent(*(factor * part for part in self))

    def __str__(self) -> str:
        """In per cent of it all, the largest first; what is below half of one is left out."""
        shares = {name: part / (self.total or 1.0) for name, part in self._asdict().items()}
        largest_first = sorted(shares, key=lambda name: -shares[name])
        return ", ".join(f"{name} {shares[name]:.0%}" for name in largest_first if shares[name] >= 0.005)


class Keeping(NamedTuple):
    """What autograd keeps of an operation."""

    images: frozenset[Ref]
    """Which of its operands and results."""
    more: float
    """Bytes beside them, for a pixel of the result: a pooling's indices, an image in another precision."""


def keeping(made: Node, node: Node) -> Keeping:
    """Of `node`, by which the results of `made` are made; found out by running it without pixels."""
    operands: dict[Ref, SpatialTensor] = {}
    tensors: dict[int, torch.Tensor] = {}
    kept: list[torch.Tensor] = []
    for ref in node.operands:
        image = ref.image
        with without_pixels():
            local = torch.empty_like(image.local, requires_grad=image.dtype.is_floating_point)
            operands[ref] = image.with_local(local * 1 if node.in_place else local)  # a leaf cannot be changed

    def given(a):
        if isinstance(a, Ref):
            return operands[a]
        if isinstance(a, torch.Tensor):
            return tensors.setdefault(id(a), torch.empty_like(a, requires_grad=a.requires_grad))
        return a

    def noted(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    tile = node.operands[0].image.mesh
    assert isinstance(tile, Tile)  # as of all that is recorded
    tile.replay(None, node.drawn)
    kind = node.results[0].device.type
    with without_pixels(), torch.enable_grad(), saved_tensors_hooks(noted, lambda t: t):
        args, kwargs = map_arguments(given, (node.args, node.kwargs))
        with torch.autocast(kind, node.autocast, enabled=node.autocast is not None):
            result = node.function(*args, **kwargs)
    results = {Ref(made, i): r for i, r in enumerate([result] if node.single else result)}
    images = {memory_of(x.local): ref for ref, x in {**operands, **results}.items() if isinstance(x, SpatialTensor)}
    plain = {memory_of(t) for t in tensors.values()}
    found = {memory_of(t): t for t in kept if isinstance(t, torch.Tensor)}
    more = sum(
        t.untyped_storage().nbytes() for s, t in found.items() if s not in images and s not in plain and t.dim() == 4
    )
    return Keeping(frozenset(images[s] for s in found if s in images), more / max(1, math.prod(size_of(node))))


@dataclass(frozen=True)
class Operation:
    """The costs of what makes a node's results, for a pixel of them."""

    node: Node
    operands: list[Ref]
    keeping: Keeping
    made: float
    """Bytes."""
    padded: float
    """Bytes of its operand, which is copied, and the copy kept, where a tile lies at the image's edge, and on ranks."""
    arithmetic: float
    """Time, by the device's `Speed`."""
    moved: float
    """Bytes that are read and written."""
    block: float = 0.0
    """Of what is computed by blocks, pixels of one."""
    in_block: float = 0.0
    """Bytes of all that a block makes and keeps, for each of them."""
    gradients: float = GRADIENTS
    """Of its largest image, how many its backward pass makes at a time."""

    def spent(self, pixels: float, speed: Speed) -> Spent:
        """Of so many pixels at a time."""
        moved = self.moved * pixels
        return Spent(self.arithmetic * pixels, moved * speed.moving(moved), speed.operation)

    def beside(self, pixels: float) -> float:
        """Bytes that it takes for a time beside what it makes and keeps."""
        return self.in_block * min(self.block, pixels)

    @classmethod
    def of(cls, of: Node, node: Node, speed: Speed) -> "Operation":
        """Of the results of `of`, by `node`: itself, or one that does the work of several."""
        made = 0.0 if node.in_place or node.sums else sum(bytes_a_pixel(Ref(node, i)) for i in range(len(node.results)))
        size = math.prod(size_of(node))
        operand = node.operands[0].image
        moved, block, in_block = made + sum(map(bytes_a_pixel, node.operands)), 0.0, 0.0
        if isinstance(node, Blocks):
            moved, block = moved + IN_CACHES * sum(node.made), node.pixels
            in_block = sum(node.made) + GRADIENTS * max(node.made)
        counted = recorded_flops(node)
        arithmetic = speed.arithmetic(counted / 2 / size, node.autocast is not None)
        copied = counted > 0 and node.autocast is not None and operand.device.type == "cpu"
        gradients = GRADIENTS_OF_16_BITS if copied else GRADIENTS
        padded = 0.0
        if node.accesses and any(a.needs(Interval(0, 1)).start < 0 for a in node.accesses):
            padded = bytes_a_pixel(node.operands[0]) * math.prod(operand.image_size) / size
        kept = keeping(of, node)
        if padded:  # of the whole image that copy was made, and counted, in place of the operand
            kept = Keeping(kept.images | {node.operands[0]}, max(0.0, kept.more - padded))
        return cls(of, node.operands, kept, made, padded, arithmetic, moved, block, in_block, gradients)
