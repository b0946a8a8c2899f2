"""The files of a store: where those of an array's chunks are, and whether all are still what was written.

A chunk that is missing would be read as glass, and one of another place as what lies there. So each array keeps a
checksum of each of its files, by its place; what is white has none. That holds for every version of the format, and
for copies, which have the array's metadata. The metadata themselves have theirs in `SEAL`, as sha256sum writes it.
"""

import base64
import hashlib
import itertools
import zlib
from collections.abc import Collection, Iterator, Mapping, MutableSet
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import LocalStore

from gigapipe.atomic import atomic_file
from gigapipe.disks import tell_once

KEY = "gigapipe"
"""Of the array's attributes, under which the checksums are."""

ABSENT = 0

METADATA = {"zarr.json", ".zarray", ".zattrs", ".zgroup"}
SEAL = "metadata.sha256"

Range = tuple[int, int]


def folder_of(array: zarr.Array) -> Path:
    """Where the metadata of an array lie, and beside it its files."""
    if not isinstance(array.store, LocalStore):
        raise TypeError(f"{array.store}: not on a file system")
    return Path(array.store.root) / array.path


def files_of(array: zarr.Array) -> int:
    """How many files of chunks an array has; what is white has none."""
    return sum(file.exists() for file in files_of_rectangle(array, *_all(array)))


def files_of_rectangle(array: zarr.Array, rows: Range, columns: Range) -> list[Path]:
    """The files that hold `rows` × `columns` (half-open), each of them where it is or, if it is all white, would be."""
    return [_file(array, place) for place in _places(array, rows, columns)]


def stamp(array: zarr.Array) -> None:
    """Keep a checksum of each file with the array's metadata."""
    found = [_checksum(file) for file in files_of_rectangle(array, *_all(array))]
    said = base64.b64encode(np.array(found, "<u4").tobytes()).decode()
    array.attrs[KEY] = {"crc32": said}


def is_stamped(array: zarr.Array) -> bool:
    return KEY in array.attrs


def check(
    array: zarr.Array,
    rows: Range | None = None,
    columns: Range | None = None,
    checked: MutableSet[Path] | None = None,
) -> None:
    """ValueError, naming the chunk, if a file that holds `rows` × `columns`, or any, is not what was written.

    Files that were `checked` are left out; those that are checked now join them. Of an array without checksums, which
    gigapipe 0.1 wrote, a line says so.
    """
    if not is_stamped(array):
        store = Path(str(folder_of(array)).partition(".zarr")[0] + ".zarr")
        tell_once(
            f"{store.parent}: has no checksums, because gigapipe 0.1 wrote it, so that changes cannot be detected; "
            "`gigapipe verify --adopt` adds checksums",
            about=("no checksums", store.parent.parent),
        )
        return
    edges = array.shards or array.chunks
    grid = [-(-n // edge) for n, edge in zip(array.shape, edges, strict=True)]
    kept = array.attrs[KEY]
    assert isinstance(kept, dict)
    said = np.frombuffer(base64.b64decode(str(kept["crc32"])), "<u4").reshape(grid)
    whole = _all(array)
    for place in _places(array, rows or whole[0], columns or whole[1]):
        file = _file(array, place)
        if checked is not None and file in checked:
            continue
        expected, found = int(said[place]), _checksum(file)
        if found != expected:
            what = (
                "is missing" if found == ABSENT else "is where there was none" if expected == ABSENT else "is damaged"
            )
            raise ValueError(f"its chunk {'/'.join(map(str, place))} {what}")
        if checked is not None:
            checked.add(file)


def seal(folder: Path, coming: Mapping[Path, bytes] | None = None, without: Collection[Path] = ()) -> None:
    """Keep checksums of the metadata of the store in `folder`, beside it, but not of what lies in folders `without`.

    What is `coming` in the place of some files may be there already, or not yet: the seal holds for both.
    """
    found = sorted(path for path in folder.rglob("*") if path.name in METADATA)
    files = [(path, path.read_bytes()) for path in found if not any(path.is_relative_to(one) for one in without)]
    lines = [f"{_sha256(text)}  {path.relative_to(folder)}\n" for path, text in [*files, *(coming or {}).items()]]
    with atomic_file(folder / SEAL) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def check_seal(folder: Path) -> None:
    """ValueError, naming the file, if some of the metadata are not what was written. Older stores have no seal."""
    try:
        lines = (folder / SEAL).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    sealed: dict[str, set[str]] = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        sealed.setdefault(name, set()).add(digest)
    for name, digests in sealed.items():
        file = folder / name
        if not file.is_file() or _sha256(file.read_bytes()) not in digests:
            raise ValueError(f"its {name} is {'damaged' if file.is_file() else 'missing'}")


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _all(array: zarr.Array) -> tuple[Range, Range]:
    return (0, array.shape[-2]), (0, array.shape[-1])


def _places(array: zarr.Array, rows: Range, columns: Range) -> Iterator[tuple[int, ...]]:
    """Of the files that hold a rectangle, where they are among all files of the array."""
    *channels, high, wide = array.shards or array.chunks
    leading = [range(-(-n // edge)) for n, edge in zip(array.shape, channels, strict=False)]
    spans = [range(start // edge, -(-stop // edge)) for (start, stop), edge in ((rows, high), (columns, wide))]
    return itertools.product(*leading, *spans)


def _file(array: zarr.Array, place: tuple[int, ...]) -> Path:
    return folder_of(array) / array.metadata.encode_chunk_key(place)


def _checksum(file: Path) -> int:
    """The CRC-32 of what a file holds, never `ABSENT`, which stands for no file."""
    try:
        return zlib.crc32(file.read_bytes()) or 1
    except FileNotFoundError:
        return ABSENT
