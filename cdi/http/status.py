"""Errors for HTTP statuses other than success (RFC 9110 section 15)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from cdi.api.errors import (
    CdiError,
    SourceChanged,
    SourceForbidden,
    SourceNotFound,
    SourceProtocolError,
    SourceRefused,
    SourceUnavailable,
)
from cdi.api.importer_messages import unexpected_status
from cdi.http import headers as fields
from cdi.http.credentials import proxy_unauthorized, unauthorized
from cdi.http.message import Response

MAX_BODY = 16 << 10
"""The maximum number of bytes read from the body of an error response."""
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
PASSING = frozenset({408, 421, 423, 425, 429, 500, 502, 503, 504})
_TEXTUAL = ("text/", "application/json", "application/problem+json", "application/xml", "application/problem+xml")
_CODE = re.compile(rb"<Code>([A-Za-z0-9._-]{1,80})</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]{1,2000})</Message>")
_SNIFFED = 1 << 10


def is_retryable(status: int) -> bool:
    """Return whether the same request may succeed later."""
    return status in PASSING or (status >= 500 and status not in {501, 505})


def lowercase_names(response: Response) -> Mapping[str, str]:
    """Return the header fields by lower-case name; of repeated ones the first."""
    found: dict[str, str] = {}
    for name, value in response.headers.items():
        found.setdefault(name.lower(), value)
    return found


def error_for_status(response: Response, body: bytes, *, sent: str | None, credentials_dropped: bool) -> CdiError:
    """Return the error for a status that is neither success nor a redirect.

    `sent` is the value of the request's Authorization field; only its scheme is used.
    """
    error = _error_for_status(response, body, sent=sent, credentials_dropped=credentials_dropped)
    return error.with_upstream(unexpected_status(response.status, _PHRASES.get(response.status, "")))


def _error_for_status(response: Response, body: bytes, *, sent: str | None, credentials_dropped: bool) -> CdiError:
    status = response.status
    where = response.url.redacted
    said = _body_excerpt(response, body)
    if status == 401:
        return unauthorized(response.headers, said, where=where, sent=sent, dropped=credentials_dropped)
    if status == 403:
        return SourceForbidden(f"the server denied access (403){said}", where=where)
    if status == 407:
        return proxy_unauthorized(response.headers, "the proxy", where=where)
    if status in {404, 410}:
        return SourceNotFound(f"the URL does not exist ({status})", where=where)
    if status == 412:
        return SourceChanged("the content was replaced while it was being fetched (412)", where=where)
    if is_retryable(status):
        return SourceUnavailable(
            f"the server is unavailable ({status}){said}",
            where=where,
            retry_after=fields.retry_after(response.headers),
        )
    if 400 <= status < 600:
        return SourceRefused(f"the server rejected the request ({status}){said}", where=where)
    return SourceProtocolError(f"unexpected status {status} in response to GET", where=where)


def _body_excerpt(response: Response, body: bytes) -> str:
    """Return an excerpt of the body on one line, to be appended to a message; empty if the body is not text."""
    kind = fields.media_type(response.headers)
    if b"\0" in body or not (_is_text(body) if kind is None else kind.startswith(_TEXTUAL)):
        return ""
    # S3-compatible services send an XML document with a code and a readable message among many other elements.
    message, code = _MESSAGE.search(body), _CODE.search(body)
    text = fields.excerpt(body if message is None else message[1])
    if message is not None and code is not None:
        text = f"{code[1].decode('ascii')}: {text}"
    return f": {text}" if text else ""


def _is_text(body: bytes) -> bool:
    """Return whether a body without a Content-Type is UTF-8 text, whose last character may be cut off."""
    try:
        body[:_SNIFFED].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True
