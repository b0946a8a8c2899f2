"""The errors that a user is meant to read."""

from gigapipe.disks import in_one_line


class InputError(Exception):
    """Something given by the user is wrong: the message is one line that says what, where, and what to do.

    The command line prints it without a traceback; everything else is a defect of gigapipe and keeps its own.
    """


class Unavailable(InputError):
    """Nothing that was given is wrong, but something is not there now, or not on this host: another try may find it."""

    of_use = True
    """Whether what has been made until then is of use to that try."""


def line_of(error: BaseException) -> str | None:
    """What a user is told of an error; None of a defect."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return in_one_line(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("gigapipe"):
        return f"{error.name} is not installed; install it with pip install 'gigapipe[workflow]'"
    return None
