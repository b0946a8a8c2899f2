"""What the archive answers, as far as it is read: https://docs.gdc.cancer.gov/API/Users_Guide.

What may be missing there may be null too.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, StringConstraints, ValidationError

from gigapipe.configuration.messages import group_in

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Id = Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]
Md5 = Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{32}$")]


class Project(BaseModel):
    project_id: Text


class Site(BaseModel):
    name: str | None = None


class Sample(BaseModel):
    sample_type: str | None = None
    tissue_type: str | None = None
    tumor_descriptor: str | None = None


class Diagnosis(BaseModel):
    primary_diagnosis: str | None = None
    diagnosis_is_primary_disease: bool | None = None


class Case(BaseModel):
    submitter_id: Text
    project: Project
    tissue_source_site: Site | None = None
    samples: list[Sample] | None = None
    diagnoses: list[Diagnosis] | None = None


class Named(BaseModel):
    id: Id
    file_name: Text


class File(Named):
    md5sum: Md5
    file_size: NonNegativeInt


class SlideFile(File):
    experimental_strategy: str | None = None
    cases: Annotated[list[Case], Field(min_length=1)]


class Pagination(BaseModel):
    total: NonNegativeInt


class Page(BaseModel):
    hits: list[Any]
    """Files, each to be looked at by itself: one that is not as it should be spoils no other."""
    pagination: Pagination


class Found(BaseModel):
    data: Page
    warnings: dict[str, Any] | None = None


class Version(BaseModel):
    id: Id
    latest_id: Id | None = None


def fields_of(kind: type[BaseModel], group: str = "") -> list[str]:
    """The names by which the archive is asked for all of a kind of answer; an `id` comes unasked."""
    found = []
    for name, field in kind.model_fields.items():
        inner = group_in(field.annotation)
        found += fields_of(inner, f"{group}{name}.") if inner else [f"{group}{name}"]
    return [name for name in found if name != "id"]


def what_is_wrong(error: ValidationError) -> str:
    """The first thing that is not as it should be: `has no md5sum`, `its cases.0.project is null`."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"has no {place}"
    return f"its {place} is {json.dumps(first['input'], default=str)[:80]}" if place else "has the wrong format"
