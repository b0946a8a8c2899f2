"""Text that people and archives give: what none of it may hold, and how it is kept from being taken for an option."""

import os
import sys
import unicodedata
from collections.abc import Iterable

from gigapipe.errors import InputError

LINE_BREAKS = "\n\r\x85\u2028\u2029"


def fault_of(text: str) -> str | None:
    """What keeps a text from naming a file or standing in a command, a table or a message; None if nothing does."""
    for sign in text:
        if unicodedata.category(sign) in ("Cc", "Zl", "Zp"):
            what = "a line break" if sign in LINE_BREAKS else f"the control character {sign!a}"
            return f"contains {what}; remove it"
    try:
        text.encode("utf-8")
        os.fsencode(text)
    except UnicodeEncodeError:
        return (
            f"contains a character that {sys.getfilesystemencoding()}, the encoding of this locale, does not have; set "
            "LC_ALL=C.UTF-8 (and not PYTHONUTF8=0), or give it a name in UTF-8"
        )
    return None


def refuse_unreadable(texts: Iterable[str]) -> None:
    """InputError if a name that the system gave, as an argument or the folder to work in, is none in this encoding.

    Libraries that write files would fail at it, each in its own way.
    """
    for text in texts:
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise InputError(f"{text!a} {fault_of(text)}")


def option(flag: str, value: object) -> list[str]:
    """An option and its value, as words of a command: as one word if the value would be taken for another option."""
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
