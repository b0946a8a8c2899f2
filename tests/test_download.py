"""Fetching slides from a real HTTP server on loopback, which may answer in ways of its own."""

import base64
import gzip
import hashlib
import re
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from launching import gigapipe

from gigapipe.errors import InputError
from gigapipe.exit_status import AGAIN, NEVER
from gigapipe.slides import download as module
from gigapipe.slides.download import download
from gigapipe.slides.phantom import cohort, render, write_slide
from gigapipe.slides.replies import pause_of


class Archive(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/missing"):
            return self.send_error(404)
        body = b"<html>please log in</html>" if self.path.startswith("/page") else self.server.slide
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Disposition", "attachment; filename=../../evil.svs")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path.startswith("/short") else body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("slide") / "p.svs"
    write_slide(path, render(cohort(patients=6)[0]))
    return path.read_bytes()


@pytest.fixture(scope="module")
def archive(slide):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    server.slide = slide
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_slide_arrives_whole_under_the_name_that_was_asked_for(archive, slide, tmp_path):
    target = tmp_path / "slides" / "a.svs"
    gigapipe("download", f"{archive}/a.svs", target, "--md5", hashlib.md5(slide).hexdigest())
    assert target.read_bytes() == slide
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.svs"]


BAD = {
    "/short.svs": ([], "run it again", AGAIN),
    "/missing.svs": ([], "404", NEVER),
    "/page.svs": ([], "not a slide", AGAIN),
    "/a.svs": (["--md5", "0" * 32], "md5", NEVER),
}


@pytest.fixture(scope="module")
def tried(archive, tmp_path_factory) -> dict:
    """What became of each of `BAD`, and of a server that is not there: side by side, for they wait between tries."""
    folder = tmp_path_factory.mktemp("bad")
    addresses = {path: archive + path for path in BAD} | {"nobody": "http://127.0.0.1:9/a.svs"}

    def download(name: str) -> subprocess.CompletedProcess:
        extra = BAD[name][0] if name in BAD else []
        target = folder / name.strip("/") / "a.svs"
        return gigapipe("download", addresses[name], target, "--tries", 2, *extra, check=False, process=True)

    with ThreadPoolExecutor(len(addresses)) as pool:
        done = dict(zip(addresses, pool.map(download, addresses), strict=True))
    return {"folder": folder, **done}


@pytest.mark.slow
@pytest.mark.parametrize("path", BAD)
def test_what_is_not_the_slide_leaves_nothing(tried, path):
    _, message, status = BAD[path]
    last = tried[path].stdout.splitlines()[-1]
    assert tried[path].returncode == status
    assert message in last and path in last
    assert not list((tried["folder"] / path.strip("/")).iterdir())


def test_a_server_that_is_not_there_is_named(tried):
    done = tried["nobody"]
    assert done.returncode == AGAIN and "127.0.0.1:9" in done.stdout and "Traceback" not in done.stdout


class Odd(BaseHTTPRequestHandler):
    """A server that sends half of a file, and answers who asks for the rest as the first part of the path says."""

    def do_GET(self):
        kind, slide = self.path.split("/")[1], self.server.slide
        number = self.server.asked[kind] = self.server.asked[kind] + 1
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        if status := re.fullmatch(r"(\d+)(-for-ever)?", kind):
            return self.send(slide) if number > 1 and not status[2] else self.send(b"", int(status[1]))
        if kind in BODIES:
            return self.send(BODIES[kind](slide))
        if kind == "encoded":
            return self.send(gzip.compress(slide, 1), 200, {"Content-Encoding": "gzip"})
        if kind.startswith("md5"):  # and no length: that the first time half is missing, nothing else tells
            md5 = hashlib.md5(slide)
            said = md5.hexdigest() if kind == "md5-hex" else base64.b64encode(md5.digest()).decode()
            return self.send(slide[: len(slide) // (2 if number == 1 else 1)], 200, {"Content-MD5": said}, length=None)
        if kind == "capped":
            return self.part(begin, begin + 20_000)
        if kind == "changed":  # since the first half was sent
            other = slide[:100] + b"other" + slide[105 : len(slide) // 2]
            return self.send(other, length=len(slide)) if number == 1 else self.send(slide)
        if not asked:
            return self.send(slide[: len(slide) // 2] if number == 1 else slide, length=len(slide))
        if kind == "earlier":
            return self.part(begin - 100)
        if kind == "under-200":
            return self.part(begin, status=200)
        if kind == "star":
            return self.part(begin, total="*")
        if kind == "star-capped":
            return self.part(begin, begin + 5_000, total="*") if begin < len(slide) else self.nothing_there()
        if kind == "whole":
            return self.send(slide)
        if kind == "later":
            return self.part(begin + 100)
        if kind == "unnamed":
            return self.send(slide[begin:], 206)
        if kind == "refused-416":
            return self.nothing_there("") if begin < len(slide) else self.nothing_there()
        return self.send(b"no ranges here", int(kind.removeprefix("refused-")))

    def part(self, begin: int, end: int | None = None, total: str | None = None, status: int = 206):
        slide = self.server.slide
        end = min(end or len(slide), len(slide))
        self.send(slide[begin:end], status, {"Content-Range": f"bytes {begin}-{end - 1}/{total or len(slide)}"})

    def nothing_there(self, total: str | None = None):
        total = str(len(self.server.slide)) if total is None else total
        self.send(b"", 416, {"Content-Range": f"bytes */{total}"} if total else {})

    def send(self, body: bytes, status: int = 200, headers: dict | None = None, length: int | None = -1):
        self.send_response(status, "odd")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


BODIES = {
    "text": lambda _: b"Internal Server Error: upstream timed out\n" * 3,
    "marked": lambda _: b'\xef\xbb\xbf{"message": "internal server error"}',
    "xml": lambda _: b"  <?xml version='1.0'?><Error><Code>SlowDown</Code></Error>",
    "utf-16": lambda _: "<html>Anmeldung nötig</html>".encode("utf-16"),
    "empty": lambda _: b"",
    "gzip": lambda slide: gzip.compress(slide, 1),
    "zip": lambda slide: b"PK\x03\x04" + slide,
}


@pytest.fixture
def odd(slide, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.slide, server.asked = slide, Counter()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


GOOD = {"earlier": 2, "under-200": 2, "star": 2, "whole": 2, "changed": 3, "capped": None, "star-capped": None}
GOOD |= {"later": 3, "unnamed": 3, "refused-416": 3, "refused-400": 3, "refused-501": None}
GOOD |= {str(status): 2 for status in (429, 500, 507, 520, 522, 599)}


@pytest.mark.parametrize("known", ["md5 and size", "md5", "nothing"])
@pytest.mark.parametrize("kind", GOOD)
def test_a_slide_arrives_however_a_server_gives_it(odd, slide, tmp_path, kind, known):
    md5 = hashlib.md5(slide).hexdigest() if "md5" in known else None
    download([f"{odd.url}/{kind}/a.svs"], tmp_path / "a.svs", md5, len(slide) if "size" in known else None)
    assert (tmp_path / "a.svs").read_bytes() == slide
    assert odd.asked[kind] == (GOOD[kind] or odd.asked[kind]) and odd.asked[kind] < 2 + len(slide) / 5_000


@pytest.mark.parametrize("kind", ["md5", "md5-hex"])
def test_a_checksum_that_the_server_says_is_held_to_where_the_sheet_knows_none(odd, slide, tmp_path, kind):
    download([f"{odd.url}/{kind}/a.svs"], tmp_path / "a.svs")
    assert (tmp_path / "a.svs").read_bytes() == slide and odd.asked[kind] == 2


@pytest.mark.parametrize(
    "kind, words, times",
    [
        ("text", "not a slide but 'Internal Server Error: upstream timed out Internal", 3),
        ("marked", """not a slide but '{"message": "internal server error"}'""", 3),
        ("xml", "<Code>SlowDown</Code>", 3),
        ("utf-16", "not a slide but '<html>Anmeldung nötig</html>'", 3),
        ("empty", "the server sends no data", 3),
        ("503-for-ever", "the server answers 503, 3 times in succession", 3),
        ("522-for-ever", "the server answers 522, 3 times in succession", 3),
        ("gzip", "the response is compressed (gzip)", 1),
        ("encoded", "the response is compressed (gzip)", 1),
        ("zip", "the response is compressed (zip)", 1),
        ("418-for-ever", "418 odd; correct `source`", 1),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_what_comes_in_place_of_a_slide_is_said(odd, slide, tmp_path, kind, words, times, known):
    md5, size = (hashlib.md5(slide).hexdigest(), len(slide)) if known else (None, None)
    with pytest.raises(InputError) as refused:
        download([f"{odd.url}/{kind}/a.svs"], tmp_path / "a.svs", md5, size, tries=3)
    assert words in str(refused.value) and f"{odd.url}/{kind}/a.svs: " in str(refused.value)
    assert odd.asked[kind] == times and not list(tmp_path.iterdir())


def test_a_server_that_refuses_leaves_it_to_a_mirror(odd, slide, tmp_path):
    addresses = [f"{odd.url}/{kind}/a.svs" for kind in ("418-for-ever", "gzip", "whole")]
    download(addresses, tmp_path / "a.svs", hashlib.md5(slide).hexdigest())
    assert (tmp_path / "a.svs").read_bytes() == slide


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/a.svs", "a.svs", "http://"])
def test_an_address_that_is_none_is_not_tried_again(tmp_path, monkeypatch, address):
    monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("waits"))
    with pytest.raises(InputError, match="correct it"):
        download([address], tmp_path / "a.svs")


def test_what_a_server_asks_to_wait_may_be_a_date(odd):
    reply = module.requests.Response()
    for said, seconds in (("7", 7), (formatdate(time.time() + 30, usegmt=True), 29.5), ("soon", 0), ("99999", 600)):
        reply.headers["Retry-After"] = said
        assert pause_of(reply) == pytest.approx(seconds, abs=1)
