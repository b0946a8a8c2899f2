"""`gigapipe serve`: over real loopback HTTP, what it gives and what it keeps; and the viewer, in a headless browser."""

import asyncio
import base64
import contextlib
import http.client
import importlib.util
import io
import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from launching import GIGAPIPE, gigapipe
from PIL import Image
from requirements import missing

from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.folders import leave_out
from gigapipe.pyramids.maps import ActivationMap, write_map
from gigapipe.pyramids.settings import Settings
from gigapipe.slides.phantom import cohort, render, write_slide

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A report, slides with a map that speaks for `b` on the left and against it on the right, and one left out.

    Slide `old` is stored in OME-Zarr 0.4, and `jpeg` in a codec that no web viewer reads.
    """
    if importlib.util.find_spec("neuroglancer") is None:
        missing("neuroglancer is not installed (`pip install 'gigapipe[serve]'`), so nothing is served")
    folder = tmp_path_factory.mktemp("served") / "results"
    write_slide(folder / "phantom/slide.svs", render(cohort(patients=6)[0]))
    for name, settings in {
        "slide": {},
        "old": {"ome_zarr": "0.4"},
        "jpeg": {"ome_zarr": "0.4", "codec": "jpeg"},
    }.items():
        build_pyramid(folder / "phantom/slide.svs", folder / "pyramids" / name, [2, 16], Settings(**settings))
    values = np.zeros((2, 1, 2), np.float32)
    values[1] = [[3, -3]]
    places = ActivationMap(values, ["a", "b"], [0.0, 0.0], 16, 16, 32, (0.0, 0.0))
    for name in ("slide", "old"):
        write_map(folder / "16um/maps" / name, places, name, tuple(Pyramid(folder / "pyramids" / name).source["mpp"]))
    leave_out(folder / "pyramids/other", "slide other: <b>no tissue</b> was found")
    (folder / "report.html").write_text("<p>the report</p>")
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "outward.txt").symlink_to("../secret.txt")
    return folder


@contextlib.contextmanager
def served(results: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address that `gigapipe serve` tells, and its process."""
    command = [GIGAPIPE, "serve", str(results)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  a shell's `&` ignores it
    ) as process:
        try:
            said, _, address = process.stdout.readline().strip().partition(": ")
            assert said == "open in a web browser", said + address
            yield address, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(timeout=20) == 0
            finally:
                process.kill()
            assert process.stdout.read() == ""  # above all no line with the token


