"""Functions that users bring, by their names: where they are, what their code is, and how they are called up.

A name is `package.module:function` or `file.py:function`; before either may stand the folder that it is in, as
`config/mine.py:unet`. What lies there, or without a folder where the program was started, comes before what is
installed. Nothing here runs such code but `load`. Needs no torch: the workflow asks before anything runs.
"""

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gigapipe.errors import InputError

PATTERN = r"^[^:\n]*[^:/\n]:[A-Za-z_][A-Za-z_0-9]*$"

GIVE = "give file.py:function, or package.module:function"

OF_GIGAPIPE = {"gigapipe", "torch", "numpy"}
"""What the networks that gigapipe brings run on, too: another release of it makes no other network."""


class Named(NamedTuple):
    """What a name says, and the file that it leads to."""

    folder: Path
    module: str
    function: str
    file: Path
    local: bool
    """Whether it lies in the folder, not among what is installed."""

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def find(name: str) -> Named:
    """Where the code of a name is; nothing of it is run. InputError if there is none."""
    where, _, function = name.rpartition(":")
    if not where or not function:
        raise InputError(f"{name}: is no function of a file or module; {GIVE}")
    before, _, last = os.path.expanduser(where).rpartition("/")
    folder, module = Path(before or ("/" if where.startswith("/") else ".")), last.removesuffix(".py")
    running = not before and module.partition(".")[0] == "gigapipe"  # which a clone of it in that folder is not
    if not running and (file := _file(folder, module)):
        return Named(folder, module, function, file, local=True)
    if not before and not last.endswith(".py") and (file := _installed(module)):
        return Named(folder, module, function, file, local=False)
    raise InputError(
        f"{name}: there is no {last if last.endswith('.py') else f'module {module}'} in {folder.resolve()}"
        f"{'' if before or last.endswith('.py') else ', and none is installed'}; {GIVE}"
    )


def _file(folder: Path, module: str) -> Path | None:
    """The file of a module that lies below a folder."""
    place = folder.joinpath(*module.split("."))
    return next((f for f in (place.with_name(f"{place.name}.py"), place / "__init__.py") if f.is_file()), None)


def _installed(module: str) -> Path | None:
    """The file of a module that is installed. Its package is looked up, not imported."""
    package, _, rest = module.partition(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
    found = (_file(Path(folder), rest) for folder in spec.submodule_search_locations or [])
    return next((file for file in found if file), None)


def beside(name: str, folders: Iterable[Path]) -> str:
    """The name as it is from here, if what it names lies in one of `folders`, where configs are; else as it was."""
    where, _, function = name.rpartition(":")
    before, _, last = where.rpartition("/")
    if os.path.isabs(os.path.expanduser(where)):
        return name
    for folder in folders:
        if _file(folder / before, last.removesuffix(".py")):
            prefix = os.path.relpath(folder)
            return name if prefix == os.curdir else f"{prefix}/{where}:{function}"
    return name


def absolute(name: str) -> str:
    """The name as it is from any folder. InputError if there is no such code."""
    found, (where, _, function) = find(name), name.rpartition(":")
    return f"{found.folder.resolve()}/{where.rpartition('/')[2]}:{function}" if found.local else name


def load(name: str) -> Callable[..., Any]:
    """The function itself: its module is imported, which runs it. InputError if that fails."""
    found = find(name)
    # First while it is imported, as for a program that is started there; then last, for what it imports later.
    folder = str(found.folder.resolve())
    if found.local:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(found.module)
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(found.file.resolve())]
        where = f" in line {lines[-1]}" if lines else ""
        said = str(error).strip().partition("\n")[0]
        raise InputError(f"{name}: {type(error).__name__}{where} of {found.file}: {said}; correct it") from error
    finally:
        if found.local:
            sys.path.remove(folder)
            if folder not in sys.path:
                sys.path.append(folder)
    if found.local and Path(getattr(module, "__file__", None) or "").resolve() != found.file.resolve():
        raise InputError(
            f"{name}: there is another module with the name {found.module}, {module!r}; rename {found.file}"
        )
    function = getattr(module, found.function, None)
    if not callable(function):
        raise InputError(f"{name}: {found.file} has no function {found.function}; {GIVE}")
    return function


def call(name: str, options: Mapping[str, Any]) -> Any:
    """What the function makes of such options, given by their names. InputError if there is no such function."""
    return load(name)(**options)


@functools.cache
def code_of(name: str) -> str:
    """What changes if the code of a function changes; nothing of it is run. InputError if there is none.

    Of code in a folder: a digest of its file and of all files there that it imports, however indirectly, and the
    releases of the installed packages that these import. Of an installed package: its release, and a digest of the
    module's file.
    """
    found = find(name)
    files, packages = {found.module: found.file}, {found.package}
    if found.local and found.package not in OF_GIGAPIPE and "site-packages" not in found.file.resolve().parts:
        files, packages = _with_imports(found)
    digest = hashlib.sha256()
    for module, file in sorted(files.items()):
        digest.update(f"{module} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return ", ".join([*_releases(packages), f"sha256 {digest.hexdigest()}"])


def _with_imports(found: Named) -> tuple[dict[str, Path], set[str]]:
    """The files in the folder of a module, by their modules, that it needs; and the other packages that they import."""
    files: dict[str, Path] = {}
    packages: set[str] = set()
    parents = found.module.split(".")[:-1]
    waiting = [found.module, *(".".join(parents[: n + 1]) for n in range(len(parents)))]  # their __init__ is run, too
    while waiting:
        module = waiting.pop()
        file = _file(found.folder, module)
        if module in files or file is None:
            continue
        files[module] = file
        for imported in _imports(file, module):
            parts = imported.split(".")
            if not _file(found.folder, parts[0]) and not (found.folder / parts[0]).is_dir():
                packages.add(parts[0])
            elif parts[0] not in OF_GIGAPIPE:
                waiting += [".".join(parts[: n + 1]) for n in range(len(parts))]
    return files, packages - OF_GIGAPIPE - sys.stdlib_module_names


def _imports(file: Path, module: str) -> Iterator[str]:
    """What a file imports, by full names: of `from a import b` both a and a.b, for b may be a module."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # which is said when it is loaded
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, above), *filter(None, [node.module])])
            yield from ([base] if base else [])
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _releases(packages: set[str]) -> list[str]:
    """The installed releases of packages, as `timm 1.0.31`."""
    if not (packages := packages - sys.stdlib_module_names):
        return []
    known = importlib.metadata.packages_distributions()
    names = sorted({distribution for package in packages for distribution in known.get(package, [])})
    return [f"{name} {importlib.metadata.version(name)}" for name in names]
