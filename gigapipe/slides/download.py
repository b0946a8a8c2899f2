"""Fetching slides over networks that fail: each byte once, and nothing taken for whole that is not verified."""

import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import openslide
import requests
import urllib3

from gigapipe.atomic import resumable_file
from gigapipe.errors import InputError, Unavailable
from gigapipe.progress import Progress
from gigapipe.slides.checksum import md5_of_file
from gigapipe.slides.replies import (
    Span,
    compression_of,
    is_text,
    md5_of,
    passes,
    pause_of,
    quoted,
    total_of,
)

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
BEGINNING = 512  # bytes by which a slide is told from a message
SAMPLE = 8 << 20  # bytes that tell how fast a network is
TRIES = 8  # in a row, without a new byte
LONGEST_PAUSE = 120  # seconds
ABSENT = {404, 410}
UNUSABLE = (
    requests.TooManyRedirects,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)
"""What is wrong with an address itself."""
FORBIDDEN = {401, 403}


class Refused(InputError):
    """A server will not give the file, whenever it is asked; another may."""


class NotThere(Refused):
    """A server does not have the file."""


class Interrupted(Exception):
    """A transfer ended before its end, and another may go on, not before `pause` seconds if the server says so."""

    def __init__(self, why: str, pause: float = 0):
        super().__init__(why)
        self.pause = pause


class NoRange(Interrupted):
    """The server does not give the part that was asked for, and may give the whole."""


