"""Checks that a response matches the request and the content that was probed.

Servers, caches and log-in pages can send anything; no response is used before it passed these checks.
"""

from __future__ import annotations

from cdi.api.errors import SourceChanged, SourceNotAnImage, SourceProtocolError, SourceUnavailable
from cdi.http import headers as fields
from cdi.http.message import WHOLE, Response
from cdi.http.url import Url
from cdi.http.validator import Validator
from cdi.source.base import Ending, SourceFacts

WRAPPERS = frozenset({"gzip", "x-gzip", "zstd"})
"""Content codings that the engine removes as compression of the image."""
SNIFF_BYTES = 1 << 10
"""Bytes of a response declared as HTML that are read to see whether it is HTML."""
MIN_PART = 64 << 10
"""The minimum size in bytes of a range response shorter than requested; smaller ones could make a read never finish."""
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_HTML_BEGINNINGS = (
    *(b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title", b"<meta", b"<!--", b"<?xml"),
    *(b"<div", b"<h1", b"<p>", b"<pre", b"<center", b"<a "),
)


def total_from_probe(response: Response, body: bytes, at: int) -> int | None:
    """Return the total length if the response is a 206 with exactly the requested byte at offset `at`, else None."""
    got = fields.content_range(response.headers)
    if response.status != 206 or got is None or (got.start, got.end) != (at, at) or len(body) != 1:
        return None
    return got.total if got.total is not None and got.total > at else None


def is_same_content(response: Response, seen: Validator, facts: SourceFacts) -> bool:
    """Return whether a complete response matches the content that was probed."""
    length = response.body.length
    return Validator.of(response).matches(seen) and (length is None or facts.length in {None, length})


def ending(response: Response) -> Ending:
    """Return what proves that a response is complete and not truncated."""
    if not response.body.reads_until_close:
        return Ending.FRAMED
    return Ending.TLS_CLOSE if response.connection.is_encrypted else Ending.CLOSE


def validate_full_response(response: Response, seen: Validator, facts: SourceFacts) -> int | None:
    """Return the end of a response to a request without Range; raise `SourceChanged` or `SourceProtocolError`."""
    require_ok(response)
    if facts.length is None and ending(response) is not facts.ending:
        raise SourceChanged("the server changed the transfer framing", where=response.url.redacted)
    if not is_same_content(response, seen, facts):
        raise SourceChanged("the content was replaced since it was first read", where=response.url.redacted)
    return facts.length


def validate_range_response(
    response: Response, seen: Validator, facts: SourceFacts, start: int, end: int
) -> int | None:
    """Return the end of a response to a request for the bytes `start` to `end` (exclusive), at most `end`.

    Raises `SourceChanged`, `SourceProtocolError`, and `SourceUnavailable` if ranges worked before: caches in front of a
    server stop serving ranges while they fetch a file.
    """
    where = response.url.redacted
    got = fields.content_range(response.headers)
    if response.status == 416:
        if got is not None and got.total not in {None, facts.length}:
            raise SourceChanged(f"the content now has {got.total} bytes, not {facts.length}", where=where)
        raise SourceProtocolError("the server rejected a range that is within the file (416)", where=where)
    if response.status in WHOLE:
        if not is_same_content(response, seen, facts):
            raise SourceChanged("the content was replaced while it was being fetched", where=where)
        if start:
            raise SourceUnavailable("the server no longer supports byte ranges", where=where)
        return facts.length
    if not Validator.of(response).matches(seen):
        raise SourceChanged("the content was replaced while it was being fetched", where=where)
    if got is None or got.start is None or got.end is None:
        raise SourceProtocolError("the response has no valid Content-Range", where=where)
    if got.total is not None and got.total != facts.length:
        raise SourceChanged(f"the content now has {got.total} bytes, not {facts.length}", where=where)
    sent = got.end + 1 - start
    if got.start != start or not start <= got.end < end:
        raise SourceProtocolError(
            f"the server sent bytes {got.start}-{got.end} instead of {start}-{end - 1}", where=where
        )
    if response.body.length not in {None, sent}:
        raise SourceProtocolError(
            f"the server announces {response.body.length} bytes for the range {got.start}-{got.end}", where=where
        )
    if got.end + 1 < end and sent < MIN_PART:
        raise SourceProtocolError(f"the server limits ranges to {sent} bytes", where=where)
    return got.end + 1


def require_ok(response: Response) -> None:
    """Raise `SourceProtocolError` unless the response to a request without Range is complete."""
    if response.status not in WHOLE:
        raise SourceProtocolError(
            f"the server answered a request without a range with status {response.status}", where=response.url.redacted
        )


def is_html(response: Response) -> bool:
    return fields.media_type(response.headers) in _HTML


def reject_html(beginning: bytes, url: Url) -> None:
    """Raise `SourceNotAnImage` if the content starts like HTML; some servers declare every unknown file as HTML."""
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text or text.startswith(_HTML_BEGINNINGS):
        raise SourceNotAnImage("the server answered with a web page", where=url.redacted)


def codings_of(response: Response) -> tuple[str, ...]:
    """Return the content codings; raise `SourceProtocolError` for one that cannot be decoded."""
    codings = fields.content_codings(response.headers.get_all("Content-Encoding") or ())
    if not WRAPPERS.issuperset(codings):
        raise SourceProtocolError(
            f"the server encodes the file as {', '.join(codings)[:80]!r} although that was not requested",
            where=response.url.redacted,
            remedy="disable on-the-fly compression of images in the server or proxy",
        )
    return codings


def require_same_coding(response: Response, seen: tuple[str, ...]) -> None:
    """Raise `SourceChanged` if a later response has another content coding, because its bytes differ."""
    if codings_of(response) != seen:
        raise SourceChanged("the server changed the content encoding", where=response.url.redacted)
