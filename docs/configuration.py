"""Writes what is made of the options: config/config.yaml, its schema, and the tables of config/README.md.

python docs/configuration.py
"""

from pathlib import Path

from gigapipe.configuration import Configuration
from gigapipe.configuration.documents import defaults, schema, with_tables

ROOT = Path(__file__).parent.parent
BEGINNING = """\
# The defaults: a phantom cohort, so that everything can be tried without any slide. A config of your own sets what
# differs, and is given with --configfile: see README.md here. Written by docs/configuration.py, of the options in
# gigapipe/configuration.
# yaml-language-server: $schema=../workflow/schemas/config.schema.yaml

"""


def documents() -> dict[Path, str]:
    """The text of each file, as it should be now."""
    readme = ROOT / "config/README.md"
    return {
        ROOT / "config/config.yaml": f"{BEGINNING}{defaults(Configuration)}\n",
        ROOT / "workflow/schemas/config.schema.yaml": schema(Configuration),
        readme: with_tables(readme.read_text(encoding="utf-8"), Configuration),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
