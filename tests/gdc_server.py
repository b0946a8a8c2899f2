"""The Genomic Data Commons on loopback: its API as far as fetching slides needs it, and the ways in which it fails.

A client that works here works there: only the base address differs. Shapes of requests and replies are those of GDC's
guide; the bytes are also served as the bucket of AWS Open Data serves them, at /{id}/{file name}. In a test:

    archive = Archive()
    slide = archive.add(path, "TCGA-05-4244-01Z-00-DX1.svs")
    archive.faults[slide] = [Fault("cut"), None]
    with serving(archive) as url:
        ...
    assert archive.sent_twice(slide) == 0

As a program, `python tests/gdc_server.py FOLDER` serves a folder's slides, prints its address, and tells what it was
asked for at /requests.
"""

import argparse
import fcntl
import functools
import hashlib
import json
import operator
import os
import re
import socket
import struct
import sys
import termios
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

CHUNK = 1 << 20
S3_PART = 8 << 20  # larger objects came to S3 in parts, and their ETag is not their md5
BARCODE = re.compile(r"(((TCGA-(\w\w)-\w{4})-(\d\d)\w)-\w\w)-\w+")
SAMPLE_TYPES = {"01": "Primary Tumor", "02": "Recurrent Tumor", "06": "Metastatic", "11": "Solid Tissue Normal"}
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
FAULTS = {"cut", "reset", "stall", "short", "wrong", "no_range", "json", "html", "429", "500", "503"}


def name_of(number: int, kind: str = "01Z-00-DX1", site: str = "05") -> str:
    """A slide's file name, as the archive has them."""
    return f"TCGA-{site}-{number:04d}-{kind}.{number:08x}-0000-4000-8000-000000000000.svs"


@dataclass(frozen=True)
class Fault:
    """How one reply goes wrong.

    `cut`: the connection closes before the promised end; `reset`: the same by a TCP reset; `stall`: it stands still,
    open; `short`: half of the bytes, and a length that says so; `wrong`: some bytes are changed; `no_range`: all of the
    file, whatever was asked for; `json`, `html`: a message under status 200; `429`, `500`, `503`: these statuses.
    """

    kind: str
    share: float = 0.5  # of the bytes to send, that go before `cut`, `reset`, `stall` or the changed bytes of `wrong`
    seconds: float = 60  # that `stall` lasts, before the rest follows
    retry_after: int | str | None = None  # what `429` and `503` ask for: seconds, or a date

    def __post_init__(self):
        if self.kind not in FAULTS or not 0 <= self.share < 1:
            raise ValueError(f"no such fault: {self}")


@dataclass
class Record:
    """One request and what was sent for it."""

    path: str
    method: str
    token: bool  # whether one came; which one is nobody's business
    user_agent: str
    time: float
    file_id: str | None = None
    range_start: int | None = None  # the first byte asked for
    status: int | None = None
    first: int | None = None  # the first byte of the file that was sent; None if what was sent is not the file
    sent: int = 0  # bytes of the body that were given to the connection; a client that dies may not have read them all
    fault: str | None = None


@dataclass
class Refusal(Exception):
    """A request answered by an error."""

    status: int
    code: str  # what S3 calls it
    message: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    path: Path | None
    former_ids: tuple[str, ...]
    disposition: str
    metadata: dict  # as in a row of GDC's TSV: {"cases.0.submitter_id": …}


