"""Options as arguments of the command line: declared for argparse, written for a shell, and read back."""

import argparse
import json
import shlex
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from gigapipe.configuration.messages import allowed, allowed_in
from gigapipe.configuration.options import Options
from gigapipe.configuration.values import Flag, Since
from gigapipe.given_text import option


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
    if get_origin(field.annotation) is dict:
        parser.add_argument(
            flag, dest=name, action=_Keywords, default=field.default, metavar="KEY=VALUE",
            help=f"{meaning}: KEY=VALUE, the value as in JSON or a text, or an object of JSON; may be repeated",
        )  # fmt: skip
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


class _Keywords(argparse.Action):
    """Gathers keywords, each given as KEY=VALUE, or many at once as an object of JSON."""

    def __call__(self, parser, namespace, values, option_string=None):
        text = str(values)
        if text.lstrip().startswith("{"):
            found = _of_json(text)
            if not isinstance(found, dict):
                parser.error(f"argument {option_string}: found {text}; allowed is KEY=VALUE, or an object of JSON")
        else:
            key, equals, value = text.partition("=")
            if not (equals and key.isidentifier()):
                parser.error(f"argument {option_string}: found {text}; allowed is KEY=VALUE, or an object of JSON")
            found = {key: _of_json(value)}
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **found})


def _of_json(text: str) -> Any:
    """A value as JSON writes it; of what is no JSON, the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def flag_of(name: str, field: FieldInfo) -> str:
    return next((m.name for m in field.metadata if isinstance(m, Flag)), f"--{name.replace('_', '-')}")


def _entries(kind: Any) -> Any:
    """The type of a list's entries; None for what is no list."""
    return get_args(kind)[0] if get_origin(kind) is list else None


def choices_of(kind: Any) -> tuple[str, ...] | None:
    """The words that are allowed, if the type allows only some words."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    parts = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
    found = [choices_of(part) for part in parts if part is not type(None)]
    return found[0] if found and all(found) else None


def converter(kind: Any) -> Callable[[str], Any]:
    """What makes a value of an argument's text; argparse says the words of the error."""

    def convert(text: str) -> Any:
        try:
            return TypeAdapter(kind).validate_python(text)  # made when it is asked for: a verb has many options
        except ValidationError:
            raise argparse.ArgumentTypeError(f"found {text}; allowed is {allowed(kind)}") from None

    return convert


def values(options: type[Options], args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say of a group's options."""
    return {name: getattr(args, name) for name in options.model_fields if hasattr(args, name)}


def arguments(options: Options, group: type[Options]) -> str:
    """The options of a group as arguments, quoted for a shell; what has no value, is false, or is new and at its
    default is left out.
    """
    words: list[str] = []
    for name, field in group.model_fields.items():
        value, flag = getattr(options, name), flag_of(name, field)
        if value == options.default(name) and any(isinstance(m, Since) for m in field.metadata):
            continue
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            for one in value if isinstance(value, list) else [value]:
                words += option(flag, json.dumps(one, sort_keys=True) if isinstance(one, dict) else one)
    return shlex.join(words)
