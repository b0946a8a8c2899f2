"""The options. An option stands here once; what else names it is derived (see `__init__.py`).

Groups inherit what they share: a training of whichever task has all of `Learning`, a classifier's `Network`, too, and
what `Computing` says changes no weight.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gigapipe.configuration.options import Options
from gigapipe.configuration.values import (
    Address,
    Bytes,
    Count,
    Device,
    Distinct,
    File,
    Flag,
    Folder,
    Micrometres,
    Number,
    Pixels,
    Project,
    Scheduler,
    Seconds,
    Seed,
    Share,
    SourcePattern,
    ZarrVersion,
)

Split = Literal["site", "patient"]
Strategy = Literal["Diagnostic Slide", "Tissue Slide"]  # as the archive calls paraffin sections, and frozen ones
Label = Literal["project", "sample_type", "primary_diagnosis"]  # of which the portal's own sheets know the first two


class Places(Options):
    """Where things are written."""

    results: Folder = Field(default="results", description="everything of one run")
    resources: Folder = Field(default="resources", description="slides that are fetched")


class Phantom(Options):
    """The generated cohort, whose right answer is known."""

    seed: Seed = Field(default=0, description="another seed makes another cohort")
    patients: Annotated[int, Field(ge=6), Number] = Field(
        default=40, description="number of patients, of one or two slides each"
    )
    sites: Count = Field(default=4, description="number of sites that patients come from")
    confounder: Annotated[float, Field(ge=0, le=1), Number] = Field(
        default=0.0, description="how far a patient's site gives away the class; 0: every site has both classes alike"
    )


class Cohort(Options):
    """Slides of the Genomic Data Commons that the sample sheet `slides` is made of."""

    projects: Annotated[list[Project], Field(min_length=1)] | None = Field(
        default=None, description="projects whose open slides are asked for"
    )
    manifests: Annotated[dict[str, File], Field(min_length=1)] | None = Field(
        default=None, description="instead of projects: for each label, a manifest from the archive's portal"
    )
    strategy: Strategy = Field(
        default="Diagnostic Slide", description="paraffin sections, or Tissue Slide: frozen ones"
    )
    label: Label = Field(
        default="project", description="what the class is; sample_type is tumor or normal tissue, as the barcode says"
    )
    classes: Annotated[dict[str, str], Field(min_length=1)] | None = Field(
        default=None, description="only slides of these values of label, each under its class's name, as {name: value}"
    )
    sites: File | None = Field(
        default=None, description="for manifests, which name no hospitals: a table with site, and code or patient"
    )

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        if (self.projects is None) == (self.manifests is None):
            raise ValueError("projects: give either projects or manifests")
        return self


class Archive(Options):
    """Where slides with the source gdc:UUID come from."""

    api: Address = Field(default="https://api.gdc.cancer.gov", description="address of the archive")
    mirrors: Annotated[list[Address], Flag("--mirror")] = Field(
        default=[], description="addresses of copies laid out as UUID/filename, tried in turn when the archive fails"
    )
    token: File | None = Field(
        default=None, description="file with the portal's token, for controlled access; only you may be able to read it"
    )
    timeout: Seconds = Field(default=60, description="how long a download may bring no byte before it is tried again")


class Resolution(Options):
    """A network is trained at each resolution."""

    mpp: Micrometres = Field(description="the resolution")
    canvas: Pixels | Literal["auto"] = Field(
        default="auto",
        description="pixels a side that the network sees, centred on the tissue; auto: what holds the tissue of nearly "
        "all slides, known when their pyramids are made. Task tissue takes whole slides",
    )
    mesh: tuple[Count, Count, Count] | Literal["auto"] = Field(
        default="auto",
        description="ranks: data, rows, columns; auto: as many for an image as hold a step in the memory that they "
        "have, or one that streams it",
    )

    def __str__(self) -> str:
        return f"{self.mpp:g} µm/px"


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
    assume_mpp: bool = Field(
        default=False, description="a slide that does not say its µm per pixel has 10 divided by its objective's power"
    )
    clean_background: bool = Field(
        default=False, description="what lies outside the tissue's outline becomes exactly white"
    )

    @model_validator(mode="after")
    def whole_chunks(self) -> Self:
        if self.shard and (self.shard % self.chunk or self.ome_zarr == "0.4"):
            raise ValueError(f"shard: {self.shard} px must be a multiple of chunk, {self.chunk} px, and OME-Zarr 0.5")
        return self


class Pyramids(PyramidPixels):
    """How slides are converted."""

    unusable: Literal["stop", "leave_out"] = Field(
        default="stop",
        description="a slide that cannot be used stops the cohort, or is left out: slides.tsv and the report say why",
    )
    scheduler: Scheduler = Field(
        default="threads",
        description="Dask's; with slurm, lsf, pbs or sge each pyramid submits jobs of its own, as jobqueue.yaml says",
    )


class Folds(Options):
    """How patients are divided."""

    number: Annotated[int, Field(ge=3), Number, Flag("--folds")] = Field(
        default=4, description="number of folds: one tests, the next chooses the epoch, the others train"
    )
    by: Split | Annotated[list[Split], Field(min_length=1), Distinct] = Field(
        default="site",
        description="what no two folds share: the hospital, where the sheet knows it, or only the patient; or both, "
        "one after the other, as [site, patient]",
    )
    given: File | None = Field(
        default=None, description="published folds to take instead: a table with fold, and slide or patient"
    )

    @property
    def splits(self) -> list[str]:
        """The kinds of folds that are made."""
        if self.given:
            return ["given"]
        return [self.by] if isinstance(self.by, str) else list(self.by)


class Network(Options):
    """The network that learns a slide's class, and what it sees."""

    network: Literal["resnet10", "resnet18", "resnet34", "resnet50"] = Field(
        default="resnet18", description="which ResNet; resnet10 has half the blocks of resnet18"
    )
    width: Count = Field(
        default=64, description="channels after the stem, 64 in the published networks; doubled by each stage"
    )
    norm: Literal["batch", "frozen", "group", "none"] = Field(
        default="batch",
        description="normalisation: BatchNorm over all ranks, the same with the statistics of weights, GroupNorm, none",
    )
    pool: Literal["average", "max", "attention"] = Field(
        default="average",
        description="pooling over all positions: their mean, largest value, or a mean by learnt weights "
        "(arXiv:1802.04712)",
    )
    weights: File | None = Field(
        default=None, description="checkpoint of torchvision's network of that name, to begin with"
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: the classes weigh the same in the loss, however many slides each has"
    )
    shift: Share = Field(
        default=0.05,
        description="augmentation: share of its side by which the canvas is shifted at most, along each axis",
    )
    background: Literal["keep", "white"] = Field(
        default="keep", description="white: glass becomes white, and costs less where it is streamed"
    )


