"""The one error that a user is meant to read."""


class InputError(Exception):
    """Something given by the user is wrong: the message is one line that says what, where, and what to do.

    The command line prints it without a traceback; everything else is a defect of gigapipe and keeps its own.
    """
