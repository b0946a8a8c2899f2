"""Fetching slides from a real HTTP server on loopback."""

import hashlib
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from launching import gigapipe

from gigapipe.slides.phantom import cohort, render, write_slide


class Archive(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/missing"):
            return self.send_error(404)
        body = b"<html>please log in</html>" if self.path.startswith("/page") else self.server.slide
        if self.path.startswith("/earlier") and "Range" in self.headers:
            return self.send_part(body, int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) - 100)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Disposition", "attachment; filename=../../evil.svs")
        self.end_headers()
        half = self.path.startswith(("/short", "/earlier"))
        self.wfile.write(body[: len(body) // 2] if half else body)

    def send_part(self, body: bytes, begin: int):
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        self.wfile.write(body[begin:])

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
    "/short.svs": ([], "run it again"),
    "/earlier.svs": ([], "a range that was not asked for"),
    "/missing.svs": ([], "404"),
    "/page.svs": ([], "not a slide"),
    "/a.svs": (["--md5", "0" * 32], "md5"),
}


@pytest.fixture(scope="module")
def tried(archive, tmp_path_factory) -> dict:
    """What became of each of `BAD`, and of a server that is not there: side by side, for they wait between tries."""
    folder = tmp_path_factory.mktemp("bad")
    addresses = {path: archive + path for path in BAD} | {"nobody": "http://127.0.0.1:9/a.svs"}

    def download(name: str) -> subprocess.CompletedProcess:
        extra, _ = BAD.get(name, ([], ""))
        target = folder / name.strip("/") / "a.svs"
        return gigapipe("download", addresses[name], target, "--tries", 2, *extra, check=False, process=True)

    with ThreadPoolExecutor(len(addresses)) as pool:
        done = dict(zip(addresses, pool.map(download, addresses), strict=True))
    return {"folder": folder, **done}


@pytest.mark.parametrize("path", BAD)
def test_what_is_not_the_slide_leaves_nothing(tried, path):
    _, message = BAD[path]
    last = tried[path].stdout.splitlines()[-1]
    assert tried[path].returncode == 1
    assert message in last and path in last
    assert not list((tried["folder"] / path.strip("/")).iterdir())


def test_a_server_that_is_not_there_is_named(tried):
    done = tried["nobody"]
    assert done.returncode == 1 and "127.0.0.1:9" in done.stdout and "Traceback" not in done.stdout