def answer(address: str, path: str = "", host: str | None = None, method: str = "GET") -> tuple[int, str, dict]:
    """Status, text and headers; the path is sent as it is."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.netloc, timeout=20)
    connection.request(method, place.path + path, headers={"Host": host} if host else {})
    got = connection.getresponse()
    return got.status, got.read().decode("utf-8", "replace"), dict(got.headers)


def test_only_files_of_the_results_are_given_and_only_to_who_knows_the_token(results):
    with served(results) as (address, process):
        status, page, headers = answer(address)
        assert status == 200 and "results/report.html" in page and 'href="slide/slide"' in page
        assert "maps at 16 µm per pixel" in page and "&lt;b&gt;no tissue" in page and 'href="slide/other"' not in page
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer" and headers["X-Content-Type-Options"] == "nosniff"
        assert answer(address, "results/report.html")[1] == "<p>the report</p>"
        assert json.loads(answer(address, "results/pyramids/slide/image.zarr/zarr.json")[1])["node_type"] == "group"
        for link in ("results/pyramids/slide/image.zarr", "results/16um/maps/slide/image.zarr"):
            status, _, headers = answer(address, link)
            assert status == 302 and urlsplit(headers["Location"]).path == f"{urlsplit(address).path}slide/slide"

        kept = {
            "results/../secret.txt", "results/%2e%2e/secret.txt", "results/..%2fsecret.txt", "results//etc/passwd",
            "results/outward.txt", "results/", "results/pyramids/", "results/pyramids/slide", "results/missing.txt",
            "v/slide/../../../secret.txt", "v/slide/%2e%2e/__init__.py", "slide/..", "slide/other", "slide/missing",
            "slide/%2e%2e%2f%2e%2e%2fsecret",
        }  # fmt: skip
        for path in kept:
            status, text, _ = answer(address, path)
            assert status in (403, 404) and "secret\n" not in text and "root:" not in text, path
        assert answer(address, "slide/other")[1] == "slide other: there is no pyramid\n"
        assert "its codec jpeg is not read by web viewers" in answer(address, "slide/jpeg")[1] and "its codec" in page
        server = f"http://{urlsplit(address).netloc}/"
        for path in ("", "report.html", "results/report.html", "x/results/report.html"):
            assert answer(server, path)[0] == 404
        assert answer(address, host="example.org")[0] == 403  # a name that another site has given this address
        assert answer(address, method="POST")[0] == 405
        taken = gigapipe("serve", results, "--port", urlsplit(address).port, check=False)
        assert taken.returncode == 1 and "Address already in use); give another one, or none" in taken.stdout
        listening = [c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"]
    with served(results) as (again, _):
        assert urlsplit(again).path != urlsplit(address).path


def test_a_folder_without_results_is_not_served(tmp_path, results):
    refused = gigapipe("serve", tmp_path, check=False)
    assert refused.returncode == 1
    assert f"{tmp_path} has neither report.html nor pyramids" in refused.stdout


@pytest.mark.parametrize("slide", ["slide", "old"])
def test_the_viewer_shows_the_slide_and_the_map_over_it_and_asks_no_other_host(results, tmp_path, browser, slide):
    with served(results) as (address, _):
        pixels, asked = asyncio.run(shown(browser, tmp_path, f"{address}slide/{slide}"))
    here = f"http://{urlsplit(address).netloc}/"
    assert len(asked) > 10 and not [url for url in asked if not url.startswith((here, "data:", "blob:"))]
    red, green, blue = np.moveaxis(pixels.astype(int), 2, 0)
    places = {"for": red - blue > 60, "against": blue - red > 60}
    left, right = (np.argwhere(place)[:, 1].mean() for place in places.values())
    assert all(place.sum() > 2000 for place in places.values()) and left < right
    assert ((abs(red - green) < 25) & (red > 200)).sum() > 50_000  # glass, and what is around it


async def shown(browser: str, folder: Path, address: str) -> tuple[np.ndarray, list[str]]:
    """What a page looks like when it no longer changes, and all addresses that it has asked for."""
    from tornado.websocket import websocket_connect

    command = [browser, "--headless", "--no-sandbox", f"--user-data-dir={folder / 'profile'}", "--window-size=1300,800"]
    command += ["--remote-debugging-port=0", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        told = folder / "profile/DevToolsActivePort"
        until = time.monotonic() + 60
        while not (told.exists() and told.read_text()):
            assert time.monotonic() < until and process.poll() is None, "the browser does not start"
            await asyncio.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{told.read_text().split()[0]}/json") as tabs:
            page = next(tab for tab in json.load(tabs) if tab["type"] == "page")
        socket = await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=50_000_000)
        asked: list[str] = []

        async def send(method: str, number: int, session: dict, **parameters) -> None:
            await socket.write_message(json.dumps({"id": number, "method": method, "params": parameters} | session))

        async def call(method: str, **parameters) -> dict:
            await send(method, 1, {}, **parameters)
            while (message := json.loads(await socket.read_message())).get("id") != 1:
                if message.get("method") == "Network.requestWillBeSent":
                    asked.append(message["params"]["request"]["url"])
                elif message.get("method") == "Target.attachedToTarget":  # a worker: what it asks for is told, too
                    session = {"sessionId": message["params"]["sessionId"]}
                    await send("Network.enable", 2, session)
                    await send("Runtime.runIfWaitingForDebugger", 3, session)
            return message

        attach = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
        steps = ("Network.enable", {}), ("Target.setAutoAttach", attach), ("Page.navigate", {"url": address})
        for method, parameters in steps:
            done = await call(method, **parameters)
            assert "result" in done, done
        pictures, said = [b""] * 3, ""
        until = time.monotonic() + 60
        while len(set(pictures[-3:])) > 1 or not any(re.search(r"/maps/.*/0/.*/0$", url) for url in asked):  # a chunk
            assert time.monotonic() < until, f"the viewer does not come to rest {said}"
            await asyncio.sleep(1)
            taken = await call("Page.captureScreenshot")
            said = taken.get("error", "")  # a browser that is busy takes no picture
            if not said:
                pictures.append(base64.b64decode(taken["result"]["data"]))
        return np.asarray(Image.open(io.BytesIO(pictures[-1])).convert("RGB")), asked
    finally:
        process.terminate()
        process.wait()
