"""What tests need of a machine beside Python."""

import os
from typing import NoReturn

import pytest


def missing(message: str) -> NoReturn:
    """End a test for which something is missing. It is skipped; with CI set, where everything is there, it fails."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
