"""Types, as far as they are written: mypy, which takes a while, beside the other tests."""

import subprocess
import sys

import pytest
from launching import ROOT


@pytest.mark.slow
def test_types_agree():
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
