"""Options of where slides come from: generated, asked for, or fetched."""

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
    """The generated cohort, whose right answer is known."""

    seed: Seed = Field(default=0, description="another seed makes another cohort")
    patients: Annotated[int, Field(ge=6), Number] = Field(
        default=40, description="number of patients, of one or two slides each"
    )
    sites: Count = Field(default=4, description="number of sites that patients come from")
    confounder: Annotated[float, Field(ge=0, le=1), Number] = Field(
        default=0.0, description="how far a patient's site gives away the class; 0: every site has both classes alike"
    )
    regions: Annotated[bool, Since("0.2")] = Field(
        default=False,
        description="in each slide's tissue are regions of the classes tumour and necrosis, in masks, and the sheet's "
        "column tumour_share has the share of tumour",
    )


class Cohort(Options):
    """Slides of the Genomic Data Commons that the sample sheet `slides` is made of."""

    projects: Annotated[list[Project], Field(min_length=1)] | None = Field(
        default=None, description="projects whose open slides are asked for"
    )
    manifests: Annotated[dict[Name, File], Field(min_length=1)] | None = Field(
        default=None, description="instead of projects: for each label, a manifest from the archive's portal"
    )
    strategy: Strategy = Field(
        default="auto",
        description="Diagnostic Slide: paraffin sections; Tissue Slide: frozen ones; auto: diagnostic ones if the "
        "cohort has any, and for tumour against normal tissue frozen ones",
    )
    samples: Literal["auto", "tumour", "normal", "all"] = Field(
        default="auto",
        description="slides of which tissue; auto: of tumour, and with label sample_type of normal tissue, too",
    )
    label: Label = Field(
        default="project", description="what the class is; sample_type is primary tumour, normal tissue, …"
    )
    classes: Annotated[dict[Name, Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = Field(
        default=None, description="only slides of these values of label, each under its class's name, as {name: value}"
    )
    sites: File | None = Field(
        default=None, description="for manifests, which name no hospitals: a table with site, and code or patient"
    )

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        if (self.projects is None) == (self.manifests is None):
            raise ValueError("projects: give either projects or manifests")
        if self.manifests and self.classes:
            raise ValueError("classes: manifests have the names of theirs; give them there, or projects")
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
    plain_http: Annotated[list[Host], Since("0.2")] = Field(
        default=[], description="hosts to which the token may go over http, for all on the way to read"
    )
    timeout: Seconds = Field(default=60, description="how long a download may bring no byte before it is tried again")

    @model_validator(mode="after")
    def token_is_kept(self) -> Self:
        address = urlsplit(self.api)
        if (
            self.token
            and address.scheme == "http"
            and address.hostname not in [host.lower() for host in self.plain_http]
        ):
            raise ValueError(
                f"api: {self.api} is asked without encryption, and the token would be for all on the way to read; give "
                f"an address with https, or allow it by plain_http: [{address.hostname}]"
            )
        return self
