"""A reader of slides that are arrays: `pixels` (rows, columns, 3), uint8, and `mpp`, in a file of numpy."""

from pathlib import Path

import numpy as np
import openslide
from PIL import Image


class Array(openslide.ImageSlide):
    def __init__(self, path: Path):
        try:
            with np.load(path) as file:
                pixels, self.mpp = file["pixels"], float(file["mpp"])
        except (ValueError, KeyError, EOFError) as error:
            raise openslide.OpenSlideError(str(error)) from None
        super().__init__(Image.fromarray(pixels))

    @property
    def properties(self) -> dict[str, str]:
        return {"openslide.mpp-x": str(self.mpp), "openslide.mpp-y": str(self.mpp), "openslide.vendor": "array"}
