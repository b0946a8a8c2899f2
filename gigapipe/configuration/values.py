"""The kinds of values that options have. `Said` is how a message or a table describes what a pattern allows."""

import os
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from gigapipe import named


class Said(NamedTuple):
    """What is allowed, in words, where a type's bounds do not say it."""

    words: str


class Flag(NamedTuple):
    """The option's name on the command line, where it is not its key."""

    name: str


class Since(NamedTuple):
    """The release that brought the option. At its default no verb is told of it: what was made before stays."""

    release: str


class Unit(NamedTuple):
    """What a number counts or measures."""

    name: str


AUTO: Any = "auto"  # as the default of a number


class Auto(NamedTuple):
    """A number that may be `auto`: an instance then has the one for a `head` alone, or the usual one."""

    usual: float
    head: float

    @property
    def words(self) -> str:
        return f"auto: {self.head:g} with train: head, otherwise {self.usual:g}"

    def of(self, options: Any) -> float:
        """What it stands for among other options."""
        return self.head if getattr(options, "train", None) == "head" else self.usual

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            lambda value, number: value if value == "auto" else number(value), handler(source)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"const": "auto", "type": "string"}]}


def _text(value: Any) -> Any:
    """A number that YAML made of what is a text here, such as 0.5 without quotes."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _no_truth(value: Any) -> Any:
    """true is no number, although Python would take it for 1."""
    if isinstance(value, bool):
        raise ValueError
    return value


def _bytes(value: Any) -> Any:
    """6GiB or 500MB as a number of bytes."""
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]+(?:[.][0-9]+)?) *(?:(?:([kMGT])(i?))?B)?", value.strip())
        if not found:
            raise ValueError
        number, prefix, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** (" kMGT".index(prefix or " ")))
    return value


def _not_taken(name: str) -> str:
    """A method's name, whose folder lies beside folders of these names."""
    if re.fullmatch(r"maps|(fold|site|patient|given)-[0-9]+", name):
        raise ValueError
    return name


Number = BeforeValidator(_no_truth)
Count = Annotated[int, Field(ge=1), Number]
Seed = Annotated[int, Field(ge=0), Number]
Pixels = Annotated[int, Field(ge=1), Number, Unit("px")]
Micrometres = Annotated[float, Field(gt=0, allow_inf_nan=False), Number, Unit("µm per pixel")]
Seconds = Annotated[int, Field(ge=1), Number, Unit("seconds")]
Share = Annotated[float, Field(ge=0, lt=1), Number]
Bytes = Annotated[
    int,
    Field(ge=10**6),  # who writes 16 means gigabytes
    Number,
    BeforeValidator(_bytes),
    Said("a size such as 6GiB or 500MB"),
    WithJsonSchema({"type": ["string", "integer"], "pattern": "^[1-9][0-9]*([.][0-9]+)? *([kMGT]i?)?B$"}),
]
File = Annotated[str, StringConstraints(min_length=1), AfterValidator(os.path.expanduser), Said("the path of a file")]
Folder = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_./][A-Za-z0-9_./-]*$"),
    Said("a folder, of letters, digits and the characters _ . / -, not beginning with -"),
]
Name = Annotated[str, StringConstraints(pattern=r"^[^=]+$"), Said("a name without =")]
MethodName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$"),
    AfterValidator(_not_taken),
    Said("a name of letters, digits and the characters _ and -, beginning with a letter; not maps, fold-0 or site-0"),
]
CohortName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$"),
    Said("a name of letters, digits and the characters _ and -, beginning with a letter"),
]
Address = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$"), Said("an address, http:// or https://")]
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:-]+$"), Said("a host name, as localhost")]
Project = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"), Said("the name of a project, as TCGA-LUAD")
]
Device = Annotated[
    str,
    StringConstraints(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:[0-9]+)?)$"),
    Said("auto, cpu, cuda, cuda:0 (one GPU, by its number), xpu or mps"),
]
Scheduler = Annotated[
    str,
    StringConstraints(pattern=r"^(threads|processes|slurm|lsf|pbs|sge|(tcp|tls|ucx)://[A-Za-z0-9_.:-]+)$"),
    Said("threads, processes, slurm, lsf, pbs, sge, or an address as tcp://host:8786"),
]
SourcePattern = Annotated[
    str,
    StringConstraints(pattern=r"\{slide\}"),
    Said("a path with {slide} in it, as slides/{slide}.svs"),
]
Function = Annotated[
    str,
    StringConstraints(pattern=named.PATTERN),
    Said("a function that makes one, as mine.py:net or package.module:net"),
]
Suffix = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+$"), Said("a suffix in lower case, as svs")]
Keywords = Annotated[dict[str, JsonValue], Said("keywords with values, as {depth: 3}; on the command line depth=3")]
ZarrVersion = Annotated[Literal["0.5", "0.4"], BeforeValidator(_text)]


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("an entry is given twice; remove one")
    return values


Distinct = AfterValidator(_distinct)
