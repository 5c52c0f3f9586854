"""Parsing of header fields that users configure and that servers send.

Servers are not trusted: each function limits what it reads, and returns None or raises for invalid values.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPMessage

from cdi.api.errors import InvalidManifest, SourceCredentialsInvalid, SourceProtocolError
from cdi.api.printable import printable
from cdi.http.http_object import Headers

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_RESERVED = frozenset(
    {
        "range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since",
        "accept-encoding", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer",
        "upgrade", "expect", "proxy-connection", "proxy-authorization", "proxy-authenticate",
    }
)  # fmt: skip
_CONTENT_RANGE = re.compile(r"bytes[ =]\s*(?:(\d{1,19})\s*-\s*(\d{1,19})|\*)\s*/\s*(\d{1,19}|\*)", re.IGNORECASE)
_ETAG = re.compile(r'(W/)?("[^"\x00-\x1f\x7f]{0,512}")')
_MAX_LENGTH_DIGITS = 19
"""The digits of the largest 64-bit number. The engine rejects a length too large for an image, and names both sizes."""
MAX_RETRY_AFTER = 300.0
"""The maximum Retry-After in seconds; a longer one is shortened to this."""
MAX_SECRET_FILE = 64 << 10


def parse_line(line: str) -> tuple[str, str]:
    """Parse a ``Name: value`` line; raise ValueError with a reason that does not contain the value."""
    # A YAML block scalar ends with a line break; one inside the line would start another header.
    name, colon, value = line.removesuffix("\n").removesuffix("\r").partition(":")
    name = name.strip()
    value = value.strip(" \t")
    if not colon or not _TOKEN.fullmatch(name):
        raise ValueError("is not of the form 'Name: value'")
    if _BAD_VALUE.search(value):
        raise ValueError(f"{name!r} has a line break or control character in its value")
    if name.lower() in _RESERVED:
        raise ValueError(f"{name!r} is set by the importer itself")
    return name, value


def from_manifest(lines: Iterable[str]) -> Headers:
    """Parse the job's header lines; raise `InvalidManifest`."""
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse_line(line))
        except ValueError as error:
            raise InvalidManifest(f"extra header {number} {error}", where="source.http.extraHeaders") from error
    return tuple(found)


def from_secret_files(paths: Iterable[str]) -> Headers:
    """Parse every line of each file; raise `SourceCredentialsInvalid` with the file and line but no content."""
    found = []
    for path in paths:
        for number, line in enumerate(read_secret(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                found.append(parse_line(line))
            except ValueError as error:
                raise SourceCredentialsInvalid(f"secret header in line {number} {error}", where=path) from error
    return tuple(found)


def read_secret(path: str) -> str:
    """Return the text of a small secret file without its final newline; raise `SourceCredentialsInvalid`."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SECRET_FILE + 1)
    except OSError as error:
        raise SourceCredentialsInvalid(f"cannot read the secret: {error.strerror}", where=path) from error
    if len(data) > MAX_SECRET_FILE:
        raise SourceCredentialsInvalid(f"the secret is larger than {MAX_SECRET_FILE} bytes", where=path)
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise SourceCredentialsInvalid("the secret is not UTF-8 text", where=path) from error


@dataclass(frozen=True, slots=True)
class ContentRange:
    """The Content-Range of a 206 or 416; `end` is inclusive, as on the wire."""

    start: int | None
    end: int | None
    total: int | None


def content_range(headers: HTTPMessage) -> ContentRange | None:
    """Return the Content-Range (RFC 9110 section 14.4); None unless there is exactly one valid value."""
    values = headers.get_all("Content-Range") or []
    if len(values) != 1:
        return None
    match = _CONTENT_RANGE.fullmatch(values[0].strip())
    if match is None:
        return None
    start, end, total = match.groups()
    return ContentRange(
        start=None if start is None else int(start),
        end=None if end is None else int(end),
        total=None if total == "*" else int(total),
    )


def content_length(headers: HTTPMessage, *, where: str) -> int | None:
    """Return the announced length in bytes; raise `SourceProtocolError` if it is invalid.

    Several equal values count as one (RFC 9110 section 8.6).
    """
    values = {part.strip() for value in headers.get_all("Content-Length") or [] for part in value.split(",")}
    if not values:
        return None
    if len(values) > 1:
        raise SourceProtocolError("conflicting Content-Length values", where=where)
    text = values.pop()
    if not re.fullmatch(r"[0-9]+", text):
        raise SourceProtocolError("invalid Content-Length", where=where)
    text = text.lstrip("0") or "0"
    if len(text) > _MAX_LENGTH_DIGITS:
        raise SourceProtocolError(f"invalid Content-Length: it has {len(text)} digits", where=where)
    return int(text)


def chunked(headers: HTTPMessage, *, where: str) -> bool:
    """Return whether the body is chunked; raise `SourceProtocolError` for any other transfer coding."""
    values = headers.get_all("Transfer-Encoding") or []
    codings = [part.strip().lower() for value in values for part in value.split(",") if part.strip()]
    if not codings or codings == ["identity"]:
        return False
    if codings != ["chunked"]:
        raise SourceProtocolError(f"the server uses transfer coding {', '.join(codings)[:80]!r}", where=where)
    return True


_NO_CODING = frozenset({"", "identity", "none", "binary", "aws-chunked"})
"""Values that do not change the bytes. aws-chunked is how an SDK framed the object for its upload; S3 removes the
framing, but some services keep the name.
"""


def content_codings(values: Iterable[str]) -> tuple[str, ...]:
    """Return the codings that Content-Encoding lists, in order and in lower case (RFC 9110 section 8.4).

    Empty if the file is sent as it is stored.
    """
    names = (part.strip().lower() for value in values for part in value.split(","))
    return tuple(name[:40] for name in names if name not in _NO_CODING)


def etag(headers: HTTPMessage) -> tuple[str, bool] | None:
    """Return the opaque tag with its quotes, and whether it is strong (RFC 9110 section 8.8.3)."""
    match = _ETAG.fullmatch((headers.get("ETag") or "").strip())
    return None if match is None else (match[2], match[1] is None)


def last_modified(headers: HTTPMessage) -> str | None:
    text = (headers.get("Last-Modified") or "").strip()
    return text if 0 < len(text) <= 64 and text.isascii() and text.isprintable() else None


def media_type(headers: HTTPMessage) -> str | None:
    """Return the Content-Type without parameters, in lower case."""
    text = (headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    return text if 0 < len(text) <= 128 and text.isascii() and text.isprintable() else None


def retry_after(headers: HTTPMessage, *, now: float | None = None) -> float | None:
    """Return the Retry-After in seconds, as `parse_retry_after` does."""
    return parse_retry_after(headers.get("Retry-After"), now=now)


def parse_retry_after(value: str | None, *, now: float | None = None) -> float | None:
    """Convert a Retry-After number or date to seconds, at most `MAX_RETRY_AFTER` (RFC 9110 section 10.2.3)."""
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,12}", text):
        return min(float(text), MAX_RETRY_AFTER)
    if not text or len(text) > 64:
        return None
    try:
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, when - (time.time() if now is None else now)), MAX_RETRY_AFTER)


def excerpt(body: bytes, limit: int = 200) -> str:
    """Return the beginning of a server's text on one line, without control characters and markup."""
    text = re.sub(
        r"<(script|style)\b.*?</\1\s*>|<[^>]*>",
        " ",
        body[: 8 << 10].decode("utf-8", "replace"),
        flags=re.IGNORECASE | re.DOTALL,
    )
    text = " ".join(printable(text, len(text)).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
