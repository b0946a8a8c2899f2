"""What the Genomic Data Commons is asked, and how: https://docs.gdc.cancer.gov/API/Users_Guide."""

import logging
import random
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import requests
from pydantic import TypeAdapter, ValidationError

from gigapipe.configuration.sources import Archive
from gigapipe.disks import remedy
from gigapipe.errors import InputError, Unavailable
from gigapipe.gdc.answers import Found, Named, Version, fields_of, what_is_wrong
from gigapipe.progress import Progress
from gigapipe.slides.download import UNUSABLE
from gigapipe.slides.replies import passes, pause_of, quoted, words_of

logger = logging.getLogger(__name__)

API = Archive().api

PAGE = 500  # files asked for at a time
TOKEN = "X-Auth-Token"
WAITS = (1, 2, 4, 8, 16, 32)  # seconds before what the archive could not answer is asked again

F = TypeVar("F", bound=Named)


class Session(requests.Session):
    """Connections that carry the token to the archive at `api`, and to no mirror or other host that it sends us to."""

    def __init__(self, token: str | None = None, api: str = API):
        super().__init__()
        self._token, self._origin = token, origin(api)

    def prepare_request(self, request):
        prepared = super().prepare_request(request)
        if self._token and origin(prepared.url) == self._origin:
            prepared.headers[TOKEN] = self._token
        return prepared

    def rebuild_auth(self, prepared_request, response):
        # requests takes back its own Authorization header when a redirection leaves the host, and knows no other.
        if origin(prepared_request.url) != self._origin:
            prepared_request.headers.pop(TOKEN, None)
        super().rebuild_auth(prepared_request, response)


def origin(address: str | None) -> tuple[str, str | None, int | None]:
    """What an address must share with another for both to be one server: its scheme, its host, and its port."""
    parts = urlsplit(address or "")
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


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
    except OSError as error:
        raise InputError(f"token {path}: cannot be read ({error.strerror}); {remedy(error)}") from None
    except UnicodeDecodeError:
        raise InputError(f"token {path}: is not a text file; give the file from the portal") from None
    if not token.isascii() or not token.isprintable() or not token:
        raise InputError(f"token {path}: contains no token; download it again from the GDC portal")
    return token


class Client:
    """The files of the archive at `api`, by their metadata."""

    def __init__(self, api: str = API, timeout: float = 60):
        self.api = api.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()

    def files(self, filters: dict, kind: type[F]) -> Iterator[F]:
        """Every file that `filters` (of the API's own form) choose, page by page, in the order of their names.

        A file of which the archive does not say all that a `kind` must have is named in a warning, and left out. Raises
        InputError if the archive cannot be asked, has no file that is whole, or its list changes while it is read.
        """
        fields = ",".join(fields_of(kind))
        begin, total, bar = 0, None, None
        ids: set[str] = set()
        wrong: list[str] = []
        while total is None or begin < total:
            asked = {"filters": filters, "fields": fields, "size": PAGE, "from": begin}
            found = self._ask("POST", "files", Found, json=asked | {"sort": "file_name:asc", "format": "JSON"})
            total = found.data.pagination.total
            bar = bar or Progress(what="querying the GDC", unit="files", total=total, delay=2)
            if found.warnings:
                logger.warning(f"{self.api} warns: {quoted(str(found.warnings).encode())}")
            if not found.data.hits and begin < total:
                raise Unavailable(f"{self.api}: announced {total} files but listed {begin}; run it again")
            for number, hit in enumerate(found.data.hits, start=begin + 1):
                try:
                    file = kind.model_validate(hit)
                except ValidationError as error:
                    wrong.append(f"{_name_of(hit) or f'file {number} of {total}'}: {what_is_wrong(error)}")
                    logger.warning(f"excluded: {wrong[-1]}, according to the archive")
                    continue
                if file.id in ids:
                    raise Unavailable(
                        f"{self.api}: lists {file.file_name} twice, so that others may be missing; run it again"
                    )
                ids.add(file.id)
                yield file
            begin += len(found.data.hits)
            bar.update(len(found.data.hits))
        if bar is not None:
            bar.close()
        if wrong and not ids:
            raise InputError(f"{self.api}: none of {total} files has all required fields; the first: {wrong[0]}")

    def why_absent(self, source: str, filename: str) -> str:
        """Why the archive has no file `gdc:UUID`, in a line that says what to do."""
        file_id = source.removeprefix("gdc:")
        found = self._ask("GET", f"files/versions/{quote(file_id, safe='')}", list[Version], missing=[])
        latest = found[0].latest_id if found else None
        if not latest and filename:
            same_name = {"op": "in", "content": {"field": "file_name", "value": [filename]}}
            latest = next((file.id for file in self.files(same_name, Named)), None)
        name = filename or source
        if latest in (None, file_id):
            return f"slide {name}: {self.api} no longer has a file {file_id}; remove it from the sample sheet"
        return (
            f"slide {name}: was re-released as {latest}, and {file_id} no longer exists; run `gigapipe gdc refresh "
            "SHEET` to update the sample sheet"
        )

    def _ask(self, method: str, path: str, kind: Any, missing: Any = None, **options) -> Any:
        """An answer of a `kind`; `missing` if it is given and there is none."""
        url = f"{self.api}/{path}"
        reply = self._reply(method, url, **options)
        if reply.status_code == 404 and missing is not None:
            return missing
        if not reply.ok:
            said = f"{reply.status_code}, {words_of(reply.content)}"
            raise InputError(f"{url}: answers {said}; correct the query, or the address")
        try:
            return TypeAdapter(kind).validate_json(reply.content)
        except ValidationError as error:
            said = f"{what_is_wrong(error)}; it says {words_of(reply.content)}"
            raise Unavailable(f"{url}: its answer {said}; run it again, or correct the address") from None

    def _reply(self, method: str, url: str, **options) -> requests.Response:
        """What the archive replies, asked again while it may do better later. InputError if it does not."""
        for wait in (*WAITS, None):
            pause = 0.0
            try:
                reply = self._session.request(method, url, timeout=self._timeout, **options)
                if not passes(reply.status_code):
                    return reply
                reason, pause = f"answers {reply.status_code}, {words_of(reply.content)}", pause_of(reply)
            except UNUSABLE as error:
                raise InputError(f"{url}: {error}; correct the address") from None
            except requests.RequestException as error:
                reason = f"the connection failed ({error.__class__.__name__})"
            if wait is None:
                break
            pause = max(pause, wait * random.uniform(0.75, 1.25))
            logger.info(f"{url}: {reason}; next attempt in {pause:.0f} s")
            time.sleep(pause)
        raise Unavailable(
            f"{url}: {reason}, {len(WAITS) + 1} times in succession; run it again, or correct the address"
        )


def _name_of(hit: Any) -> str | None:
    """What to call a file that is not as it should be."""
    said = [hit.get(key) for key in ("file_name", "id")] if isinstance(hit, dict) else []
    return next((one for one in said if isinstance(one, str) and one), None)
