"""The exact area mean: downsampling by any ratio, integer or not, piece by piece without a seam."""

import numpy as np
from scipy import sparse


def output_size(size: int, ratio: float) -> int:
    """Pixels of an axis of `size` pixels after downsampling by `ratio` source pixels to one; at least one."""
    return max(1, round(size / ratio))


def source_range(start: int, stop: int, ratio: float, size: int) -> tuple[int, int]:
    """The source pixels `[first, last)` of an axis of `size` that the output pixels `[start, stop)` cover."""
    # The tolerance keeps a ratio such as 2 / 0.4 = 5.000000000000001 from reaching for a pixel more.
    return int(np.floor(start * ratio + 1e-6)), min(size, int(np.ceil(stop * ratio - 1e-6)))


def _weights(start: int, stop: int, ratio: float, size: int) -> sparse.csr_array:
    """Matrix (output, source) of the share that each source pixel has in each output pixel; rows sum to one."""
    first, last = source_range(start, stop, ratio, size)
    edges = np.minimum(np.arange(start, stop + 1) * ratio, size)
    span = int(np.ceil(ratio)) + 1
    pixels = np.floor(edges[:-1, None]).astype(int) + np.arange(span)
    covered = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    covered[(covered < 1e-6) | (pixels < first) | (pixels >= last)] = 0
    covered /= covered.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(stop - start), span)
    columns = np.clip(pixels.ravel() - first, 0, last - first - 1)
    return sparse.coo_array((covered.ravel().astype(np.float32), (rows, columns)), (stop - start, last - first)).tocsr()


def area_mean(
    source: np.ndarray,
    rows: tuple[int, int],
    columns: tuple[int, int],
    ratio: tuple[float, float],
    shape: tuple[int, int],
) -> np.ndarray:
    """Output pixels `rows` × `columns` (half-open ranges) of an image of `shape` downsampled by `ratio`.

    `source` holds, as (rows, columns, 3) uint8, exactly the pixels that `source_range` names on both axes. Returns
    the same layout and type, means rounded half up. Independent of how the output is cut into pieces.
    """
    down = _weights(*rows, ratio[0], shape[0])
    across = _weights(*columns, ratio[1], shape[1])
    channels = source.shape[2]
    tall = down @ source.reshape(len(source), -1).astype(np.float32)
    tall = tall.reshape(len(tall), -1, channels).transpose(1, 0, 2)
    wide = across @ np.ascontiguousarray(tall).reshape(len(tall), -1)
    mean = wide.reshape(len(wide), -1, channels).transpose(1, 0, 2)
    return np.floor(mean + np.float32(0.5)).astype(np.uint8)
