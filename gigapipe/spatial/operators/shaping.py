"""Joining, cutting and repeating along the dimensions that are not divided; the order of all."""

import torch
import torch.nn.functional as F

from gigapipe.spatial.operators.reductions import axes_without
from gigapipe.spatial.operators.resampling import flipped, padded, rolled
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes, name_of


def undivided(x: SpatialTensor, dim: int, what: str) -> int:
    """`dim`, counted from the first, if it is neither rows nor columns."""
    if x.dimension(dim) in x.axes:
        raise NotDecomposed(
            f"{what} along rows or columns", "do it along another dimension, or after gigapipe.spatial.gather(x)"
        )
    return x.dimension(dim)


def _shard_of(first: SpatialTensor, t: torch.Tensor) -> torch.Tensor:
    """What lies where this rank's shard of `first` does: of an image like it, or of a plain tensor as large."""
    alike = t.dim() == first.dim() and [t.shape[axis] for axis in first.axes] == list(first.image_size)
    if not alike or (isinstance(t, SpatialTensor) and t.axes != first.axes):
        raise NotDecomposed(
            f"cat of images of {tuple(first.shape)} and {tuple(t.shape)}", "bring their rows and columns to one size"
        )
    if isinstance(t, SpatialTensor):
        return t.local
    for axis, owned in zip(first.axes, first.rectangle, strict=True):
        t = t.narrow(axis, owned.start, owned.size)
    return t


@decomposes(torch.cat, torch.concat)
def cat(tensors, dim=0):
    tensors = [t for t in tensors if t.shape != (0,)]  # which torch leaves out, too
    first = next(t for t in tensors if isinstance(t, SpatialTensor))
    dim = undivided(first, dim, "cat")
    return first.with_local(torch.cat([_shard_of(first, t) for t in tensors], dim))


@decomposes(torch.stack)
def stack(tensors, dim=0):
    dim %= tensors[0].dim() + 1
    return cat([torch.unsqueeze(t, dim) for t in tensors], dim)


@decomposes(torch.chunk, torch.Tensor.chunk)
def chunk(x, chunks, dim=0):
    return tuple(x.with_local(part) for part in x.local.chunk(chunks, undivided(x, dim, "chunk")))


@decomposes(torch.split, torch.Tensor.split)
def split(x, split_size_or_sections, dim=0):
    return tuple(x.with_local(part) for part in x.local.split(split_size_or_sections, undivided(x, dim, "split")))


@decomposes(torch.unbind, torch.Tensor.unbind)
def unbind(x, dim=0):
    dim = undivided(x, dim, "unbind")
    return tuple(x.with_local(part, axes_without(x, {dim}, False)) for part in x.local.unbind(dim))


@decomposes(torch.Tensor.__iter__)
def iterate(x):
    return iter(unbind(x))


@decomposes(torch.narrow, torch.Tensor.narrow)
def narrow(x, dim, start, length):
    return x.with_local(x.local.narrow(undivided(x, dim, "narrow"), start, length))


def sizes_of(sizes: tuple) -> list[int]:
    """Numbers that are given one by one or as one list."""
    return list(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)


@decomposes(torch.permute, torch.Tensor.permute)
def permute(x, *args, dims=None):
    dims = [x.dimension(d) for d in (sizes_of(args) if dims is None else dims)]
    return x.with_local(x.local.permute(dims), tuple(dims.index(axis) for axis in x.axes))


@decomposes(
    torch.transpose, torch.Tensor.transpose, torch.swapaxes, torch.Tensor.swapaxes, torch.swapdims,
    torch.Tensor.swapdims,
)  # fmt: skip
def transpose(x, dim0, dim1):
    dims = list(range(x.dim()))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permute(x, dims)


@decomposes(torch.movedim, torch.Tensor.movedim, torch.moveaxis, torch.Tensor.moveaxis)
def movedim(x, source, destination):
    pairs = [(source, destination)] if isinstance(source, int) else zip(source, destination, strict=True)
    places = {x.dimension(to): x.dimension(of) for of, to in pairs}
    rest = iter(d for d in range(x.dim()) if d not in places.values())
    return permute(x, [places[d] if d in places else next(rest) for d in range(x.dim())])


