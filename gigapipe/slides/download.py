"""Fetching slides over networks that fail: each byte once, and nothing taken for whole that is not verified."""

import contextlib
import hashlib
import logging
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import openslide
import requests
import urllib3

from gigapipe.atomic import resumable_file
from gigapipe.errors import InputError
from gigapipe.progress import Progress

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
SAMPLE = 8 << 20  # bytes that tell how fast a network is
TRIES = 8  # in a row, without a new byte
LONGEST_PAUSE = 120  # seconds
PASSING = {408, 425, 429, 500, 502, 503, 504}  # what a server answers that may do better later
ABSENT = {404, 410}
FORBIDDEN = {401, 403}


class NotThere(InputError):
    """No server has the file."""


class Interrupted(Exception):
    """A transfer ended before its end, and another may go on, not before `pause` seconds if the server says so."""

    def __init__(self, why: str, pause: float = 0):
        super().__init__(why)
        self.pause = pause


class Arrived:
    """What there is of a file, with its checksum if that is to be `checked`; it goes on from what the file holds."""

    def __init__(self, file: BinaryIO, name: str, total: int | None, checked: bool):
        self._file, self._checked = file, checked
        self.total = total
        self.bytes = 0
        self.version: str | None = None  # the server's word for it, if it has one
        self.progress = Progress(what=name, unit="bytes", total=total)
        self._checksum = hashlib.md5(usedforsecurity=False)
        while block := file.read(BLOCK):
            self._count(block)

    @property
    def md5(self) -> str:
        return self._checksum.hexdigest()

    def add(self, block: bytes) -> None:
        self._file.write(block)  # unbuffered: what was written is there, even after a kill
        self._count(block)

    def drop(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.progress.update(-self.bytes)
        self.bytes = 0
        self._checksum = hashlib.md5(usedforsecurity=False)

    def _count(self, block: bytes) -> None:
        if self._checked:
            self._checksum.update(block)
        self.bytes += len(block)
        self.progress.update(len(block))


def download(
    addresses: Sequence[str],
    path: Path,
    md5: str | None = None,
    size: int | None = None,
    session: requests.Session | None = None,
    tries: int = TRIES,
    timeout: float = 60,
) -> None:
    """Fetch one file into `path`, which appears only when all of it has arrived and is what it should be.

    The addresses are of one and the same file: after a failure the next one is tried. What has arrived is kept beside
    `path`, and goes on from there: after a connection that broke or stood still for `timeout` seconds and, where `md5`
    is given, after this process was killed. Where to write is the caller's word alone; no name that a server gives is
    used. A file that is there already and has the `md5` is left as it is.

    Raises NotThere if no server has the file; InputError, naming the address, if a server refuses, if `tries` in a row
    bring no new byte, or if what arrives is another file than it should be, or no slide.
    """
    if md5 and path.exists():
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() == md5.lower():
                logger.info(f"{path.name}: is here already, and whole")
                return
    session = session or requests.Session()
    with resumable_file(path, keep=md5 is not None) as partial, open(partial, "r+b", buffering=0) as file:
        arrived = Arrived(file, path.name, size, checked=md5 is not None)
        turn = failures = spoiled = 0
        absent = set()
        with arrived.progress:
            while True:
                address = addresses[turn % len(addresses)]
                before = arrived.bytes
                try:
                    fetch_rest(session, address, arrived, timeout)
                    if md5 is None or arrived.md5 == md5.lower():
                        break
                    found = arrived.md5
                    arrived.drop()
                    spoiled += 1
                    if spoiled > len(addresses):
                        raise InputError(
                            f"{address}: its md5 is {found}, not {md5}; correct the sheet, or ask its keeper"
                        )
                    raise Interrupted("its md5 is wrong")
                except NotThere:
                    absent.add(address)
                    if absent == set(addresses):
                        raise
                except Interrupted as error:
                    failures = 1 if arrived.bytes > before else failures + 1
                    if failures == tries:
                        raise InputError(f"{address}: {error}, {tries} times in a row; run it again") from None
                    # At random, or all whom a busy server turned away together would come back together.
                    pause = max(error.pause, min(LONGEST_PAUSE, 2.0**failures) * random.uniform(0.25, 0.75))
                    arrived.progress.write(f"{path.name}: {error}; goes on from byte {arrived.bytes} in {pause:.1f} s")
                    time.sleep(pause)
                turn += 1
        if openslide.OpenSlide.detect_format(partial) is None:
            count = arrived.bytes
            arrived.drop()
            raise InputError(f"{address}: what arrived is not a slide ({count} bytes); correct `source` in the sheet")


def measure_rate(addresses: Sequence[str], path: Path, size: int | None, session: requests.Session) -> float | None:
    """Bytes a second of the next megabytes of a file, which `download` then goes on from; None if none came.

    For files whose md5 is known: what has arrived of others is not kept.
    """
    before = after = 0
    begin = time.monotonic()
    with contextlib.suppress(Interrupted, InputError), resumable_file(path, keep=True) as partial:
        with open(partial, "r+b", buffering=0) as file:
            arrived = Arrived(file, path.name, size, checked=False)
            before = arrived.bytes
            begin = time.monotonic()
            try:
                fetch_rest(session, addresses[0], arrived, timeout=10, last=before + SAMPLE - 1)
            finally:
                after = arrived.bytes
        raise Interrupted("enough to tell")
    return (after - before) / (time.monotonic() - begin) or None


def fetch_rest(
    session: requests.Session, address: str, arrived: Arrived, timeout: float, last: int | None = None
) -> None:
    """Fetch what has not arrived yet, up to the byte `last`, or all. Raises Interrupted where another try may help.

    InputError where none will.
    """
    if arrived.total is not None and arrived.bytes >= arrived.total:
        return
    # `identity`: a length is promised for the bytes as they are stored, not for a compressed transfer.
    headers = {"Accept-Encoding": "identity"}
    if arrived.bytes or last is not None:
        headers["Range"] = f"bytes={arrived.bytes}-{'' if last is None else last}"
        if arrived.version:
            headers["If-Range"] = arrived.version
    try:
        with session.get(address, stream=True, timeout=timeout, headers=headers) as reply:
            receive(address, reply, arrived)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Interrupted(f"the connection failed ({error.__class__.__name__})") from None
    except OSError as error:
        raise InputError(f"{arrived.progress.desc}: cannot be written ({error.strerror}); make room") from None
    if arrived.total is not None and arrived.bytes < arrived.total:
        raise Interrupted(f"{arrived.bytes} of {arrived.total} bytes arrived")


def receive(address: str, reply: requests.Response, arrived: Arrived) -> None:
    """Add what a server answers to what has arrived."""
    if reply.status_code in PASSING:
        pause = reply.headers.get("Retry-After", "")
        raise Interrupted(f"the server answers {reply.status_code}", min(int(pause), 600) if pause.isdigit() else 0)
    if reply.status_code == 416:
        arrived.drop()
        raise Interrupted("the server's file is shorter than what had arrived")
    if reply.status_code in FORBIDDEN:
        raise InputError(f"{address}: {reply.status_code} {reply.reason}; give a token that may read it (`--token`)")
    if reply.status_code >= 400:
        kind = NotThere if reply.status_code in ABSENT else InputError
        raise kind(f"{address}: {reply.status_code} {reply.reason}; correct `source` in the sheet")
    begin, total = 0, reply.headers.get("Content-Length")
    if reply.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range", ""))
        if not match or int(match[1]) != arrived.bytes:
            raise Interrupted("the server answers with a range that was not asked for")
        begin, total = int(match[1]), match[2]
    block = reply.raw.read1(BLOCK)
    if begin == 0 and block.lstrip()[:1] in (b"{", b"[", b"<"):
        raise Interrupted(f"what arrived is not a slide but {' '.join(block[:150].decode(errors='replace').split())!r}")
    if begin == 0 and arrived.bytes:
        arrived.drop()  # the server sends all of it again
    if total:
        if arrived.total is None:
            arrived.total = arrived.progress.total = int(total)
        elif int(total) > arrived.total:
            raise InputError(f"{address}: has {total} bytes and not {arrived.total}; correct the sheet")
    arrived.version = reply.headers.get("ETag")
    while block:
        arrived.add(block)
        block = reply.raw.read1(BLOCK)
