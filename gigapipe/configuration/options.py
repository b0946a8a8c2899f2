"""A group of options: a class whose fields have a type, a default and a description each."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from gigapipe.configuration.messages import sentence
from gigapipe.errors import InputError


class Options(BaseModel):
    """Values are checked when it is made, and stay. Its fields' order is that of all that is derived from them."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, regex_engine="python-re")

    @classmethod
    def of(cls, values: dict[str, Any], where: str = "") -> Self:
        """Checked `values`; InputError says, in a sentence, the first that is wrong, and begins with `where`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(where + sentence(error, cls)) from None