class Learning(Options):
    """How any network is trained."""

    epochs: Count = Field(default=6, description="passes over the training slides")
    batch: Count = Field(default=4, description="slides a step, over all data ranks")
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False), Number] = Field(
        default=0.0003, description="AdamW's at its highest, after a linear warm-up"
    )
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False), Number] = Field(
        default=0.01, description="AdamW's"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of activations, bfloat16 where the CPU computes in it; weights stay float32"
    )
    schedule: Literal["cosine", "plateau"] = Field(
        default="cosine",
        description="of the learning rate: a half cosine over all epochs; or 0.3 of it, from the best weights, three "
        "times, where validation gets no better for patience epochs",
    )
    patience: Count | None = Field(
        default=None,
        description="epochs without a better validation that end a training. With cosine give more than a few: its "
        "best epochs are often the last",
    )
    accumulate: Count = Field(
        default=1,
        description="batches whose gradients are added up before a step; BatchNorm knows only those of a batch",
    )
    symmetries: Literal["all", "none"] = Field(
        default="all", description="augmentation: slides are flipped and turned by quarters"
    )
    stain: Share = Field(
        default=0.0, description="augmentation: share by which each stain is stronger or weaker at most"
    )
    brightness: Share = Field(
        default=0.0, description="augmentation: share by which a slide is darker or lighter at most"
    )
    contrast: Share = Field(
        default=0.0, description="augmentation: what the exponent of the contrast differs from 1 at most"
    )

    @model_validator(mode="after")
    def plateau_needs_patience(self) -> Self:
        if self.schedule == "plateau" and not self.patience:
            raise ValueError("schedule: plateau needs patience, the epochs after which the learning rate falls")
        return self


