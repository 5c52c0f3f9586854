"""A strict parser for the head of a request (RFC 9112), which rejects anything ambiguous."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cdi.api.errors import UploadMalformed

MAX_HEAD = 16 << 10
"""The maximum size of a head in bytes, including the empty line."""
_END = b"\r\n\r\n"
MAX_FIELDS = 100
_LINE = re.compile(rb"([A-Z]{1,20}) ([!-~]{1,4096}) HTTP/1\.([01])")
_ABSOLUTE = re.compile(r"https?://[^/?#]*(.*)", re.IGNORECASE)
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(r"[0-9]{1,19}")
_ONCE = frozenset(
    {"host", "content-length", "transfer-encoding", "authorization", "content-type", "upload-offset", "upload-length"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """The parsed head of a request."""

    method: str
    path: str
    """The path as received, without the query."""
    query: str
    headers: Mapping[str, str]
    """The header fields by lower-case name; repeated fields are joined."""
    length: int | None
    """The length of the body in bytes; None if it is chunked."""
    keep_alive: bool
    """Whether the connection may carry another request."""
    expect_continue: bool
    """Whether the client waits for 100 Continue before it sends the body."""


def split(data: bytes | bytearray) -> tuple[bytes, bytes] | None:
    """Return the head at the beginning of `data` and the bytes after it; None while the head is incomplete.

    One leading empty line is ignored, because some clients send one after a body (RFC 9112, section 2.2).
    """
    start = 2 if data.startswith(b"\r\n") else 0
    end = data.find(_END, start)
    if end < 0:
        return None
    end += len(_END)
    return bytes(data[start:end]), bytes(data[end:])


def parse(data: bytes) -> RequestHead:
    """Parse a head up to and including the empty line; raise `UploadMalformed`."""
    first, *lines = data.removesuffix(_END).split(b"\r\n")
    match = _LINE.fullmatch(first)
    if match is None:
        raise UploadMalformed("malformed request line")
    headers = _fields(lines)
    minor = int(match[3])
    if minor and "host" not in headers:
        raise UploadMalformed("the request has no Host header")
    target = match[2].decode("ascii")
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        target = absolute[1] or "/"
    if not target.startswith("/") and not (target == "*" and match[1] == b"OPTIONS"):
        raise UploadMalformed("the request has no path")
    path, _, query = target.partition("?")
    tokens = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    return RequestHead(
        method=match[1].decode("ascii"),
        path=path,
        query=query,
        headers=headers,
        length=_length(headers, minor),
        keep_alive=minor == 1 and "close" not in tokens,
        expect_continue=minor == 1 and _expects(headers),
    )


def _fields(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > MAX_FIELDS:
        raise UploadMalformed(f"the request has more than {MAX_FIELDS} header fields", status=431)
    headers: dict[str, str] = {}
    for line in lines:
        # A single regular expression for the whole line would backtrack excessively on a run of blanks.
        before, colon, after = line.partition(b":")
        if not colon or not _NAME.fullmatch(before) or _BAD.search(after):
            raise UploadMalformed("malformed header field")
        name, value = before.decode("ascii").lower(), after.strip(b" \t").decode("latin-1")
        if name in headers and name in _ONCE:
            raise UploadMalformed(f"the request has two {name} fields")
        headers[name] = ", ".join(filter(None, (headers.get(name), value)))
    return headers


def _length(headers: Mapping[str, str], minor: int) -> int | None:
    """Return the length of the body (section 6.3); None if it is chunked.

    A request with both a length and chunks is rejected, because that allows request smuggling.
    """
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or not minor:
            raise UploadMalformed("the request has both Content-Length and Transfer-Encoding")
        if coding.lower() != "chunked":
            raise UploadMalformed("unsupported Transfer-Encoding", status=501)
        return None
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise UploadMalformed("invalid Content-Length")
    return int(length)


def _expects(headers: Mapping[str, str]) -> bool:
    expected = headers.get("expect")
    if expected is None:
        return False
    if expected.lower() != "100-continue":
        raise UploadMalformed("unsupported Expect header", status=417)
    return True
