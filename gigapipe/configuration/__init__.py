"""Every option of the workflow and of the command line, defined once: its type, bounds, default, unit and meaning.

`values.py` has the kinds of values, `options.py` groups of options, and `configuration.py` the options themselves. From
them are generated: the messages about a wrong config (`messages.py`), the arguments of the command line
(`command_line.py`), and config.yaml, the JSON schema and the tables of config/README.md (`documents.py`).
"""

from gigapipe.configuration.configuration import Configuration

__all__ = ["Configuration"]