class Computing(Options):
    """Where and in what ranks compute: nothing of it changes what is learnt."""

    device: Device = Field(
        default="auto",
        description="where ranks compute; auto: cuda where there is a GPU for each rank, or else cpu. cuda is for "
        "AMD's GPUs, too; cuda:0 is shared by a host's ranks; xpu and mps are untried",
    )
    memory: Bytes | None = Field(
        default=None,
        description="what a rank may take: what does not fit is computed tile by tile, with the same gradients; "
        "without it, what it needs",
    )
    stage: File | None = Field(
        default=None,
        description="folder on a node's own disk, as $TMPDIR/gigapipe, where what is read of pyramids is kept, as far "
        "as it has room",
    )


class Training(Computing, Network, Learning):
    """How networks are trained."""

    keep_checkpoints: Count = Field(
        default=2, description="how many of a training's last states stay on disk until it is whole"
    )
    coarse_to_fine: bool = Field(
        default=False,
        description="a training begins with the model of the next coarser resolution of its fold",
    )

    @model_validator(mode="after")
    def one_beginning(self) -> Self:
        if self.coarse_to_fine and self.weights:
            raise ValueError("coarse_to_fine: it and weights are two beginnings of one network; remove one")
        return self


PHANTOMS_RESOLUTIONS = [
    Resolution(mpp=2, canvas=208, mesh=(1, 2, 1)),
    Resolution(mpp=8, canvas=52, mesh=(1, 1, 1)),
    Resolution(mpp=48, canvas=9, mesh=(1, 1, 1)),
]


class Configuration(Options):
    """A run of the workflow. The defaults are a phantom cohort, to try everything without a slide."""

    task: Literal["classes", "tissue"] = Field(
        default="classes", description="what is learnt: the slide's class, or where its tissue is"
    )
    pathvars: Places = Field(default=Places(), description="where things are written")
    slides: File | None = Field(
        default=None, description="path of the sample sheet; without it the cohort is made of phantoms"
    )
    source: SourcePattern | None = Field(default=None, description="stands in for a sheet's missing source column")
    cohort: Cohort | None = Field(
        default=None, description="slides of the Genomic Data Commons that the sheet `slides` is made of"
    )
    phantom: Phantom = Field(default=Phantom(), description="the generated cohort")
    resolutions: Annotated[list[Resolution], Field(min_length=1)] = Field(
        default=PHANTOMS_RESOLUTIONS, description="one network is trained for each"
    )
    gdc: Archive = Field(default=Archive(), description="where slides with the source gdc:UUID come from")
    keep_slides: bool = Field(
        default=True, description="false: a fetched slide is removed when its pyramid is made and was compared with it"
    )
    pyramids: Pyramids = Field(default=Pyramids(), description="how slides are converted")
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct] = Field(
        default=[0],
        description="each divides the patients otherwise, and begins with other weights; with several the table has "
        "mean and spread",
    )
    folds: Folds = Field(default=Folds(), description="how patients are divided")
    training: Training = Field(default=Training(), description="how networks are trained")
    maps: Annotated[int, Field(ge=0), Number, Flag("--number")] = Field(
        default=2,
        description="maps of what networks saw, at each resolution: of so many slides each of highest, lowest and most "
        "wrong score; 0: none",
    )

    @model_validator(mode="after")
    def consistent(self) -> Self:
        for found in self._contradictions():
            raise ValueError(found)
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.cohort and not self.slides:
            yield "cohort: needs `slides`, the sample sheet to make of it"
        if len({r.mpp for r in self.resolutions}) < len(self.resolutions):
            yield "resolutions: an mpp is given twice; remove one"
        if self.task == "tissue" and len(self.folds.splits) * len(self.seeds) > 1:
            yield "task: tissue takes one seed and one kind of folds; give one of each"
        for number, resolution in enumerate(self.resolutions):
            if resolution.mesh == "auto":
                continue
            key, (data, rows, columns) = f"resolutions[{number}]", resolution.mesh
            if self.training.batch % data:
                yield (
                    f"training.batch: {self.training.batch} slides do not divide over the {data} data ranks at "
                    f"{resolution}; give a multiple"
                )
            if resolution.canvas != "auto" and max(rows, columns) > resolution.canvas:
                yield (
                    f"{key}.mesh: {rows} × {columns} ranks are more than a canvas of {resolution.canvas} px has rows "
                    "or columns; give a smaller mesh"
                )
