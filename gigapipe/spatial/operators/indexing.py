"""Parts of an image: of its rows and columns by slices, of its other dimensions in every spelling of torch."""

import torch

from gigapipe.spatial.operators.reductions import axes_without
from gigapipe.spatial.operators.resampling import part_of_image
from gigapipe.spatial.operators.shaping import undivided
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.torch_internals import without_modes

ROWS, COLUMNS = 10**5 + 3, 10**5 + 19  # sizes that nothing else has, by which the two are found again


def _spelt_out(x: SpatialTensor, index) -> list:
    """An index as one entry for each dimension, and None for each new one; masks as the numbers that they stand for."""
    index = list(index) if isinstance(index, tuple) else [index]
    index = [torch.as_tensor(i, device=x.device) if isinstance(i, list) else i for i in index]
    if any(isinstance(i, bool) or not isinstance(i, int | slice | torch.Tensor | None | type(...)) for i in index):
        raise NotDecomposed(f"indexing by {index}", "index by numbers, slices, None and lists or tensors of numbers")
    if any(isinstance(i, SpatialTensor) for i in index):
        raise NotDecomposed("indexing by an image", "multiply by it, or use torch.where")
    spelt: list = []
    for i in index:
        if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8):
            with without_modes():  # numbers, even where nothing but shapes is asked for
                spelt += i.nonzero(as_tuple=True)
        else:
            spelt.append(i)
    missing = x.dim() - sum(i is not None and i is not ... for i in spelt)
    at = next((n for n, i in enumerate(spelt) if i is ...), len(spelt))
    if missing < 0:
        raise IndexError(f"too many indices for an image of dimension {x.dim()}")  # as torch does
    return [*spelt[:at], *[slice(None)] * missing, *(i for i in spelt[at:] if i is not ...)]


def _axes_of(x: SpatialTensor, index: tuple) -> tuple[int, int]:
    """Where rows and columns are after the others were indexed."""
    like = torch.empty((), device="meta").expand(
        [ROWS if d == x.axes[0] else COLUMNS if d == x.axes[1] else n for d, n in enumerate(x.shape)]
    )
    shape = list(like[tuple(i.to("meta") if isinstance(i, torch.Tensor) else i for i in index)].shape)
    return shape.index(ROWS), shape.index(COLUMNS)


@decomposes(torch.Tensor.__getitem__)
def getitem(x, index):
    index = _spelt_out(x, index)
    places = [n for n, i in enumerate(index) if i is not None]
    cuts = [index[places[axis]] for axis in x.axes]
    if any(not isinstance(cut, slice) for cut in cuts):
        raise NotDecomposed("indexing single rows or columns", "take a slice of one, or use gigapipe.spatial.gather(x)")
    whole, part = x, any(cut != slice(None) for cut in cuts)
    if part:
        ranges = [cut.indices(n) for cut, n in zip(cuts, x.image_size, strict=True)]
        if any(step < 1 for _, _, step in ranges):
            raise ValueError("step must be greater than zero")  # as torch does
        if any(stop <= start for start, stop, _ in ranges):
            raise NotDecomposed("an empty part of an image", "leave it out")
        x = part_of_image(x, *ranges)
    for axis in x.axes:
        index[places[axis]] = slice(None)
    x = x.with_local(x.local[tuple(index)], _axes_of(x, tuple(index)))
    if part and not isinstance(x.mesh, Tile):  # whose parts are views
        whole.memory.copied_to(x.memory)
    return x


@decomposes(torch.select, torch.Tensor.select)
def select(x, dim, index):
    dim = undivided(x, dim, "select")
    return x.with_local(x.local.select(dim, index), axes_without(x, {dim}, False))


@decomposes(torch.index_select, torch.Tensor.index_select)
def index_select(x, dim, index):
    return x.with_local(x.local.index_select(undivided(x, dim, "index_select"), index))
