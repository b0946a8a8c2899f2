"""What is wrong with a value, in a sentence: the key, what was found, and what is allowed."""

import difflib
import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gigapipe.configuration.values import Auto, Said, Unit
from gigapipe.given_text import LINE_BREAKS


def allowed(kind: Any, metadata: tuple = ()) -> str:
    """The values that a type takes, in words: `a whole number of 1 or more, px`."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return allowed(inner, (*flat(more), *metadata))
    for words in (m.words for m in metadata if isinstance(m, Said)):
        return words
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return either([allowed(part) for part in parts if part is not type(None)])
    if origin is Literal:
        return either([str(value) for value in parts])
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        what = "a whole number" if kind is int else "a number"
        units = [m.name for m in metadata if isinstance(m, Unit)]
        automatic = [f"or {m.words}" for m in metadata if isinstance(m, Auto)]
        return ", ".join([" ".join([what, *_bounds(metadata)]), *units, *automatic])
    if origin is list:
        least = next((m.min_length for m in metadata if hasattr(m, "min_length")), 0)
        return f"a list{' of at least one' * bool(least)}, each {allowed(parts[0])}"
    if origin is tuple:
        return f"a list of {len(parts)}, each {allowed(parts[0])}"
    if origin is dict:
        return f"names, each with {allowed(parts[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"the keys {', '.join(kind.model_fields)}"
    return "a text"


def allowed_in(field: FieldInfo) -> str:
    """The same, of a field."""
    return allowed(field.annotation, flat(field.metadata))


def flat(metadata: Any) -> tuple:
    """The single conditions that pydantic's `Field(ge=…, lt=…)` in an annotation stands for."""
    return tuple(m for one in metadata for m in (one.metadata if isinstance(one, FieldInfo) else [one]))


def _bounds(metadata: tuple) -> list[str]:
    said = []
    for name, words in (("ge", "of {} or more"), ("gt", "above {}"), ("le", "up to {}"), ("lt", "below {}")):
        said += [words.format(getattr(m, name)) for m in metadata if getattr(m, name, None) is not None]
    return [" and ".join(said)] if said else []


def either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def sentence(error: ValidationError, options: type[BaseModel]) -> str:
    """The first of what is wrong, and how many more there are."""
    errors = error.errors(include_url=False)
    first = errors[0]
    key, field, group = _place(first["loc"], options)
    same = [e for e in errors if _place(e["loc"], options)[0] == key]  # a union says it once for each of its types
    more = len(errors) - len(same)
    return f"{_said(first, key, field, group)}{f' ({more} more after this)' * bool(more)}"


def _said(error: Any, key: str, field: FieldInfo | None, group: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        near = difflib.get_close_matches(name, group.model_fields, 1, 0.6)
        return f"{key}: there is no such key; " + (
            f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(group.model_fields)}"
        )
    if error["type"] == "value_error" and (own := str(error["ctx"]["error"])):
        if field and not group_in(field.annotation):
            return f"{key}: {own}"
        return f"{key}.{own}" if key else own  # which begins with a key of the group
    meaning = f". It is: {field.description}" if field and field.description else ""
    what = allowed_in(field) if field else allowed(group)
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        return f"{key}: is missing; give {what}{meaning}"
    return f"{key or 'top level'}: found {_found(error['input'])}; allowed is {what}{meaning}"


_ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in LINE_BREAKS}


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str).translate(_ESCAPED)
    return text if len(text) < 80 else f"{text[:77]}…"


def _place(loc: tuple, options: type[BaseModel]) -> tuple[str, FieldInfo | None, type[BaseModel]]:
    """The key as `resolutions[0].mpp`, its field, and the group that it is in.

    pydantic goes on, behind the key, with names of its own for the types of a union: they are left out.
    """
    key, field, group = "", None, options
    for part in loc:
        if isinstance(part, int):
            if group_in(field.annotation if field else None):  # an entry of a list of groups, not of numbers
                key += f"[{part}]"
        elif part in group.model_fields:
            key += f".{part}" if key else part
            field = group.model_fields[part]
            group = group_in(field.annotation) or group
        elif part == loc[-1] and (field is None or group_in(field.annotation)):  # a key that is not known
            return (f"{key}.{part}" if key else part), None, group
        else:
            break
    return key, field, group


def group_in(kind: Any) -> type[BaseModel] | None:
    """The group of options that a type is, or has in a list or a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next((found for part in get_args(kind) if (found := group_in(part))), None)
