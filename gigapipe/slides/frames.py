"""What a compressed tile says of itself, before it is decoded."""

import struct
from typing import NamedTuple

JPEG_BEGINS, JPEG_ENDS = b"\xff\xd8", b"\xff\xd9"
J2K_BEGINS = b"\xff\x4f\xff\x51"
FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
SEQUENTIAL = {0xC0, 0xC1}
BEGIN_OF_SCAN = 0xDA
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers of JPEG that nothing belongs to


class Frame(NamedTuple):
    """A picture that was compressed."""

    rows: int
    columns: int
    channels: int
    block: int = 0
    """Rows of the blocks in which a JPEG is decoded, if each by itself, one after the other in one scan; or else 0."""
    place: int = 0
    """Where a JPEG says its rows."""
    whole: bool = True
    """Whether a JPEG has an end: what is cut short, libjpeg fills up with grey and says nothing."""


def jpeg_frame(data: bytes) -> Frame:
    """A JPEG by its header. ValueError if it has none."""
    if not data.startswith(JPEG_BEGINS):
        raise ValueError("no JPEG")
    at, frame, whole = 2, None, data.rstrip(b"\0").endswith(JPEG_ENDS)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in ALONE or marker == 0xFF:  # 0xFF: padding
            at += 1 if marker == 0xFF else 2
            continue
        if marker in FRAMES:
            rows, columns, channels = struct.unpack_from(">xHHB", data, at + 4)
            high = {byte & 15 for byte in data[at + 11 : at + 10 + 3 * channels : 3]}
            # Chroma of fewer rows is interpolated between blocks.
            block = 8 * max(high) if marker in SEQUENTIAL and len(high) == 1 else 0
            frame = Frame(rows, columns, channels, block, at + 5, whole)
        if marker == BEGIN_OF_SCAN and frame:
            return frame if data[at + 4] == frame.channels else frame._replace(block=0)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("its JPEG has no frame")


def with_a_block_more(data: bytes, frame: Frame) -> bytes:
    """The same JPEG, which says that it has a row of blocks more.

    The first of them begins with the bits that are left. If the blocks before had too few, libjpeg has made up what
    follows, without reading: then it is `GREY` in all channels.
    """
    longer = bytearray(data)
    rows = (-(-frame.rows // frame.block) + 1) * frame.block
    longer[frame.place : frame.place + 2] = rows.to_bytes(2, "big")
    return bytes(longer)


GREY = 128


def j2k_frame(data: bytes) -> Frame:
    """A JPEG 2000 codestream by its header. ValueError if it has none."""
    if not data.startswith(J2K_BEGINS) or len(data) < 42:
        raise ValueError("no JPEG 2000 codestream")
    columns, rows, left, top = struct.unpack_from(">4I", data, 8)
    (channels,) = struct.unpack_from(">H", data, 40)
    return Frame(rows - top, columns - left, channels)
