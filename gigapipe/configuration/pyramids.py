"""Options of how slides become pyramids."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gigapipe.configuration.options import Options
from gigapipe.configuration.values import Bytes, Function, Number, Scheduler, Share, Since, Suffix, ZarrVersion


class PyramidPixels(Options):
    """What determines the pixels of a pyramid."""

    source_level: Literal["exact", "fast"] = Field(
        default="exact",
        description="exact: the area mean of level 0; fast: of the nearest finer level of the file, which was "
        "compressed once more",
    )
    damaged: Literal["refuse", "white"] = Field(
        default="refuse",
        description="refuse a slide with a tile that cannot be decoded, or make the tile white and count it",
    )
    colours: Literal["scanner", "srgb"] = Field(
        default="scanner",
        description="as they are in the file, or srgb: by the scanner's ICC profile, where the file has one",
    )
    chunk: Annotated[int, Field(ge=16), Number] = Field(
        default=512, description="pixels a side that are read at a time"
    )
    shard: Annotated[int, Field(ge=16), Number] | None = Field(
        default=None,
        description="pixels a side of the files that chunks are gathered in; without it, a chunk is a file",
    )
    ome_zarr: ZarrVersion = Field(
        default="0.5", description="version of the format; 0.4 for QuPath and other old readers"
    )
    codec: Annotated[Literal["zstd", "rounded", "jpeg"], Since("0.2")] = Field(
        default="zstd",
        description="zstd, without loss; rounded: of pixels rounded to 5 grey levels, about two thirds of the bytes; "
        "jpeg: about a third, in OME-Zarr 0.4, for readers that know imagecodecs. The store keeps the error",
    )
    assume_mpp: bool = Field(
        default=False, description="a slide that does not say its µm per pixel has 10 divided by its objective's power"
    )
    unusual_mpp: bool = Field(
        default=False,
        description="µm per pixel finer than 0.05 or coarser than 20, of the file or of the sheet, are right",
    )
    mpp_tolerance: Annotated[Share, Since("0.2")] = Field(
        default=0.0,
        description="share by which a slide may be coarser than a resolution that it serves: with 0.011 one of 0.2527 "
        "is read as it is for 0.25",
    )
    tile_memory: Annotated[Bytes, Since("0.2")] = Field(
        default=2**28, description="what one tile of a slide may take when it is decoded; more is refused"
    )
    clean_background: bool = Field(
        default=False, description="what lies outside the tissue's outline becomes exactly white"
    )
    keep_without_tissue: bool = Field(
        default=False,
        description="a slide in which no tissue is found is kept, whole, and nothing of it made white; else it cannot "
        "be used",
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
        description="a slide that cannot be used stops the cohort, or is left out: slides.tsv and the report say why",
    )
    readers: Annotated[dict[Suffix, Function], Since("0.2")] = Field(
        default={},
        description="readers of your own, by the suffix of a slide's file, as {isyntax: mine.py:opened}; OpenSlide "
        "reads all others",
    )
    scheduler: Scheduler = Field(
        default="threads",
        description="Dask's; with slurm, lsf, pbs or sge each pyramid submits jobs of its own, as jobqueue.yaml says",
    )
