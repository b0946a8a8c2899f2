"""How chunks are compressed, and what a lossy way makes of their pixels.

No lossy codec of pictures is part of zarr: viewers read what is compressed by zstd or Blosc. So there are two lossy
ways, one that loses nothing after pixels were rounded, which all of them read, and JPEG, for readers that know
imagecodecs.
"""

from typing import Any, Literal

import imagecodecs.numcodecs
import numcodecs
import numpy as np
from zarr.codecs import ZstdCodec

Codec = Literal["zstd", "rounded", "jpeg"]

STEP = 5
"""Grey levels to whose multiples pixels are rounded: 0 and 255 are among them, and none moves by more than 2."""
QUALITY = 85
"""Of JPEG. Each channel is a picture of its own, for a chunk (channel, row, column) is none in colours."""

numcodecs.register_codec(imagecodecs.numcodecs.Jpeg)


def channels_together(codec: Codec) -> bool:
    """Whether a chunk holds all channels."""
    return codec != "jpeg"


def compressors(codec: Codec, zarr_format: int) -> Any:
    """What zarr's `create_array` takes. ValueError if that version of zarr has no such codec."""
    if codec == "jpeg":
        if zarr_format != 2:
            raise ValueError("JPEG needs OME-Zarr 0.4")
        return imagecodecs.numcodecs.Jpeg(level=QUALITY, squeeze=(True, False, False))
    if zarr_format == 2:
        return numcodecs.Blosc("zstd", clevel=1, shuffle=numcodecs.Blosc.NOSHUFFLE)
    return ZstdCodec(level=1, checksum=True)


def rounded(pixels: np.ndarray, codec: Codec) -> np.ndarray:
    """Pixels, uint8, as they are given to be compressed."""
    return ROUNDED[pixels] if codec == "rounded" else pixels


ROUNDED = ((np.arange(256) + STEP // 2) // STEP * STEP).astype(np.uint8)


def encoded_bytes(pixels: np.ndarray, codec: Codec, version: str, chunk: int) -> int:
    """How many bytes pixels (channel, row, column), uint8, take in chunks of so many pixels; white ones take none."""
    encoder = compressors(codec, 2 if version == "0.4" else 3)
    if isinstance(encoder, ZstdCodec):
        encoder = numcodecs.Zstd(level=encoder.level, checksum=encoder.checksum)
    total = 0
    for row in range(0, pixels.shape[1], chunk):
        for column in range(0, pixels.shape[2], chunk):
            part = rounded(np.ascontiguousarray(pixels[:, row : row + chunk, column : column + chunk]), codec)
            for piece in [part] if channels_together(codec) else np.split(part, len(part)):
                total += len(encoder.encode(piece)) if (piece != 255).any() else 0
    return total
