"""What an HTTP server's reply says: which bytes it brings, what is in their place, and whether to come again."""

import base64
import binascii
import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import requests

LONGEST = 600.0  # seconds that a server may ask to wait
ENCODINGS = {"gzip", "x-gzip", "deflate", "compress", "br", "zstd"}
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
BYTE_ORDER_MARK, UTF_16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
NO_TEXT = bytes(set(range(32)) - set(b"\t\n\r\f\x1b"))


def passes(status: int) -> bool:
    """Whether a server that answers so may do better later."""
    return status in (408, 425, 429) or status >= 500


def pause_of(reply: requests.Response) -> float:
    """Seconds that a server asks to wait, which it may say as a number or as a date; 0 if it does not."""
    asked = reply.headers.get("Retry-After", "").strip()
    try:
        seconds = float(asked) if asked.isdigit() else parsedate_to_datetime(asked).timestamp() - time.time()
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST)


@dataclass(frozen=True)
class Span:
    """Which bytes of a file a reply brings: `[begin, end)`, of `total`. `end` is None if they are all of it."""

    begin: int
    end: int | None
    total: int | None  # None if the server does not say

    @classmethod
    def of(cls, reply: requests.Response) -> "Span":
        """As the Content-Range says, whatever the status. Raises ValueError for a part that does not say which."""
        said = reply.headers.get("Content-Range", "")
        if match := re.fullmatch(r"bytes[\s=:]*(\d+)-(\d+)/(\d+|\*)", said.strip(), re.IGNORECASE):
            total = None if match[3] == "*" else int(match[3])
            return cls(int(match[1]), int(match[2]) + 1, total)
        if reply.status_code == 206:
            raise ValueError(f"Content-Range: {said or 'none'}")
        length = reply.headers.get("Content-Length", "")
        return cls(0, None, int(length) if length.isdigit() else None)


def total_of(reply: requests.Response) -> int | None:
    """How many bytes the file has of which a reply brings none (416), if it says so."""
    match = re.fullmatch(r"bytes\s+\*/(\d+)", reply.headers.get("Content-Range", "").strip(), re.IGNORECASE)
    return int(match[1]) if match else None


def md5_of(reply: requests.Response) -> str | None:
    """The Content-MD5, in hexadecimal: base64 by the standard, but some archives write hexadecimal."""
    said = reply.headers.get("Content-MD5", "").strip()
    if re.fullmatch(r"[0-9a-fA-F]{32}", said):
        return said.lower()
    try:
        found = base64.b64decode(said, validate=True)
    except binascii.Error:
        return None
    return found.hex() if len(found) == 16 else None


def compression_of(reply: requests.Response, begin: bytes) -> str | None:
    """How a body is compressed, by its headers or its first bytes."""
    encodings = {name.strip().lower() for name in reply.headers.get("Content-Encoding", "").split(",")}
    by_name = next(iter(sorted(encodings & ENCODINGS)), None)
    return by_name or next((name for magic, name in COMPRESSED.items() if begin.startswith(magic)), None)


def is_text(begin: bytes) -> bool:
    """Whether a body that begins so is a message, and no slide: all their formats have a zero near the beginning."""
    text = begin.removeprefix(BYTE_ORDER_MARK)
    if begin.startswith(UTF_16) or text.lstrip()[:1] in (b"{", b"[", b"<"):
        return True
    return text.translate(None, NO_TEXT) == text


def quoted(body: bytes) -> str:
    """How a text begins, on one line."""
    coding = "utf-16" if body.startswith(UTF_16) else "utf-8-sig"
    return repr(" ".join(body[:600].decode(coding, errors="replace").split())[:150])


def words_of(body: bytes) -> str:
    """What a server says in place of what it was asked for: a JSON object's message, or how the body begins."""
    try:
        answer = json.loads(body.decode("utf-8-sig"))
    except ValueError:
        return quoted(body)
    said = [
        answer[key] for key in ("message", "error", "errors", "detail") if isinstance(answer, dict) and key in answer
    ]
    return quoted("; ".join(map(str, said)).encode()) if said else quoted(body)
