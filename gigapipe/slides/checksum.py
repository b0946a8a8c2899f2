"""The checksum that slide archives publish."""

import hashlib
from pathlib import Path

from gigapipe.disks import read_again


def md5_of_file(path: Path) -> str:
    """MD5 of a file, in hexadecimal: it tells releases apart, nothing rests on it for security."""

    def whole() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

    return read_again(whole, path)
