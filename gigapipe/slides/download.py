"""Fetching a slide from an http(s) address: written aside, renamed when whole."""

import hashlib
from pathlib import Path

import openslide
import requests

from gigapipe.aside import written_aside
from gigapipe.errors import InputError
from gigapipe.progress import Progress


def download(url: str, path: Path, md5: str | None = None, timeout: float = 60) -> None:
    """Fetch `url` into `path`, which appears only when all of it has arrived, and its `md5` (if given) agrees.

    Where to write is the caller's word alone; no name that the server gives is used. Raises InputError, naming the
    address, if the server refuses, stops answering for `timeout` seconds, sends less than it promised, or sends
    something else.
    """
    checksum = hashlib.md5(usedforsecurity=False)
    try:
        with written_aside(path) as partial:
            # `identity`: a length is promised for the bytes as they are stored, not for a compressed transfer.
            with requests.get(url, stream=True, timeout=timeout, headers={"Accept-Encoding": "identity"}) as reply:
                reply.raise_for_status()
                promised = int(reply.headers.get("Content-Length", 0)) or None
                arrived = 0
                with open(partial, "wb") as file, Progress(what=path.name, unit="bytes", total=promised) as progress:
                    for block in reply.iter_content(1 << 20):
                        file.write(block)
                        checksum.update(block)
                        arrived += len(block)
                        progress.update(len(block))
            if promised and arrived != promised:
                raise InputError(f"{url}: {arrived} of {promised} bytes arrived; run it again")
            if md5 and checksum.hexdigest() != md5.lower():
                raise InputError(
                    f"{url}: its md5 is {checksum.hexdigest()}, not {md5}; correct the sheet, or ask its keeper"
                )
            if openslide.OpenSlide.detect_format(partial) is None:
                raise InputError(f"{url}: what arrived is not a slide ({arrived} bytes); correct `source` in the sheet")
    except requests.RequestException as error:
        raise InputError(f"{url}: {error}; correct `source` in the sample sheet, or run it again") from None
