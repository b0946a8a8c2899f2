"""Joining, cutting and reordering the dimensions that are not divided; and making an image into a vector."""

import torch
import torch.nn.functional as F

from gigapipe.spatial.operators.reductions import axes_without
from gigapipe.spatial.operators.resampling import crop_image
from gigapipe.spatial.sharding import gather
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes, name_of
from gigapipe.spatial.tile import Tile


def _undivided(x: SpatialTensor, dim: int, what: str) -> int:
    """`dim`, counted from the first, if it is neither rows nor columns."""
    if x.dimension(dim) in x.axes:
        raise NotDecomposed(
            f"{what} along rows or columns", "do it along another dimension, or after gigapipe.spatial.gather(x)"
        )
    return x.dimension(dim)


@decomposes(torch.cat, torch.concat)
def cat(tensors, dim=0):
    first = next(t for t in tensors if isinstance(t, SpatialTensor))
    dim = _undivided(first, dim, "cat")
    for t in tensors:
        if not isinstance(t, SpatialTensor) or t.image_size != first.image_size or t.axes != first.axes:
            raise NotDecomposed(
                f"cat of {', '.join(str(tuple(t.shape)) for t in tensors)}",
                "join decomposed images of one size; gigapipe.spatial.shard makes one of a plain image",
            )
    return first.with_local(torch.cat([t.local for t in tensors], dim))


@decomposes(torch.stack)
def stack(tensors, dim=0):
    if not all(isinstance(t, SpatialTensor) for t in tensors):
        raise NotDecomposed("stack of images and plain tensors", "gigapipe.spatial.shard makes an image of a plain one")
    return cat([unsqueeze(t, dim) for t in tensors], dim)


@decomposes(torch.chunk, torch.Tensor.chunk)
def chunk(x, chunks, dim=0):
    return tuple(x.with_local(part) for part in x.local.chunk(chunks, _undivided(x, dim, "chunk")))


@decomposes(torch.split, torch.Tensor.split)
def split(x, split_size_or_sections, dim=0):
    return tuple(x.with_local(part) for part in x.local.split(split_size_or_sections, _undivided(x, dim, "split")))


@decomposes(torch.narrow, torch.Tensor.narrow)
def narrow(x, dim, start, length):
    return x.with_local(x.local.narrow(_undivided(x, dim, "narrow"), start, length))


@decomposes(torch.permute, torch.Tensor.permute)
def permute(x, *args, dims=None):
    dims = (dims,) if dims is not None else args
    dims = [x.dimension(d) for d in (dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)]
    return x.with_local(x.local.permute(dims), tuple(dims.index(axis) for axis in x.axes))


@decomposes(torch.transpose, torch.Tensor.transpose)
def transpose(x, dim0, dim1):
    dims = list(range(x.dim()))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permute(x, dims)


@decomposes(torch.unsqueeze, torch.Tensor.unsqueeze)
def unsqueeze(x, dim):
    if not -x.dim() - 1 <= dim <= x.dim():
        raise IndexError(f"Dimension out of range: {dim} of {x.dim()} and one more")  # as torch does
    dim %= x.dim() + 1
    return x.with_local(x.local.unsqueeze(dim), tuple(axis + (axis >= dim) for axis in x.axes))


@decomposes(torch.squeeze, torch.Tensor.squeeze)
def squeeze(x, dim=None):
    if not isinstance(dim, int):
        raise NotDecomposed("squeeze without a dimension", "say which dimension goes")
    dim = _undivided(x, dim, "squeeze")
    return x if x.shape[dim] != 1 else x.with_local(x.local.squeeze(dim), axes_without(x, {dim}, keepdim=False))


@decomposes(torch.Tensor.__getitem__)
def getitem(x, index):
    index = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(i, int | slice) and i is not Ellipsis or isinstance(i, bool) for i in index):
        raise NotDecomposed(f"indexing by {index}", "index a decomposed image by numbers and slices alone")
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (x.dim() - len(index) + 1), *index[at + 1 :])
    index = (*index, *[slice(None)] * (x.dim() - len(index)))
    cuts = [index[axis] for axis in x.axes]
    if any(isinstance(cut, int) or cut.step not in (None, 1) for cut in cuts):
        raise NotDecomposed("indexing single or every n-th rows or columns", "pool, or convolve with a stride")
    whole, part = x, any(cut != slice(None) for cut in cuts)
    if part:
        ranges = [cut.indices(n)[:2] for cut, n in zip(cuts, x.image_size, strict=True)]
        if any(stop <= start for start, stop in ranges):
            raise NotDecomposed("an empty part of an image", "leave it out")
        x = crop_image(x, *ranges)
    rest = tuple(slice(None) if d in x.axes else i for d, i in enumerate(index))
    x = x.with_local(x.local[rest], axes_without(x, {d for d, i in enumerate(rest) if isinstance(i, int)}, False))
    if part and not isinstance(x.mesh, Tile):  # whose parts are views
        whole.memory.copied_to(x.memory)
    return x


def _along(function):
    """Functions (input, dim, …) whose result has the shape of the input."""

    def ours(x, dim=None, *args, **kwargs):
        if dim is None:
            raise NotDecomposed(f"{name_of(function)} without a dimension", "say which dimension it is along")
        return x.with_local(function(x.local, _undivided(x, dim, name_of(function)), *args, **kwargs))

    return ours


for _function in (
    torch.softmax, torch.Tensor.softmax, torch.log_softmax, torch.Tensor.log_softmax, F.softmax, F.log_softmax,
    F.softmin, F.glu,
):  # fmt: skip
    decomposes(_function)(_along(_function))


@decomposes(F.normalize)
def normalize(x, p=2.0, dim=1, eps=1e-12, out=None):
    if out is not None or not isinstance(dim, int):
        raise NotDecomposed(
            "normalize with out, or over several dimensions", "normalise along one, and take the result"
        )
    return x.with_local(F.normalize(x.local, p, _undivided(x, dim, "normalize"), eps))


@decomposes(F.linear)
def linear(x, weight, bias=None):
    _undivided(x, -1, "linear")
    return x.with_local(F.linear(x.local, weight, bias))


@decomposes(torch.flatten, torch.Tensor.flatten)
def flatten(x, start_dim=0, end_dim=-1):
    """Of the image with its rows and columns: a plain tensor, of all that the ranks hold."""
    first, last = x.dimension(start_dim), x.dimension(end_dim)
    if first <= min(x.axes) and max(x.axes) <= last:
        return gather(x).flatten(first, last)
    raise NotDecomposed("flatten of rows and columns apart", "flatten both together")
