"""Reshaping: what leaves rows and columns alone is done shard by shard; what joins them gathers the image."""

import math
import warnings
from collections.abc import Sequence

import torch

from gigapipe.spatial.operators.shaping import sizes_of
from gigapipe.spatial.refusals import where
from gigapipe.spatial.sharding import gather
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.torch_internals import memory_of


def gathered(x: SpatialTensor, what: str) -> torch.Tensor:
    """The whole image on every rank, of which is said what it costs."""
    if not isinstance(x.mesh, Tile) and x.mesh.image_ranks > 1 and x.mesh.image_rank == 0:
        megabytes = x.numel() * x.dtype.itemsize / 1e6
        warnings.warn(
            f"{where()}{what} of rows and columns together gathers {tuple(x.shape)} to every rank of "
            f"the image, {megabytes:.3g} MB",
            stacklevel=2,
        )
    return gather(x)


def _around(shape: Sequence[int], dim: int) -> tuple[int, int]:
    """How many numbers the dimensions before `dim`, and those after it, count."""
    return math.prod(shape[:dim]), math.prod(shape[dim + 1 :])


def _places(x: SpatialTensor, shape: list[int]) -> tuple[int, int] | None:
    """Where rows and columns are in `shape`, the same numbers in the same order; None where one dimension holds both.

    Raises NotDecomposed where neither is so.
    """
    found = []
    for axis in x.axes:
        alike = [d for d, n in enumerate(shape) if n == x.shape[axis] and _around(shape, d) == _around(x.shape, axis)]
        found += alike[-1:]  # of a single row there may be several
    if len(set(found)) == 2:
        return found[0], found[1]
    before, after = _around(x.shape, min(x.axes))[0], _around(x.shape, max(x.axes))[1]
    for dim in range(len(shape)):
        outer, inner = _around(shape, dim)
        if before % max(1, outer) == after % max(1, inner) == 0:
            return None
    raise NotDecomposed(
        f"reshaping {tuple(x.shape)} to {tuple(shape)}, which takes rows or columns apart",
        "reshape the other dimensions alone, or gigapipe.spatial.gather(x) first",
    )


def reshaped(x: SpatialTensor, shape: list[int], what: str) -> torch.Tensor:
    """`x` in another shape, of which one size may be -1; `what` does it."""
    if -1 in shape:
        known = -torch.Size(shape).numel()
        shape[shape.index(-1)] = x.numel() // known if known else 0
    if torch.Size(shape).numel() != x.numel():
        raise RuntimeError(f"shape {tuple(shape)} is invalid for an image of {tuple(x.shape)}")  # as torch does
    places = _places(x, shape)
    if places is None:
        return gathered(x, what).reshape(shape)
    local = list(shape)
    for place, owned in zip(places, x.rectangle, strict=True):
        local[place] = owned.size
    found = x.with_local(x.local.reshape(local), places)
    if not isinstance(x.mesh, Tile) and memory_of(found.local) != memory_of(x.local):  # torch's may be a view
        x.memory.copied_to(found.memory)
    return found


@decomposes(torch.reshape, torch.Tensor.reshape)
def reshape(x, *sizes, shape=None):
    return reshaped(x, sizes_of(sizes) if shape is None else list(shape), "reshape")


@decomposes(torch.Tensor.view)
def view(x, *sizes):
    if isinstance(sizes[0], torch.dtype):
        raise NotDecomposed("view as another dtype", "convert it by to(dtype)")
    return reshaped(x, sizes_of(sizes), "view")


@decomposes(torch.unflatten, torch.Tensor.unflatten)
def unflatten(x, dim, sizes):
    dim = x.dimension(dim)
    return reshaped(x, [*x.shape[:dim], *sizes, *x.shape[dim + 1 :]], "unflatten")


@decomposes(torch.flatten, torch.Tensor.flatten)
def flatten(x, start_dim=0, end_dim=-1):
    first, last = x.dimension(start_dim), x.dimension(end_dim)
    return reshaped(x, [*x.shape[:first], -1, *x.shape[last + 1 :]], "flatten")
