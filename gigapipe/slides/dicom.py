"""DICOM slides whose colours are not what their metadata says."""

import io
import mmap
from pathlib import Path

from PIL import Image

JPEG_BEGINS = b"\xff\xd8\xff"


def is_ycbcr_called_rgb(path: Path, photometric: str) -> bool:
    """Whether a file calls its samples RGB (`photometric`) while its JPEG frames hold YCbCr.

    Some converters copy the frames of another format and write RGB. OpenSlide believes them, and the slide is green. A
    frame says itself what it is: JFIF knows nothing but YCbCr, and only chroma is stored at a lower resolution.
    """
    if photometric != "RGB":
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = data.find(JPEG_BEGINS)
        if begin < 0:
            return False
        try:
            frame = Image.open(io.BytesIO(data[begin : begin + 2**16]))  # its header is enough
        except OSError:
            return False
    samplings = {(across, down) for _, across, down, _ in getattr(frame, "layer", [])}
    return len(getattr(frame, "layer", [])) == 3 and ("jfif" in frame.info or len(samplings) > 1)
