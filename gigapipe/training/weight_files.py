"""Files of weights, as torch saves them: none is used before it was found to hold what was written into it."""

import hashlib
import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gigapipe.atomic import atomic_file
from gigapipe.errors import InputError, Unavailable

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of what this version writes. Files of 0.1 have no number, and are read."""

ZIP = b"PK\x03\x04"
DIGEST = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # resnet18-f37072fd.pth, as torch.hub names its files


class Unusable(Exception):
    """A file does not hold what was written into it, or is not one that this version knows: a reason in a few words."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and numbers. A checksum of each tensor goes with it, in the file. OSError if the disk fails."""
    with atomic_file(path) as partial, open(partial, "wb") as file:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:  # all that torch says of a full disk, which what it wrote to has said before
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote. Its tensors come to the CPU: they may have been on a device that is not here.

    Raises Unavailable if the file cannot be read here and now, which says nothing about what is in it; or Unusable, or
    FileNotFoundError.
    """
    try:
        _verify(path)
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (FileNotFoundError, Unusable):
        raise
    except Exception as error:  # damaged bytes make the readers raise anything, IndexError too
        if isinstance(error, OSError | MemoryError) or "allocate memory" in str(error):
            reason = str(error).splitlines()[0] if str(error) else "no memory is left"
            raise Unavailable(f"{path}: cannot be read here: {reason}; it was not changed") from None
        raise Unusable("it is damaged, or was not written by gigapipe") from None
    if not isinstance(content, dict):
        raise Unusable("it was not written by gigapipe")
    if content.pop("format", FORMAT) != FORMAT:
        raise Unusable("another version of gigapipe wrote it")
    return content


def _verify(path: Path) -> None:
    """Unusable if a byte is not what was written. torch writes the checksums of a zip file, and does not read them."""
    with open(path, "rb") as file:
        begin = file.read(len(ZIP))
    if begin != ZIP:
        raise Unusable("it is damaged, or was not written by gigapipe")
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise Unusable("it is damaged: its checksums differ")


def refuse_not_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Unusable if one of the weights is no number."""
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise Unusable(f"its weights are not finite ({name})")


def load_foreign(path: Path) -> dict[str, torch.Tensor]:
    """Weights by their names, from a file that another program wrote with torch: as they are, or beside other things.

    It is verified by its own checksums, by the digits of its SHA-256 in its name, or by a file NAME.sha256 beside it;
    of one that has none of them a line says so. Raises InputError if it cannot be read, is damaged, or has weights that
    are not finite.
    """
    try:
        if expected := _digest_of(path):
            with open(path, "rb") as file:
                if not hashlib.file_digest(file, "sha256").hexdigest().startswith(expected):
                    raise Unusable(f"it is damaged: its SHA-256 does not begin with {expected}")
        elif zipfile.is_zipfile(path):
            _verify(path)
        else:
            logger.warning(
                f"weights {path}: there is no checksum to verify them; write their published SHA-256 to "
                f"{path.name}.sha256 beside them"
            )
        weights = _weights_in(dict(torch.load(path, weights_only=True, map_location="cpu")))
        refuse_not_finite(weights)
    except Unusable as error:
        raise InputError(f"weights {path}: {error}; download them again") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"weights {path}: cannot be read ({reason}); download them again") from None
    return weights


def _weights_in(saved: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Those of a checkpoint that has other things, too, under their names without what wrappers put before them."""
    inner = next((saved[key] for key in ("state_dict", "model") if isinstance(saved.get(key), dict)), saved)
    weights = {name: value for name, value in inner.items() if isinstance(value, torch.Tensor)}
    wrapped = bool(weights) and all(name.startswith("module.") for name in weights)  # DataParallel
    return {name.removeprefix("module.") if wrapped else name: value for name, value in weights.items()}


def _digest_of(path: Path) -> str | None:
    beside = path.with_name(f"{path.name}.sha256")
    if beside.exists():
        return beside.read_text(encoding="utf-8").split()[0].lower()  # as sha256sum writes it: digest, name
    named = DIGEST.search(path.name)
    return named[1] if named else None