class Arrived:
    """What there is of a file; it goes on from what the file holds.

    Its checksum is counted if its `md5` is known, or if a server tells it before the first byte.
    """

    def __init__(self, file: BinaryIO, name: str, total: int | None, md5: str | None):
        self._file, self._given = file, (total, md5)
        self.total, self.md5 = self._given
        self.bytes = 0
        self.versions: dict[str, str] = {}  # each server's word for it, if it has one
        self.progress = Progress(what=name, unit="bytes", total=total)
        self._checksum = hashlib.md5(usedforsecurity=False)
        while block := file.read(BLOCK):
            self._count(block)

    @property
    def found_md5(self) -> str:
        return self._checksum.hexdigest()

    def is_right(self) -> bool:
        """Whether it has the md5, if that is known."""
        return self.md5 is None or self.md5 == self.found_md5

    def expect(self, md5: str | None) -> None:
        """What a server says that the md5 will be, unless that is known already."""
        if self.md5 is None and not self.bytes:
            self.md5 = md5

    def take(self, block: bytes, at: int) -> None:
        """Add bytes of the file from byte `at` on, without those that have arrived before.

        Raises Interrupted, and drops all, if those are not what had arrived.
        """
        if (known := self.bytes - at) > 0:
            self._file.seek(at)
            same = self._file.read(min(known, len(block))) == block[:known]
            self._file.seek(self.bytes)
            if not same:
                self.drop()
                raise Interrupted("the server's file differs from what was downloaded before")
            block = block[known:]
        rest = memoryview(block)
        while rest:  # unbuffered: what was written is there, even after a kill
            rest = rest[self._file.write(rest) :]
        self._count(block)

    def drop(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.progress.update(-self.bytes)
        self.bytes = 0
        self.total, self.md5 = self._given  # what a server said was of what is dropped
        self._checksum = hashlib.md5(usedforsecurity=False)

    def _count(self, block: bytes) -> None:
        if self.md5 is not None:
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

    Without an `md5` or `size`, what a server says of them (Content-MD5, Content-Length) is what it must have.

    Raises NotThere if no server has the file; InputError, naming the address, if all refuse, if `tries` in a row bring
    no new byte, or if what arrives is another file than it should be, or no slide; OSError if it cannot be written.
    """
    if md5 and path.exists() and md5_of_file(path) == md5.lower():
        logger.info(f"{path.name}: is already downloaded and complete")
        return
    session = session or requests.Session()
    with resumable_file(path, keep=md5 is not None) as partial, open(partial, "r+b", buffering=0) as file:
        arrived = Arrived(file, path.name, size, md5 and md5.lower())
        with arrived.progress:
            address = _fetch(session, addresses, arrived, md5 is not None, tries, timeout)
        if openslide.OpenSlide.detect_format(partial) is None:
            count = arrived.bytes
            arrived.drop()
            raise InputError(
                f"{address}: the downloaded file is not a slide ({count} bytes); correct `source` in the sheet"
            )


def _fetch(
    session: requests.Session, addresses: Sequence[str], arrived: Arrived, given_md5: bool, tries: int, timeout: float
) -> str:
    """Fetch all of a file from one address or another, the last of which is returned."""
    turn = failures = spoiled = most = 0
    refusals: dict[str, Refused] = {}
    whole: set[str] = set()  # of which all is asked for the next time, and no range
    wrong: set[str] = set()  # the checksums of what arrived
    while True:
        address, most = addresses[turn % len(addresses)], max(most, arrived.bytes)
        turn += 1
        following = addresses[turn % len(addresses)]
        try:
            ranged = address not in whole
            whole.discard(address)
            fetch_rest(session, address, arrived, timeout, ranged=ranged)
            if arrived.is_right():
                return address
            found, wanted = arrived.found_md5, arrived.md5
            arrived.drop()
            spoiled, most = spoiled + 1, 0
            if spoiled > len(addresses):
                remedy = "correct the sheet, or ask its author" if given_md5 else "which the server stated; try again"
                # The same again is what the server has; another each time is what the network made of it.
                kind = InputError if found in wrong else Unavailable
                raise kind(f"{address}: its md5 is {found}, not {wanted}; {remedy}")
            wrong.add(found)
            raise Interrupted("its md5 is wrong")
        except Refused as error:
            refusals[address] = error
            if set(refusals) == set(addresses):
                raise next((e for e in refusals.values() if not isinstance(e, NotThere)), error) from None
        except Interrupted as error:
            failures = 1 if arrived.bytes > most else failures + 1
            if failures == tries:
                raise Unavailable(f"{address}: {error}, {tries} times in succession; run it again") from None
            if isinstance(error, NoRange):
                whole.add(address)
            elif failures == max(2, tries // 2):  # whatever it says, it may be the range that it cannot do
                whole.add(following)
            # At random, or all whom a busy server turned away together would come back together.
            pause = max(error.pause, min(LONGEST_PAUSE, 2.0**failures) * random.uniform(0.25, 0.75))
            name = arrived.progress.desc
            arrived.progress.write(f"{name}: {error}; resumes from byte {arrived.bytes} in {pause:.1f} s")
            time.sleep(pause)


def measure_rate(addresses: Sequence[str], path: Path, size: int | None, session: requests.Session) -> float | None:
    """Bytes a second of the next megabytes of a file, which `download` then goes on from; None if none came.

    For files whose md5 is known: what has arrived of others is not kept.
    """
    before = after = 0
    begin = time.monotonic()
    with contextlib.suppress(Interrupted, InputError, OSError), resumable_file(path, keep=True) as partial:
        with open(partial, "r+b", buffering=0) as file:
            arrived = Arrived(file, path.name, size, md5=None)
            before = arrived.bytes
            begin = time.monotonic()
            try:
                fetch_rest(session, addresses[0], arrived, timeout=10, last=before + SAMPLE - 1)
            finally:
                after = arrived.bytes
        raise Interrupted("enough to tell")
    return (after - before) / (time.monotonic() - begin) or None


def fetch_rest(
    session: requests.Session,
    address: str,
    arrived: Arrived,
    timeout: float,
    last: int | None = None,
    ranged: bool = True,
) -> None:
    """Fetch what has not arrived yet, up to the byte `last`, or all: by a range, or, not `ranged`, from the beginning.

    Raises Interrupted where another try may help, Refused where none will.
    """
    while arrived.total is None or arrived.bytes < arrived.total:
        # `identity`: a length is promised for the bytes as they are stored, not for a compressed transfer.
        headers = {"Accept-Encoding": "identity"}
        if ranged and (arrived.bytes or last is not None):
            headers["Range"] = f"bytes={arrived.bytes}-{'' if last is None else last}"
            if version := arrived.versions.get(address):
                headers["If-Range"] = version
        try:
            with session.get(address, stream=True, timeout=timeout, headers=headers) as reply:
                more = receive(address, reply, arrived, "Range" in headers)
        except UNUSABLE as error:
            raise Refused(f"{address}: {error}; correct it") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Interrupted(f"the connection failed ({error.__class__.__name__})") from None
        ranged = True  # who gave a part gives the next
        if last is not None or not more:
            break
    if arrived.total is not None and arrived.bytes < arrived.total:
        raise Interrupted(f"{arrived.bytes} of {arrived.total} bytes arrived")


def receive(address: str, reply: requests.Response, arrived: Arrived, ranged: bool) -> bool:
    """Add what a server answers to what has arrived; whether it gave but a part, and may give more."""
    if reply.status_code == 416 and ranged and _has_all(reply, arrived):
        arrived.total = arrived.bytes
        return False
    _refuse_status(address, reply, ranged)
    try:
        span = Span.of(reply)
    except ValueError as error:
        raise NoRange(f"the server sent a range that was not requested ({error})") from None
    if span.begin > arrived.bytes:
        raise NoRange(f"the server sent a range that was not requested (from byte {span.begin})")
    block = beginning_of(reply)
    if span.begin == 0:
        _refuse_message(address, reply, block)
    version = reply.headers.get("ETag", "")
    strong = version.removeprefix("W/")
    other = strong and arrived.versions.get(address, strong) != strong
    if other or (span.end is None and arrived.bytes > (span.total or arrived.bytes)):
        arrived.drop()  # it has another file now
        if span.begin:
            raise Interrupted("the server now has a different file")
    if span.end is None:
        arrived.expect(md5_of(reply))
    _note_total(address, span, arrived)
    if version and not version.startswith("W/"):
        arrived.versions[address] = version
    before, at = arrived.bytes, span.begin
    while block:
        arrived.take(block, at)
        at += len(block)
        if arrived.total is not None and arrived.bytes > arrived.total:
            total = arrived.total
            arrived.drop()
            raise Refused(f"{address}: sends more than {total} bytes; correct the sheet")
        block = reply.raw.read1(BLOCK)
    if span.end is not None and (at < span.end or arrived.bytes == before):
        raise Interrupted(f"{arrived.bytes} of {arrived.total or 'unknown'} bytes arrived")
    return span.end is not None


def _has_all(reply: requests.Response, arrived: Arrived) -> bool:
    """Whether a server has no bytes after those that have arrived because that is all."""
    if arrived.total is not None or not arrived.bytes:
        return False
    total = total_of(reply)
    return total == arrived.bytes if total is not None else arrived.md5 is not None and arrived.is_right()


def _refuse_status(address: str, reply: requests.Response, ranged: bool) -> None:
    """Raise what an answer other than a success means."""
    status = reply.status_code
    if passes(status):
        raise Interrupted(f"the server answers {status}", pause_of(reply))
    if 200 <= status < 300:
        return
    if ranged and status not in FORBIDDEN | ABSENT:
        raise NoRange(f"the server answers {status} to a range")
    words = f" ({quoted(body)})" if (body := beginning_of(reply)) and is_text(body) else ""
    said = f"{address}: {status} {reply.reason or ''}".strip() + words
    if status in FORBIDDEN:
        raise Refused(f"{said}; give a token with access to it (`--token`)")
    raise (NotThere if status in ABSENT else Refused)(f"{said}; correct `source` in the sheet")


def beginning_of(reply: requests.Response) -> bytes:
    """The first bytes of a body: enough to know what it is, unless it has no more."""
    block: bytes = reply.raw.read1(BLOCK)
    while len(block) < BEGINNING and (more := reply.raw.read1(BLOCK)):
        block += more
    return block


def _refuse_message(address: str, reply: requests.Response, begin: bytes) -> None:
    """Raise what a body means that is none of a slide."""
    if not begin:
        raise Interrupted("the server sends no data")
    if compression := compression_of(reply, begin):
        raise Refused(f"{address}: the response is compressed ({compression}); give the address of the slide itself")
    if is_text(begin):
        raise Interrupted(f"the downloaded file is not a slide but {quoted(begin)}")


def _note_total(address: str, span: Span, arrived: Arrived) -> None:
    if span.total is None:
        return
    if arrived.total is None:
        arrived.total = arrived.progress.total = span.total
    elif span.total > arrived.total:
        raise Refused(f"{address}: has {span.total} bytes instead of {arrived.total}; correct the sheet")
