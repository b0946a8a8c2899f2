"""At which resolutions networks are trained, and what each sees."""

from typing import Literal

from pydantic import Field

from gigapipe.configuration.options import Options
from gigapipe.configuration.values import Count, Micrometres, Pixels


class Resolution(Options):
    """A network is trained at each resolution."""

    mpp: Micrometres = Field(description="the resolution")
    canvas: Pixels | Literal["auto"] = Field(
        default="auto",
        description="side length of the image that the network sees, centred on the tissue; auto: large enough for the "
        "tissue of nearly all slides, chosen when the pyramids are finished. Tasks tissue and segmentation use whole "
        "slides",
    )
    mesh: tuple[Count, Count, Count] | Literal["auto"] = Field(
        default="auto",
        description="number of ranks: data, rows, columns; auto: as many ranks for an image as are needed to hold a "
        "training step in their memory, or one rank that streams it",
    )

    def __str__(self) -> str:
        return f"{self.mpp:g} µm/px"


PHANTOMS_RESOLUTIONS = [
    Resolution(mpp=2, canvas=208, mesh=(1, 2, 1)),
    Resolution(mpp=8, canvas=52, mesh=(1, 1, 1)),
    Resolution(mpp=48, canvas=9, mesh=(1, 1, 1)),
]
