"""Max pooling that says where its maxima were, and its partial inverse, as SegNet has them.

Where a maximum was is a number of the whole image, row × columns + column, as torch has it: on a shard it is made of
the shard's place. A streamed image is held from here on, for what depends on a pixel's place is no constant of a
constant tile.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from gigapipe.spatial.operators.windowed import images, pair, pooling_windows, windowed
from gigapipe.spatial.recording import Recorded, streams_as
from gigapipe.spatial.tensor import Form, NotDecomposed, SpatialTensor, decomposes


def _held(*functions: Callable) -> Callable[[Form], Form]:
    """Register the form of `functions` for an image that is held, which a streamed one becomes."""

    def register(ours: Form) -> Form:
        @streams_as(*functions)
        def of_streamed(*args, **kwargs):
            return ours(*(a.computed() if isinstance(a, Recorded) else a for a in args), **kwargs)

        return decomposes(*functions, enters_itself=True)(ours)

    return register


@_held(F.max_pool2d_with_indices)
def max_pool2d_with_indices(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=True
) -> tuple[torch.Tensor, torch.Tensor]:
    images(x, "max_pool2d")
    stride = stride or kernel_size
    windows = pooling_windows(kernel_size, stride, padding, dilation, ceil_mode)
    columns = x.image_size[1]

    def places(local, needed, out):
        found = F.max_pool2d(local, kernel_size, stride, 0, dilation, return_indices=True)[1]
        width = needed.columns.size
        return (found // width + needed.rows.start) * columns + found % width + needed.columns.start

    with torch.no_grad():
        indices = windowed(x, windows, places, x.shape[1], fill=float("-inf"))
        indices = indices.with_local(indices.local.long())  # a rank that owns nothing has made nothing
    return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode), indices


@_held(F.max_unpool2d)
def max_unpool2d(x, indices, kernel_size, stride=None, padding=0, output_size=None) -> torch.Tensor:
    images(x, "max_unpool2d")
    kernel, padding = pair(kernel_size), pair(padding)
    stride = pair(stride or kernel_size)
    if stride != kernel or any(padding):
        raise NotDecomposed(
            "max_unpool2d of windows that overlap or are padded", "pool with a stride as large as the kernel"
        )
    size = tuple(output_size or (n * s for n, s in zip(x.image_size, stride, strict=True)))[-2:]
    spread = F.interpolate(x, scale_factor=stride, mode="nearest")
    # As rows and columns, which float32 holds exactly, and places not: torch interpolates no whole numbers.
    places = (indices.local // size[1], indices.local % size[1])
    rows, columns = (
        F.interpolate(indices.with_local(place.float()), scale_factor=stride, mode="nearest") for place in places
    )
    right, below = (max(0, n - m) for n, m in zip(size[::-1], spread.shape[:-3:-1], strict=True))
    spread, rows, columns = (
        F.pad(image, (0, right, 0, below), value=value)[:, :, : size[0], : size[1]]
        for image, value in ((spread, 0), (rows, -1), (columns, -1))
    )
    # torch's stubs know no subclass
    assert isinstance(spread, SpatialTensor) and isinstance(rows, SpatialTensor) and isinstance(columns, SpatialTensor)
    own_row, own_column = (torch.arange(i.start, i.stop, device=spread.device) for i in spread.rectangle)
    mine = (rows.local == own_row[:, None]) & (columns.local == own_column)
    return spread.with_local(torch.where(mine, spread.local, 0.0))


@decomposes(F.adaptive_max_pool2d_with_indices)
def adaptive_max_pool2d_with_indices(x: SpatialTensor, *args, **kwargs):
    raise NotDecomposed("adaptive max pooling with return_indices", "use max_pool2d, whose windows do not overlap")
