"""The folder in which a user runs the workflow: what `gigapipe init` writes.

In the repository `workflow`, `config`, `docs`, `profiles` and `envs` here are links to its own folders, so that every
file is there once; a wheel holds them as files.
"""

import os
import shutil
from pathlib import Path

from gigapipe.errors import InputError

FILES = Path(__file__).parent


def lay_out(folder: Path) -> list[str]:
    """Write Snakefile, config, docs and profiles into `folder`, which is new or empty; the names of what it then holds.

    The rules stay in the package: the Snakefile includes them. A profile has a link at the top, for
    `snakemake --profile NAME` looks for it there.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a new or empty folder")
    if folder.is_dir() and (found := sorted(os.listdir(folder))):
        raise InputError(
            f"{folder}: is not empty (it holds {found[0]}); nothing was written: give a new or empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FILES / "Snakefile", folder / "Snakefile")
    for name in ("config", "docs", "profiles"):
        shutil.copytree(FILES / name, folder / name, ignore=_of_the_repository)
    for profile in sorted((folder / "profiles").iterdir()):
        if profile.name != "default":  # which is read without being named
            (folder / profile.name).symlink_to(profile.relative_to(folder))
    return sorted(os.listdir(folder))


def _of_the_repository(folder: str, names: list[str]) -> list[str]:
    """Of the documentation, what makes pages of it and the site's first page."""
    return (
        [name for name in names if name == "index.md" or name.endswith(".py")] if folder == str(FILES / "docs") else []
    )
