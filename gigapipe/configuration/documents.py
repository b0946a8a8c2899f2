"""What people read of the options, made of them: config.yaml, its JSON schema, and the tables of config/README.md."""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gigapipe.configuration.messages import allowed_in, group_in
from gigapipe.configuration.options import Options

COLUMNS = 120


def defaults(options: type[Options]) -> str:
    """All options at their defaults, as YAML, each below a comment that says what it is."""
    return "\n".join(_yaml_lines(options()))


def _yaml_lines(options: Options, indent: str = "") -> Iterator[str]:
    for name, field in type(options).model_fields.items():
        value = getattr(options, name) if name in options.model_fields_set else field.default
        if not indent and name != next(iter(type(options).model_fields)):
            yield ""
        yield from textwrap.wrap(
            _comment(field), COLUMNS, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        if isinstance(value, Options):
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, f"{indent}  ")
        elif isinstance(value, list) and value and isinstance(value[0], Options):
            yield f"{indent}{name}:"
            yield from (f"{indent}  - {_inline(_short(one))}" for one in value)
        else:
            yield f"{indent}{name}: {_inline(value)}"


def _short(options: Options) -> dict[str, Any]:
    """What differs from the defaults, numbers as people write them."""
    found = options.model_dump(mode="json", exclude_defaults=True)
    return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in found.items()}


def _comment(field: FieldInfo) -> str:
    if isinstance(field.default, Options):
        return field.description or ""
    return f"{field.description} ({allowed_in(field)})"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def schema(options: type[Options]) -> str:
    """The JSON schema (2020-12), as YAML: what editors check a config by."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | _without_titles(options.model_json_schema())
    return yaml.safe_dump(made, sort_keys=False, width=COLUMNS, allow_unicode=True)


def _without_titles(schema: Any) -> Any:
    """pydantic's titles are the keys once more."""
    if isinstance(schema, dict):
        return {k: _without_titles(v) for k, v in schema.items() if k != "title" or not isinstance(v, str)}
    return [_without_titles(v) for v in schema] if isinstance(schema, list) else schema


def tables(options: type[Options]) -> dict[str, str]:
    """A Markdown table for each group of options, by the group's key, `""` for the uppermost."""
    found = {"": _table(options)}
    for name, field in options.model_fields.items():
        if group := group_in(field.annotation):
            found[name] = _table(group)
    return found


def _table(options: type[BaseModel]) -> str:
    lines = ["| key | allowed | default | what it is |", "|---|---|---|---|"]
    for name, field in options.model_fields.items():
        group = group_in(field.annotation)
        what = "a list of groups, below" if group and isinstance(field.default, list) else "keys, below"
        cells = [
            f"`{name}`",
            what if group else allowed_in(field),
            "" if group or field.is_required() else "none" if field.default is None else f"`{_inline(field.default)}`",
            field.description or "",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def with_tables(page: str, options: type[Options]) -> str:
    """A Markdown page, its tables between `<!-- options: KEY -->` and `<!-- end -->` as they are now."""
    made = tables(options)
    return re.sub(
        r"(<!-- options: ?(\w*) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{made[found[2]]}{found[3]}",
        page,
        flags=re.DOTALL,
    )
