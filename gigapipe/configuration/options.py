"""A group of options: a class whose fields have a type, a default and a description each."""

from collections.abc import Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from gigapipe.configuration.messages import group_in, sentence
from gigapipe.configuration.values import Auto
from gigapipe.errors import InputError
from gigapipe.given_text import fault_of


class Options(BaseModel):
    """Values are checked when it is made, and stay. Its fields' order is that of all that is derived from them."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, regex_engine="python-re")

    @field_validator("*", mode="before")
    @classmethod
    def _plain_text(cls, value: Any, info: ValidationInfo) -> Any:
        if not group_in(cls.model_fields[str(info.field_name)].annotation):
            for text in _texts(value):
                if fault := fault_of(text):
                    raise ValueError(f"{text!r} {fault}")
        return value

    @model_validator(mode="after")
    def _automatic(self) -> Self:
        """With the numbers that `auto` stands for."""
        for name in type(self).model_fields:
            if getattr(self, name) == "auto" and (number := self.default(name)) != "auto":
                self.__dict__[name] = number
        return self

    def default(self, name: str) -> Any:
        """What an option is that is not given, the others being what they are."""
        field = type(self).model_fields[name]
        return next((m.of(self) for m in field.metadata if isinstance(m, Auto)), field.default)

    @classmethod
    def of(cls, values: dict[str, Any], where: str = "") -> Self:
        """Checked `values`; InputError says, in a sentence, the first that is wrong, and begins with `where`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(where + sentence(error, cls)) from None


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value: itself, or those of a list, or the names and values of a mapping."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
