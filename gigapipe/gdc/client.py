"""What the Genomic Data Commons is asked, and how: https://docs.gdc.cancer.gov/API/Users_Guide."""

import json
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from gigapipe.configuration.configuration import Archive
from gigapipe.errors import InputError
from gigapipe.progress import Progress

API = Archive().api

PAGE = 500  # files asked for at a time
TOKEN = "X-Auth-Token"


class Session(requests.Session):
    """Connections that carry the token to the host it is for, and to no other that this one may send us to."""

    def __init__(self, token: str | None = None):
        super().__init__()
        if token:
            self.headers[TOKEN] = token

    def rebuild_auth(self, prepared_request, response):
        # requests takes back its own Authorization header when a redirection leaves the host, and knows no other.
        if self.should_strip_auth(response.request.url, prepared_request.url):
            prepared_request.headers.pop(TOKEN, None)
        super().rebuild_auth(prepared_request, response)


def addresses_of(source: str, filename: str, api: str = API, mirrors: Sequence[str] = ()) -> list[str]:
    """Where a slide is to be had: its http(s) `source` itself, or for `gdc:UUID` the archive, and then the mirrors.

    A mirror is laid out as the open-data bucket on AWS is: `UUID/filename`.
    """
    if not source.startswith("gdc:"):
        return [source]
    file_id = quote(source.removeprefix("gdc:"), safe="")
    copies = [f"{mirror.rstrip('/')}/{file_id}/{quote(filename, safe='')}" for mirror in mirrors]
    return [f"{api.rstrip('/')}/data/{file_id}", *copies]


def read_token(path: Path) -> str:
    """The token that the GDC's portal gave, from a file that nobody else can read. Raises InputError without one."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise InputError(f"token {path}: others can read it; run `chmod 600 {path}`")
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"token {path}: cannot be read ({error.__class__.__name__}); give the portal's file") from None
    if not token.isascii() or not token.isprintable() or not token:
        raise InputError(f"token {path}: holds no token; fetch it anew from the GDC's portal")
    return token


class Client:
    """The files of the archive at `api`, by their metadata."""

    def __init__(self, api: str = API, timeout: float = 60):
        self.api = api.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        retry = Retry(
            6, backoff_factor=1, backoff_jitter=1, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def files(self, filters: dict, fields: list[str]) -> Iterator[dict]:
        """Every file that `filters` (of the API's own form) choose, page by page, in the order of their names.

        Raises InputError if the archive cannot be asked, or its list changes while it is read.
        """
        begin, total, bar = 0, None, None
        while total is None or begin < total:
            asked = {"filters": filters, "fields": ",".join(fields), "size": PAGE, "from": begin}
            data = self._ask("POST", "files", json=asked | {"sort": "file_name:asc", "format": "JSON"})["data"]
            total = data["pagination"]["total"]
            bar = bar or Progress(what="asking the GDC", unit="files", total=total, delay=2)
            if not data["hits"] and begin < total:
                raise InputError(f"{self.api}: promised {total} files and listed {begin}; run it again")
            yield from data["hits"]
            begin += len(data["hits"])
            bar.update(len(data["hits"]))
        if bar is not None:
            bar.close()

    def why_absent(self, source: str, filename: str) -> str:
        """Why the archive has no file `gdc:UUID`, in a line that says what to do."""
        file_id = source.removeprefix("gdc:")
        found = self._ask("GET", f"files/versions/{quote(file_id, safe='')}", missing=[])
        latest = found[0].get("latest_id") if found else None
        if not latest and filename:
            same_name = {"op": "in", "content": {"field": "file_name", "value": [filename]}}
            latest = next((file["id"] for file in self.files(same_name, ["file_name"])), None)
        name = filename or source
        if latest in (None, file_id):
            return f"slide {name}: {self.api} has no file {file_id} (any more); remove it from the sample sheet"
        return (
            f"slide {name}: was re-released as {latest}, and {file_id} is no more; run `gigapipe gdc refresh SHEET`, "
            "which brings the sample sheet up to date"
        )

    def _ask(self, method: str, path: str, missing=None, **options):
        url = f"{self.api}/{path}"
        try:
            reply = self._session.request(method, url, timeout=self._timeout, **options)
            if reply.status_code == 404 and missing is not None:
                return missing
            reply.raise_for_status()
            return reply.json()
        except (requests.RequestException, json.JSONDecodeError) as error:
            raise InputError(f"{url}: {error}; run it again, or correct the address") from None
