"""Every option of the workflow and of the command line, stated once: its type, bounds, default, unit and meaning.

`values.py` are the kinds of values, `options.py` is what a group of options is, `configuration.py` holds the options
themselves. Derived from them are the messages of a wrong config (`messages.py`), the arguments of the command line
(`command_line.py`), and config.yaml, the JSON schema and the tables of config/README.md (`documents.py`).
"""

from gigapipe.configuration.configuration import Configuration

__all__ = ["Configuration"]
