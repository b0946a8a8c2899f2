"""Reshaping: what leaves rows and columns alone is done shard by shard; what joins them gathers the image."""

import warnings

import torch

from gigapipe.spatial.refusals import LAYERS
from gigapipe.spatial.sharding import gather
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.torch_internals import memory_of


def gathered(x: SpatialTensor, what: str) -> torch.Tensor:
    """The whole image on every rank, of which is said what it costs."""
    if not isinstance(x.mesh, Tile) and x.mesh.image_ranks > 1 and x.mesh.image_rank == 0:
        layer = f"in layer {LAYERS[-1]}: " if LAYERS and LAYERS[-1] else ""
        megabytes = x.numel() * x.dtype.itemsize / 1e6
        warnings.warn(
            f"gigapipe.spatial: {layer}{what} of rows and columns together gathers {tuple(x.shape)} to every rank of "
            f"the image, {megabytes:.3g} MB",
            stacklevel=2,
        )
    return gather(x)


def _groups(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """The dimensions of two shapes of as many numbers, in the smallest groups that hold as many of them each."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        left = right = 1
        while True:
            if left <= right and i < len(old) and (i == first_i or left < right):
                left, i = left * old[i], i + 1
            elif j < len(new):
                right, j = right * new[j], j + 1
            else:
                left, i = left * old[i], i + 1
            if left == right and (i > first_i or i == len(old)) and (j > first_j or j == len(new)):
                break
        groups.append((list(range(first_i, i)), list(range(first_j, j))))
    return groups


def _places(x: SpatialTensor, shape: list[int]) -> tuple[int, int] | None:
    """Where rows and columns are in `shape`; None where they are one dimension there."""
    found: list[int] = []
    for old, new in _groups(list(x.shape), shape):
        axes = [axis for axis in x.axes if axis in old]
        if not axes:
            continue
        if len(axes) == 2 and [shape[d] for d in new if shape[d] != 1] != [n for n in x.image_size if n != 1]:
            return None
        sizes = [x.shape[axis] for axis in axes]
        candidates = [d for d in new if shape[d] in sizes]
        others = [x.shape[d] for d in old if d not in axes and x.shape[d] != 1]
        if others or len(candidates) < len(axes):
            raise NotDecomposed(
                f"reshaping {tuple(x.shape)} to {tuple(shape)}, which takes rows or columns apart",
                "reshape the other dimensions alone, or gigapipe.spatial.gather(x) first",
            )
        found += candidates[-len(axes) :]
    return tuple(found)


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
def reshape(x, *shape):
    return reshaped(x, list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape), "reshape")


@decomposes(torch.Tensor.view)
def view(x, *shape):
    if isinstance(shape[0], torch.dtype):
        raise NotDecomposed("view as another dtype", "convert it by to(dtype)")
    return reshaped(x, list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape), "view")


@decomposes(torch.unflatten, torch.Tensor.unflatten)
def unflatten(x, dim, sizes):
    dim = x.dimension(dim)
    return reshaped(x, [*x.shape[:dim], *sizes, *x.shape[dim + 1 :]], "unflatten")


@decomposes(torch.flatten, torch.Tensor.flatten)
def flatten(x, start_dim=0, end_dim=-1):
    first, last = x.dimension(start_dim), x.dimension(end_dim)
    return reshaped(x, [*x.shape[:first], -1, *x.shape[last + 1 :]], "flatten")