class Archive:
    """What a server holds, how it is to fail, and what it was asked for. All of it may change while it is served."""

    def __init__(self, token: str | None = None, bytes_per_second: int | None = None):
        self.token, self.bytes_per_second = token, bytes_per_second
        self.files: dict[str, File] = {}
        # For each file's id, or for one path only (`/data/…`): what happens to the next requests for its bytes.
        self.faults: dict[str, list[Fault | None]] = defaultdict(list)
        self._records: list[Record] = []
        self._lock = threading.Lock()

    def add(
        self,
        path: Path | None,
        file_name: str,
        file_id: str | None = None,
        md5: str | None = None,
        project: str = "TCGA-LUAD",
        experimental_strategy: str = "Diagnostic Slide",
        access: str = "open",
        state: str = "released",
        site: str = "institution name",
        diagnosis: str = "Adenocarcinoma, NOS",
        size: int | None = None,
        former_ids: Iterable[str] = (),
        disposition: str | None = None,
    ) -> str:
        """Hold one file, and return its id. Without a path only its metadata is served, and size and md5 are needed."""
        file_id, former_ids = file_id or identity(file_name), tuple(former_ids)
        if file_id in self.files:
            raise ValueError(f"{file_id} is held already")
        if md5 is None:
            with open(path, "rb") as stream:
                md5 = hashlib.file_digest(stream, "md5").hexdigest()
        if found := BARCODE.match(file_name):
            slide, (portion, sample, patient, code, kind) = found[0], found.groups()
        else:
            slide = portion = sample = patient = Path(file_name).stem
            code = kind = None
        metadata = {
            "id": file_id,
            "file_id": file_id,
            "file_name": file_name,
            "file_size": os.path.getsize(path) if size is None else size,
            "md5sum": md5,
            "access": access,
            "acl.0": "open" if access == "open" else "phs000178",
            "state": state,
            "data_format": Path(file_name).suffix[1:].upper(),
            "data_type": "Slide Image",
            "data_category": "Biospecimen",
            "experimental_strategy": experimental_strategy,
            "type": "slide_image",
            "submitter_id": slide,
            "version": str(len(former_ids) + 1),
            "data_release": "43.0",
            "created_datetime": "2018-02-27T10:00:00.000000-06:00",
            "updated_datetime": "2025-01-06T08:30:00.000000-06:00",
            "cases.0.submitter_id": patient,
            "cases.0.case_id": identity(patient),
            "cases.0.project.project_id": project,
            "cases.0.diagnoses.0.primary_diagnosis": diagnosis,
            "cases.0.diagnoses.0.diagnosis_is_primary_disease": None,
            "cases.0.tissue_source_site.name": site,
            "cases.0.tissue_source_site.code": code,
            "cases.0.samples.0.submitter_id": sample,
            "cases.0.samples.0.sample_id": identity(sample),
            "cases.0.samples.0.sample_type": SAMPLE_TYPES.get(kind),
            "cases.0.samples.0.tissue_type": {None: None, "11": "Normal"}.get(kind, "Tumor"),
            "cases.0.samples.0.tumor_descriptor": None,
            "cases.0.samples.0.portions.0.submitter_id": portion,
            "cases.0.samples.0.portions.0.slides.0.submitter_id": slide,
            "cases.0.samples.0.portions.0.slides.0.slide_id": identity(slide),
        }
        self.files[file_id] = File(path, former_ids, disposition or file_name, metadata)
        return file_id

    @property
    def requests(self) -> list[Record]:
        """A copy of all records, oldest first. What a client has received is in it."""
        with self._lock:
            return [replace(record) for record in self._records]

    def sent_twice(self, file_id: str) -> int:
        return sent_twice(self.requests, file_id)

    def forced(self, file_id: str) -> int:
        """How many bytes a client had to take in vain: `wrong` ones, and under `no_range` those it did not ask for."""
        records = [record for record in self.requests if record.file_id == file_id]
        unasked = sum(min(r.sent, r.range_start) for r in records if r.fault == "no_range")
        return unasked + sum(record.sent for record in records if record.fault == "wrong")

    def begin(self, record: Record) -> Record:
        with self._lock:
            self._records.append(record)
        return record

    def next_fault(self, *keys: str) -> Fault | None:
        with self._lock:
            return next((self.faults[key].pop(0) for key in keys if self.faults.get(key)), None)

    def versions(self, ids: Iterable[str]) -> list[dict]:
        """GDC's `/files/versions`: what became of each id. An id it never gave is left out."""
        files = list(self.files.values())
        histories = {former: file for file in files for former in (*file.former_ids, file.metadata["id"])}
        found = []
        for asked in ids:
            if asked not in histories:
                continue
            file, latest = histories[asked], histories[asked].metadata
            now = {"filename": latest["file_name"], "size": latest["file_size"], "md5": latest["md5sum"]}
            now |= {"state": "validated", "release": latest["data_release"]}
            entry = {"id": asked, "version": str([*file.former_ids, latest["id"]].index(asked) + 1), **now}
            entry |= {f"latest_{name}": value for name, value in now.items()}
            entry |= {
                "latest_id": latest["id"],
                "latest_version": latest["version"],
                "latest_release": [now["release"]],
            }
            if asked != latest["id"]:
                del entry["latest_md5"]  # the guide of 2025 shows superseded files without it
            found.append(entry)
        return found

    def search(self, parameters: dict) -> tuple[list[dict], dict, dict]:
        """GDC's `/files`: hits, as rows, pagination and warnings. Raises Refusal for what GDC would not understand."""
        try:
            filters = parameters.get("filters")
            filters = json.loads(filters) if isinstance(filters, str) and filters.strip() else filters
            size, begin = int(parameters.get("size", 10)), int(parameters.get("from", 0))
            if min(size, begin) < 0:
                raise ValueError("size and from are not negative")
            held = [file.metadata for file in list(self.files.values())]
            if filters:
                matches(filters, {})  # also if nothing is held
                held = [row for row in held if matches(filters, row)]
        except (ValueError, TypeError) as error:
            raise Refusal(400, "BadRequest", f"Bad Request: {error}") from None
        sort = parameters.get("sort") or ""
        for key in reversed(sort.split(",") if sort else []):
            name, _, direction = key.partition(":")
            held.sort(key=lambda row, name=name: values(row, name), reverse=direction == "desc")
        page, (fields, warnings) = held[begin : begin + size], self.fields(parameters)
        hits = [{key: value for key, value in row.items() if plain(key) in fields | {"id"}} for row in page]
        pagination = {"count": len(hits), "total": len(held), "size": size, "from": begin, "sort": sort}
        pagination |= {"page": begin // max(size, 1) + 1, "pages": -(-len(held) // max(size, 1))}
        return hits, pagination, warnings

    def fields(self, parameters: dict) -> tuple[set[str], dict]:
        """The fields that a request asks for, and GDC's warnings of those that there are not."""
        groups = defaultdict(set)
        for name in {plain(key) for file in list(self.files.values()) for key in file.metadata}:
            groups[name.rpartition(".")[0]].add(name)
        known = set().union(*groups.values())
        wanted, expanded = (set(filter(None, (parameters.get(name) or "").split(","))) for name in ("fields", "expand"))
        unknown = {"fields": wanted - known, "expand": expanded - set(groups)}
        warnings = {name: f"unrecognized values: [{', '.join(sorted(w))}]" for name, w in unknown.items() if w}
        return (wanted or groups[""] - {"id"}).union(*(groups[group] for group in expanded)), warnings


def identity(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def sent_twice(records: Iterable[Record], file_id: str) -> int:
    """How many of a file's bytes were sent again without need: not because what came before was `wrong`."""
    good = [r for r in records if r.file_id == file_id and r.first is not None and r.fault not in ("wrong", "no_range")]
    twice = reached = 0
    for begin, end in sorted((record.first, record.first + record.sent) for record in good):
        twice += max(0, min(end, reached) - begin)
        reached = max(reached, end)
    return twice


@functools.cache
def plain(key: str) -> str:
    """The field of a row's key: cases.submitter_id of cases.0.submitter_id."""
    return re.sub(r"\.\d+", "", key)


def values(row: dict, name: str) -> list:
    return [value for key, value in row.items() if plain(key) == name and value is not None]


def nest(row: dict) -> dict:
    """A row as GDC's JSON: {"cases": [{"submitter_id": …}]}."""
    tree: dict = {}
    for key, value in row.items():
        *way, last = key.split(".")
        functools.reduce(lambda part, step: part.setdefault(step, {}), way, tree)[last] = value

    def with_lists(part):
        if not isinstance(part, dict):
            return part
        return [*map(with_lists, part.values())] if "0" in part else {k: with_lists(v) for k, v in part.items()}

    return with_lists(tree)


def matches(filters: dict, row: dict) -> bool:
    """Whether a file is one that GDC's filters ask for. Raises ValueError or TypeError if they are none."""
    if not isinstance(filters, dict) or "op" not in filters or "content" not in filters:
        raise ValueError(f"filters have `op` and `content`: {json.dumps(filters)}")
    operation, content = filters["op"], filters["content"]
    if operation in ("and", "or"):
        parts = [matches(part, row) for part in content]  # each one, as any may be malformed
        return all(parts) if operation == "and" else any(parts)
    if not isinstance(content, dict) or not isinstance(content.get("field"), str) or "value" not in content:
        raise ValueError(f"`content` has `field` and `value`: {json.dumps(content)}")
    held = values(row, content["field"].removeprefix("files."))
    wanted = content["value"] if isinstance(content["value"], list) else [content["value"]]
    if operation in ("=", "in", "!=", "exclude"):
        exact = {str(value) for value in wanted}
        wild = [".*".join(map(re.escape, value.split("*"))) for value in exact if "*" in value]
        found = any(str(h) in exact or any(re.fullmatch(w, str(h)) for w in wild) for h in held)
        return found == (operation in ("=", "in"))
    if operation in COMPARISONS and len(wanted) == 1:
        return any(COMPARISONS[operation](value, type(value)(wanted[0])) for value in held)
    if operation in ("is", "not") and [str(value).lower() for value in wanted] == ["missing"]:
        return (operation == "is") == (not held)
    raise ValueError(f"no such filter: {json.dumps(filters)}")


def byte_range(header: str | None, size: int) -> range | None:
    """What a Range header asks of a file: None if all of it, as also for what is no range; empty if it has no such."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    begin, end = found.groups() if found else ("", "")
    if not begin and not end or begin and end and int(end) < int(begin):
        return None
    if not begin:
        return range(max(size - int(end), 0), size)
    return range(int(begin), min(int(end) + 1, size) if end else size)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, archive: Archive, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.archive, self.stopping = archive, threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._open: set[socket.socket] = set()
        self._lock, self._free_from = threading.Lock(), 0.0

    def pace(self, count: int, rate: int) -> None:
        """Wait until `count` bytes more may go; all connections share one rate."""
        with self._lock:
            self._free_from = max(self._free_from, time.monotonic()) + count / rate
            wait = self._free_from - time.monotonic()
        self.stopping.wait(wait)

    def process_request(self, request, client_address):
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client may go away
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """End all of it: connections that are kept alive would be answered on."""
        self.stopping.set()
        self.shutdown()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self):
        address = urlsplit(self.path)
        self.place = unquote(address.path).removeprefix("/v0")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        agent, token = self.headers.get("User-Agent", ""), "X-Auth-Token" in self.headers
        record = Record(self.path, self.command, token, agent, time.time())
        self.record = record if self.place == "/requests" else self.server.archive.begin(record)
        self.bucket = False
        try:
            self.answer(dict(parse_qsl(address.query)), body)
        except Refusal as refusal:
            self.refuse(refusal)

    do_HEAD = do_POST = do_GET

    def answer(self, parameters: dict, body: bytes) -> None:
        archive = self.server.archive
        match self.place[1:].split("/"):
            case ["status"]:
                self.send_json({"commit": "0" * 40, "status": "OK", "tag": "7.9", "version": 1})
            case ["requests"]:
                self.send_json([asdict(record) for record in archive.requests])
            case ["files"]:
                self.send_found(parameters | self.payload(body))
            case ["files", "versions", *ids]:
                self.send_json(archive.versions(ids[0].split(",") if ids else self.payload(body).get("ids", [])))
            case ["files", file_id]:
                fields, warnings = archive.fields(parameters)
                row = self.find(file_id).metadata
                row = {key: value for key, value in row.items() if plain(key) in fields}
                self.send_json({"data": nest(row), "warnings": warnings})
            case ["data", file_id]:
                file = self.find(file_id)
                token = self.headers.get("X-Auth-Token")
                if file.metadata["access"] != "open" and (token is None or token != archive.token):
                    why = "Please specify a X-Auth-Token" if token is None else "You don't have access to the data"
                    raise Refusal(403, "AccessDenied", why)
                headers = {"Content-Type": "application/octet-stream", "Content-MD5": file.metadata["md5sum"]}
                self.send_file(file, headers | {"Content-Disposition": f"attachment; filename={file.disposition}"})
            case [file_id, *name] if re.fullmatch(r"[0-9a-f-]{36}", file_id):
                self.bucket, self.record.file_id = True, file_id
                file = archive.files.get(file_id)
                if not file or [file.metadata["file_name"], file.metadata["access"]] != ["/".join(name), "open"]:
                    raise Refusal(404, "NoSuchKey", "The specified key does not exist.")
                parts = -(-file.metadata["file_size"] // S3_PART)
                md5 = file.metadata["md5sum"]
                etag = f'"{md5}"' if parts < 2 else f'"{hashlib.md5(md5.encode()).hexdigest()}-{parts}"'
                changed = formatdate(file.path.stat().st_mtime if file.path else 0, usegmt=True)
                self.send_file(file, {"Content-Type": "binary/octet-stream", "ETag": etag, "Last-Modified": changed})
            case _:
                raise Refusal(404, "NotFound", "The requested URL was not found on the server.")

    def payload(self, body: bytes) -> dict:
        if "json" not in self.headers.get("Content-Type", ""):
            return dict(parse_qsl(body.decode()))
        try:
            payload = json.loads(body or b"{}")
        except ValueError:
            payload = None
        if not isinstance(payload, dict):
            raise Refusal(400, "BadRequest", "Bad Request: the body is not a JSON object")
        return payload

    def find(self, file_id: str) -> File:
        """A file by its id of today: of former ones, only /files/versions knows."""
        self.record.file_id = file_id
        if file_id not in self.server.archive.files:
            raise Refusal(404, "NotFound", f"Data with id {file_id} not found")
        return self.server.archive.files[file_id]

    def send_found(self, parameters: dict) -> None:
        hits, pagination, warnings = self.server.archive.search(parameters)
        if parameters.get("format", "json").lower() != "tsv":
            data = {"hits": [nest(row) for row in hits], "pagination": pagination}
            return self.send_json({"data": data, "warnings": warnings})
        lines = [list(hits[0]) if hits else [], *([str("" if v is None else v) for v in row.values()] for row in hits)]
        table = "".join("\t".join(line) + "\r\n" for line in lines)
        self.send(200, table.encode(), {"Content-Type": "text/tab-separated-values"})

    def refuse(self, refusal: Refusal) -> None:
        kind, body = "json", json.dumps({"error" if refusal.status == 403 else "message": refusal.message})
        if self.bucket:
            key = escape(self.place[1:])
            body = f"<Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message><Key>{key}</Key></Error>"
            kind, body = "xml", f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'
        self.send(refusal.status, body.encode(), {"Content-Type": f"application/{kind}", **refusal.headers})

    def send_json(self, reply: dict | list) -> None:
        self.send(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict) -> None:
        self.send_head(status, len(body), headers)
        if self.command != "HEAD":
            self.record.sent += len(body)
            self.wfile.write(body)

    def send_head(self, status: int, length: int, headers: dict) -> None:
        self.record.status = status
        self.send_response(status)
        for name, value in {"Content-Length": length, **headers}.items():
            self.send_header(name, str(value).encode().decode("latin-1"))  # names go as UTF-8
        self.end_headers()

    def send_file(self, file: File, headers: dict) -> None:
        """Send a file, or as much of it as is asked for, unless a fault is due."""
        if file.path is None:
            raise Refusal(404, "NoSuchKey", f"Data with id {self.record.file_id} not found")
        fault = None if self.command == "HEAD" else self.server.archive.next_fault(self.place, self.record.file_id)
        kind = fault.kind if fault else None
        size = file.path.stat().st_size
        asked = byte_range(self.headers.get("Range"), size)
        if self.headers.get("If-Range", headers.get("ETag")) != headers.get("ETag"):
            asked = None
        self.record.range_start = None if asked is None else asked.start
        if kind == "no_range":
            kind, asked = None if asked is None else kind, None
        self.record.fault = kind
        if kind in ("429", "500", "503"):
            pause = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            raise Refusal(int(kind), "SlowDown", "internal server error", pause)
        if kind == "json":
            return self.send_json({"message": "internal server error"})
        if kind == "html":
            return self.send(200, b"<!doctype html><html>Please log in.</html>", {"Content-Type": "text/html"})
        if asked is not None and not asked:
            raise Refusal(416, "InvalidRange", "Requested range not satisfiable", {"Content-Range": f"bytes */{size}"})
        span = range(size) if asked is None else asked
        span = span[: len(span) // 2] if kind == "short" else span
        headers = {"Accept-Ranges": "bytes", **headers}
        if asked is not None:
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        self.send_head(200 if asked is None else 206, len(span), headers)
        if self.command == "HEAD":
            return
        self.record.first = span.start
        with open(file.path, "rb") as stream:
            broken = kind in ("cut", "reset", "stall", "wrong")
            middle = span.start + (int(len(span) * fault.share) if broken else len(span))
            self.send_bytes(stream, range(span.start, middle))
            if kind in ("cut", "reset"):
                return self.break_off(by_reset=kind == "reset")
            if kind == "stall":
                self.server.stopping.wait(fault.seconds)
            if kind == "wrong":
                stream.seek(middle)
                changed = bytes(byte ^ 0xFF for byte in stream.read(min(16, span.stop - middle)))
                self.record.sent += len(changed)
                self.wfile.write(changed)
                middle += len(changed)
            self.send_bytes(stream, range(middle, span.stop))

    def send_bytes(self, stream, span: range) -> None:
        """Send bytes of a file without copying them, at most as fast as the archive allows."""
        begin = span.start
        while begin < span.stop:
            chunk = min(CHUNK, span.stop - begin)
            if rate := self.server.archive.bytes_per_second:
                chunk = min(chunk, max(rate // 20, 1))
                self.server.pace(chunk, rate)
            if self.server.stopping.is_set():
                raise ConnectionAbortedError("the server stops")
            sent = 0
            self.record.sent += chunk  # before they go: who has them all finds them counted
            try:
                sent = os.sendfile(self.connection.fileno(), stream.fileno(), begin, chunk)
            finally:
                self.record.sent += sent - chunk
            if not sent:
                raise ConnectionAbortedError("the file has shrunk")
            begin += sent

    def break_off(self, by_reset: bool) -> None:
        self.close_connection = True
        if by_reset:
            queued = struct.pack("i", 1)  # a reset discards what is queued, which was counted as sent
            while any(queued) and not self.server.stopping.wait(0.001):
                queued = fcntl.ioctl(self.connection.fileno(), termios.TIOCOUTQ, queued)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *_):
        pass


@contextmanager
def serving(archive: Archive) -> Iterator[str]:
    """Serve an archive in this process, and yield the address to use instead of https://api.gdc.cancer.gov."""
    server = Server(archive)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.url
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a folder's slides as the Genomic Data Commons does.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bytes-per-second", type=int)
    options = parser.parse_args()
    archive = Archive(bytes_per_second=options.bytes_per_second)
    for path in sorted(options.folder.glob("*.svs")):
        archive.add(path, path.name)
    server = Server(archive, options.port)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
