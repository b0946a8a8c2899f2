"""Options of where slides come from: generated, queried, or downloaded."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from gigapipe.configuration.options import Options
from gigapipe.configuration.values import (
    Address,
    Count,
    File,
    Flag,
    Host,
    Name,
    Number,
    Project,
    Seconds,
    Seed,
    Since,
)

Strategy = Literal["auto", "Diagnostic Slide", "Tissue Slide", "all"]  # the archive calls frozen sections Tissue Slide
Label = Literal["project", "sample_type", "primary_diagnosis"]  # of which the portal's own sheets know the first two


class Phantom(Options):
    """The generated cohort, for which the correct answer is known."""

    seed: Seed = Field(default=0, description="random seed; another seed gives another cohort")
    patients: Annotated[int, Field(ge=6), Number] = Field(
        default=40, description="number of patients, each with one or two slides"
    )
    sites: Count = Field(default=4, description="number of sites (hospitals)")
    confounder: Annotated[float, Field(ge=0, le=1), Number] = Field(
        default=0.0,
        description="how strongly a patient's site predicts the class; 0: not at all, 1: each site has one class only",
    )
    regions: Annotated[bool, Since("0.2")] = Field(
        default=False,
        description="draw regions of the classes tumour and necrosis in each slide, with masks; the sheet's column "
        "tumour_share is the share of tumour in the tissue",
    )


class Cohort(Options):
    """Slides of the Genomic Data Commons, from which the sample sheet `slides` is written."""

    projects: Annotated[list[Project], Field(min_length=1)] | None = Field(
        default=None, description="projects whose open-access slides are used"
    )
    manifests: Annotated[dict[Name, File], Field(min_length=1)] | None = Field(
        default=None, description="instead of projects: a manifest from the GDC portal for each label"
    )
    strategy: Strategy = Field(
        default="auto",
        description="Diagnostic Slide: paraffin (FFPE) sections; Tissue Slide: frozen sections; auto: diagnostic "
        "slides if the cohort has any, and frozen ones for tumour against normal tissue",
    )
    samples: Literal["auto", "tumour", "normal", "all"] = Field(
        default="auto",
        description="which tissue; auto: tumour, and with label sample_type also normal tissue",
    )
    label: Label = Field(
        default="project", description="what defines the class; sample_type: primary tumour, normal tissue, …"
    )
    classes: Annotated[dict[Name, Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = Field(
        default=None, description="use only slides with these values of label, and name their classes, as {name: value}"
    )
    sites: File | None = Field(
        default=None,
        description="for manifests, which contain no hospitals: a table with the columns site, and code or patient",
    )

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        if (self.projects is None) == (self.manifests is None):
            raise ValueError("projects: give either projects or manifests")
        if self.manifests and self.classes:
            raise ValueError("classes: manifests already name their classes; remove classes, or give projects")
        return self


class Archive(Options):
    """Where slides with the source gdc:UUID come from."""

    api: Address = Field(default="https://api.gdc.cancer.gov", description="address of the archive's API")
    mirrors: Annotated[list[Address], Flag("--mirror")] = Field(
        default=[], description="addresses of mirrors with files at UUID/filename, tried in turn when the archive fails"
    )
    token: File | None = Field(
        default=None,
        description="file with the portal's token, for controlled access; only its owner may have read permission",
    )
    plain_http: Annotated[list[Host], Since("0.2")] = Field(
        default=[], description="hosts to which the token may be sent over unencrypted http"
    )
    timeout: Seconds = Field(default=60, description="how long a download may receive no data before it is retried")

    @model_validator(mode="after")
    def token_is_kept(self) -> Self:
        address = urlsplit(self.api)
        if (
            self.token
            and address.scheme == "http"
            and address.hostname not in [host.lower() for host in self.plain_http]
        ):
            raise ValueError(
                f"api: {self.api} is not encrypted, so that others on the network could read the token; give an "
                f"address with https, or allow it by plain_http: [{address.hostname}]"
            )
        return self
