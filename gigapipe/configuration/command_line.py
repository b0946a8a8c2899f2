"""Options as arguments of the command line: declared for argparse, written for a shell, and read back."""

import argparse
import shlex
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from gigapipe.configuration.messages import allowed, allowed_in
from gigapipe.configuration.options import Options
from gigapipe.configuration.values import Flag


def add_options(parser: argparse.ArgumentParser, options: type[Options], only: Iterable[str] = ()) -> None:
    """An argument for each option of a group, or for some `only`: `--learning-rate` for `learning_rate`."""
    for name in only or options.model_fields:
        add_option(parser, options, name)


def add_option(parser: argparse.ArgumentParser, options: type[Options], name: str) -> None:
    """An argument for one option. That of a list may be repeated, and gives an entry each time."""
    field = options.model_fields[name]
    flag, meaning = flag_of(name, field), (field.description or "").replace("%", "%%")
    if field.annotation is bool:
        parser.add_argument(flag, dest=name, action="store_true", default=field.default, help=meaning)
        return
    choices, entries = choices_of(field.annotation), _entries(field.annotation)
    parser.add_argument(
        flag,
        dest=name,
        action="append" if entries else "store",
        type=str if choices else converter(entries or field.rebuild_annotation()),
        choices=choices,
        default=field.default,
        metavar=None if choices else flag.strip("-").replace("-", "_").upper(),
        help=meaning if choices else f"{meaning}: {allowed(entries) if entries else allowed_in(field)}",
    )


def flag_of(name: str, field: FieldInfo) -> str:
    return next((m.name for m in field.metadata if isinstance(m, Flag)), f"--{name.replace('_', '-')}")


def _entries(kind: Any) -> Any:
    """The type of a list's entries; None for what is no list."""
    return get_args(kind)[0] if get_origin(kind) is list else None


def choices_of(kind: Any) -> tuple[str, ...] | None:
    """The words that are allowed, if the type is that of some words."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    found = [words for part in get_args(kind) if (words := choices_of(part))]
    return found[0] if found else None


def converter(kind: Any) -> Callable[[str], Any]:
    """What makes a value of an argument's text; argparse says the words of the error."""
    adapter: TypeAdapter = TypeAdapter(kind)

    def convert(text: str) -> Any:
        try:
            return adapter.validate_python(text)
        except ValidationError:
            raise argparse.ArgumentTypeError(f"found {text}; allowed is {allowed(kind)}") from None

    return convert


def values(options: type[Options], args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say of a group's options."""
    return {name: getattr(args, name) for name in options.model_fields if hasattr(args, name)}


def arguments(options: Options, group: type[Options]) -> str:
    """The options of a group as arguments, quoted for a shell; what has no value, or is false, is left out."""
    words: list[str] = []
    for name, field in group.model_fields.items():
        value, flag = getattr(options, name), flag_of(name, field)
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            for one in value if isinstance(value, list) else [value]:
                words += [flag, shlex.quote(str(one))]
    return " ".join(words)