@decomposes(torch.Tensor.expand)
def expand(x, *sizes, size=None):
    shape = sizes_of(sizes) if size is None else list(size)
    new = len(shape) - x.dim()
    axes = tuple(axis + new for axis in x.axes)
    if new < 0 or any(shape[axis] not in (-1, n) for axis, n in zip(axes, x.image_size, strict=True)):
        raise NotDecomposed(
            f"expand of {tuple(x.shape)} to {tuple(shape)}", "enlarge rows and columns by interpolation"
        )
    return x.with_local(x.local.expand([-1 if d in axes else n for d, n in enumerate(shape)]), axes)


@decomposes(torch.Tensor.repeat)
def repeat(x, *repeats):
    times = sizes_of(repeats)
    new = len(times) - x.dim()
    axes = tuple(axis + new for axis in x.axes)
    if new < 0 or any(times[axis] != 1 for axis in axes):
        raise NotDecomposed(f"repeat by {tuple(times)}", "repeat along other dimensions than rows and columns")
    return x.with_local(x.local.repeat(times), axes)


@decomposes(torch.repeat_interleave, torch.Tensor.repeat_interleave)
def repeat_interleave(x, repeats, dim=None, *, output_size=None):
    if dim is None:
        raise NotDecomposed("repeat_interleave without a dimension", "say which dimension it is along")
    return x.with_local(x.local.repeat_interleave(repeats, undivided(x, dim, "repeat_interleave")))


@decomposes(torch.roll, torch.Tensor.roll)
def roll(x, shifts, dims=None):
    if dims is None or dims == ():
        raise NotDecomposed("roll without dimensions", "say which dimensions it is along")
    shifts, dims = ([v] if isinstance(v, int) else list(v) for v in (shifts, dims))
    by = [0] * x.dim()
    for shift, dim in zip(shifts, dims, strict=True):
        by[x.dimension(dim)] += shift
    x = rolled(x, [by[axis] for axis in x.axes])
    rest = [d for d in range(x.dim()) if d not in x.axes]
    return x.with_local(x.local.roll([by[d] for d in rest], rest))


@decomposes(torch.flip, torch.Tensor.flip)
def flip(x, *dims):
    turned = {x.dimension(d) for d in sizes_of(dims)}
    x = flipped(x, [axis in turned for axis in x.axes])
    return x.with_local(x.local.flip(sorted(turned - set(x.axes))))


@decomposes(F.pad)
def pad(x, pad, mode="constant", value=None):
    pad = list(pad)
    sides = {x.dim() - 1 - i // 2: tuple(pad[i : i + 2]) for i in range(0, len(pad), 2)}
    others = {axis: p for axis, p in sides.items() if any(p) and axis not in x.axes}
    if others and mode != "constant":
        raise NotDecomposed(f"{mode} padding along other dimensions than rows and columns", "concatenate along them")
    if others:
        around = [n for d in reversed(range(x.dim())) for n in others.get(d, (0, 0))]
        x = x.with_local(F.pad(x.local, around, mode, value))
    return padded(x, [sides.get(axis, (0, 0)) for axis in x.axes], mode, value)


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
    dim = undivided(x, dim, "squeeze")
    return x if x.shape[dim] != 1 else x.with_local(x.local.squeeze(dim), axes_without(x, {dim}, keepdim=False))


def _along(function):
    """Functions (input, dim, …) whose result has the shape of the input."""

    def ours(x, dim=None, *args, **kwargs):
        if dim is None:
            raise NotDecomposed(f"{name_of(function)} without a dimension", "say which dimension it is along")
        return x.with_local(function(x.local, undivided(x, dim, name_of(function)), *args, **kwargs))

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
    return x.with_local(F.normalize(x.local, p, undivided(x, dim, "normalize"), eps))


@decomposes(F.local_response_norm)
def local_response_norm(x, size, alpha=1e-4, beta=0.75, k=1.0):
    undivided(x, 1, "local_response_norm")
    return x.with_local(F.local_response_norm(x.local, size, alpha, beta, k))


@decomposes(F.one_hot)
def one_hot(x, num_classes=-1):
    if num_classes < 0:
        raise NotDecomposed("one_hot of an unknown number of classes", "say how many there are: num_classes")
    return x.with_local(F.one_hot(x.local, num_classes))
