"""Web pages, each from a template beside this file."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def page(name: str, **values: object) -> str:
    """The page of the template `name`.html.jinja. Text in `values` is escaped; UndefinedError if one is missing."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(f"{name}.html.jinja").render(**values)
