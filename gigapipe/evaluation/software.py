"""Which software makes results: what the report and the record of provenance say of it."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import gigapipe

LIBRARIES = ["torch", "numpy", "scikit-learn", "scipy", "pandas", "zarr", "openslide-bin", "mpi4py", "snakemake"]
NOT_INSTALLED = "not installed"


def versions() -> dict[str, str]:
    """Of Python and the libraries, by name; a library that is missing is `NOT_INSTALLED`."""
    found = {"Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = NOT_INSTALLED
    return found


def revision() -> str:
    """The git revision of gigapipe's source, and whether it has been changed since; `unknown` if it is installed."""
    folder = Path(gigapipe.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # or the repository around it is another
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
