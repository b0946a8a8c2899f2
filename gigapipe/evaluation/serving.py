"""Results in a web browser: the report, and slides with their maps in a viewer, for the user of this machine only.

The server listens on the loopback interface. Other users of the machine can reach that, too; therefore every address
begins with a token that only the user has been told. Pages of other sites, which a browser may have open, are kept away
by the same token, and by the name of the host that a request must have. The browser is told to load nothing from other
hosts. Only files in the results are given, not folders, and not what links lead to outside.
"""

import asyncio
import hmac
import logging
import mimetypes
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler, StaticFileHandler

from gigapipe.errors import InputError
from gigapipe.evaluation import pages, viewer
from gigapipe.pyramids.folders import NAME, OVERVIEW, left_out

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
NAMES = {LOOPBACK, "localhost"}
POLICY = (
    "default-src 'self' 'unsafe-inline' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "form-action 'none'; frame-ancestors 'self'; base-uri 'none'"
)
"""What a page may load and run. Neuroglancer compiles programs, and runs workers."""


class _Guarded(RequestHandler):
    """Answers only who knows the token, and calls this machine by its own name."""

    token: str
    results: Path

    def initialize(self, token: str, results: Path, **more) -> None:
        self.token, self.results = token, results

    def prepare(self) -> None:
        given = self.request.path.split("/")[1]
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPError(404)
        if self.request.host.rpartition(":")[0] not in NAMES:
            raise HTTPError(403)

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")  # an address has the token in it
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")

    def log_exception(self, typ, value, tb) -> None:
        if not isinstance(value, HTTPError):  # whose lines have the token in them
            logger.error(f"{self.request.method}: {value!r}", exc_info=(typ, value, tb))

    def write_error(self, status_code: int, **more) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        error = more.get("exc_info", (None, None))[1]
        said = error.log_message if isinstance(error, HTTPError) and error.log_message else f"error {status_code}"
        self.finish(f"{said}\n")


class _Start(_Guarded):
    """The first page: the report, and every slide."""

    def get(self) -> None:
        pyramids = sorted(path for path in (self.results / "pyramids").glob("[!.]*") if path.is_dir())
        slides = [
            {
                "name": path.name,
                "picture": (path / OVERVIEW).exists(),
                "why": left_out(path) or viewer.why_not(path),
                "maps": [name.removesuffix(" µm") for name in viewer.maps_of(self.results, path.name).values()],
            }
            for path in pyramids
        ]
        report = (self.results / "report.html").exists()
        self.finish(pages.page("serving", results=self.results.name, report=report, slides=slides))


class _Slide(_Guarded):
    """Leads to the viewer, which is told what to show of a slide."""

    def get(self, slide: str) -> None:
        if "/" in slide or slide.startswith("."):
            raise HTTPError(404)
        address = f"{self.request.protocol}://{self.request.host}/{self.token}/"
        try:
            shown = viewer.state(self.results, slide, f"{address}results/")
        except InputError as error:
            raise HTTPError(404, str(error).replace("%", "%%")) from None
        self.redirect(f"{address}v/{quote(slide)}/index.html#!{shown}")


class _Events(_Guarded):
    """A stream of events without one: the page, made for a program in Python, waits for it beside what it is told."""

    async def get(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store")
        self._gone = asyncio.Event()
        await self.flush()
        await self._gone.wait()

    def on_connection_close(self) -> None:
        self._gone.set()


class _Files(_Guarded, StaticFileHandler):
    """Files in a folder. A link to a store, as the report has it, leads to the viewer."""

    def initialize(self, token: str, results: Path, folder: Path) -> None:  # type: ignore[override]
        _Guarded.initialize(self, token, results)
        StaticFileHandler.initialize(self, str(folder))

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        real = Path(absolute_path).resolve()
        if not real.is_relative_to(Path(root).resolve()):
            raise HTTPError(403)
        if real.name == NAME and real.is_dir():
            self.redirect(f"/{self.token}/slide/{real.parent.name}")
            return None
        return super().validate_absolute_path(root, absolute_path)

    def get_content_type(self) -> str:
        kind, _ = mimetypes.guess_type(self.absolute_path or "")
        return kind or "application/octet-stream"  # chunks have no suffix


def application(results: Path, page: Path, token: str) -> Application:
    """What answers requests; `page` is the folder of the viewer's page."""
    common = {"token": token, "results": results}
    return Application(
        [
            (r"/[^/]+/", _Start, common),
            (r"/[^/]+/slide/([^/]+)", _Slide, common),
            (r"/[^/]+/v/[^/]+/(.*)", _Files, common | {"folder": page}),
            (r"/[^/]+/events/[^/]+", _Events, common),
            (r"/[^/]+/results/(.*)", _Files, common | {"folder": results}),
        ],
        log_function=lambda handler: None,  # addresses have the token in them
    )


def serve(results: Path, page: Path, port: int, ready: Callable[[str], None]) -> None:
    """Answer requests until the process is ended; `ready` is called with the address, which has the token in it.

    `page` is the folder of the viewer's page. `port` 0 takes one that is free. InputError if there are no results.
    """
    if not (results / "pyramids").is_dir() and not (results / "report.html").exists():
        raise InputError(f"serve: {results} has neither report.html nor pyramids; give the results folder of a run")
    token = secrets.token_urlsafe(24)

    async def run() -> None:
        try:
            sockets = bind_sockets(port, LOOPBACK)
        except (OSError, OverflowError) as error:
            raise InputError(f"serve: port {port} cannot be used ({error}); give another one, or none") from None
        HTTPServer(application(results, page, token)).add_sockets(sockets)
        ready(f"http://{LOOPBACK}:{sockets[0].getsockname()[1]}/{token}/")
        await asyncio.Event().wait()

    asyncio.run(run())
