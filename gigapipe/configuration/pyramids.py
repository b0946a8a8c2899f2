"""Options of how slides become pyramids."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gigapipe.configuration.options import Options
from gigapipe.configuration.values import Bytes, Function, Number, Scheduler, Share, Since, Suffix, ZarrVersion


class PyramidPixels(Options):
    """What determines the pixels of a pyramid."""

    source_level: Literal["exact", "fast"] = Field(
        default="exact",
        description="exact: downsample the full resolution (level 0); fast: downsample the nearest finer level stored "
        "in the file, which was compressed a second time",
    )
    damaged: Literal["refuse", "white"] = Field(
        default="refuse",
        description="a slide with a tile that cannot be decoded is refused; or the tile becomes white, and is counted",
    )
    colours: Literal["scanner", "srgb"] = Field(
        default="scanner",
        description="scanner: colours as stored in the file; srgb: converted by the scanner's ICC profile, if there is "
        "one",
    )
    chunk: Annotated[int, Field(ge=16), Number] = Field(
        default=512, description="side length of a Zarr chunk, the unit that is read, in pixels"
    )
    shard: Annotated[int, Field(ge=16), Number] | None = Field(
        default=None,
        description="side length of a Zarr shard, a file that holds several chunks, in pixels; without it each chunk "
        "is a file",
    )
    ome_zarr: ZarrVersion = Field(
        default="0.5", description="version of OME-Zarr; 0.4 for QuPath and other readers that do not support 0.5"
    )
    codec: Annotated[Literal["zstd", "rounded", "jpeg"], Since("0.2")] = Field(
        default="zstd",
        description="compression: zstd: lossless; rounded: pixels rounded to multiples of 5 grey levels, about two "
        "thirds of the size; jpeg: about a third, needs OME-Zarr 0.4 and readers with imagecodecs. The store records "
        "the error",
    )
    assume_mpp: bool = Field(
        default=False, description="if a slide does not state its µm per pixel, use 10 / magnification of its objective"
    )
    unusual_mpp: bool = Field(
        default=False,
        description="accept µm per pixel below 0.05 or above 20 in the file or in the sheet",
    )
    mpp_tolerance: Annotated[Share, Since("0.2")] = Field(
        default=0.0,
        description="by how much a slide may be coarser than a resolution and still be used for it, as a share: with "
        "0.011 a slide of 0.2527 µm per pixel is used unchanged for 0.25",
    )
    tile_memory: Annotated[Bytes, Since("0.2")] = Field(
        default=2**28, description="memory limit for decoding one tile of a slide; slides with larger tiles are refused"
    )
    clean_background: bool = Field(
        default=False, description="replace everything outside the tissue's outline by pure white"
    )
    keep_without_tissue: bool = Field(
        default=False,
        description="use slides in which no tissue is found as a whole, unchanged; otherwise they cannot be used",
    )

    @model_validator(mode="after")
    def whole_chunks(self) -> Self:
        if self.shard and (self.shard % self.chunk or self.ome_zarr == "0.4"):
            raise ValueError(f"shard: {self.shard} px must be a multiple of chunk, {self.chunk} px, and OME-Zarr 0.5")
        if self.codec == "jpeg" and self.ome_zarr != "0.4":
            raise ValueError("codec: jpeg needs ome_zarr: 0.4")
        return self


class Pyramids(PyramidPixels):
    """How slides are converted."""

    unusable: Literal["stop", "leave_out"] = Field(
        default="stop",
        description="stop: a slide that cannot be used stops the run; leave_out: it is excluded; slides.tsv and the "
        "report state the reason",
    )
    readers: Annotated[dict[Suffix, Function], Since("0.2")] = Field(
        default={},
        description="your own slide readers, by file name suffix, as {isyntax: mine.py:opened}; OpenSlide reads all "
        "other files",
    )
    scheduler: Scheduler = Field(
        default="threads",
        description="scheduler of Dask; with slurm, lsf, pbs or sge each pyramid submits its own jobs, configured in "
        "jobqueue.yaml",
    )
