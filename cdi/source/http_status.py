"""What an HTTP status other than success means for an import (RFC 9110 section 15)."""

from __future__ import annotations

from collections.abc import Mapping

from cdi.api.errors import (
    CdiError,
    SourceChanged,
    SourceForbidden,
    SourceNotFound,
    SourceProtocolError,
    SourceRefused,
    SourceUnauthorized,
    SourceUnavailable,
)
from cdi.source import headers as fields
from cdi.source.http_message import Response

MAX_BODY = 16 << 10
"""As much of an error's text is read, bytes."""
PASSING = frozenset({408, 421, 423, 425, 429, 500, 502, 503, 504})
_TEXTUAL = ("text/", "application/json", "application/problem+json", "application/xml")


def passing(status: int) -> bool:
    """The same request may well be answered later."""
    return status in PASSING or (status >= 500 and status not in {501, 505})


def lower(response: Response) -> Mapping[str, str]:
    """Header fields by lower-case name; of repeated ones the first."""
    found: dict[str, str] = {}
    for name, value in response.headers.items():
        found.setdefault(name.lower(), value)
    return found


def failure(response: Response, body: bytes, *, credentials_dropped: bool) -> CdiError:
    """The error for a status that is neither success nor a redirect."""
    status = response.status
    where = response.url.location
    said = _said(response, body)
    if status == 401:
        remedy = None
        if credentials_dropped:
            remedy = "credentials are not sent on to another host that the server redirects to; use the final URL"
        return SourceUnauthorized(f"the server wants other credentials (401){said}", where=where, remedy=remedy)
    if status == 403:
        return SourceForbidden(f"the server does not allow this (403){said}", where=where)
    if status == 407:
        return SourceUnauthorized(
            "the proxy wants other credentials (407)",
            where=where,
            remedy="put the user and password into the proxy's URL",
        )
    if status in {404, 410}:
        return SourceNotFound(f"there is nothing at this place ({status})", where=where)
    if status == 412:
        return SourceChanged("the content was replaced while it was being fetched (412)", where=where)
    if passing(status):
        return SourceUnavailable(
            f"the server cannot serve it now ({status}){said}",
            where=where,
            retry_after=fields.retry_after(response.headers),
        )
    if 400 <= status < 600:
        return SourceRefused(f"the server refuses the request ({status}){said}", where=where)
    return SourceProtocolError(
        f"the server answers with the status {status}, which a GET of a file never has", where=where
    )


def _said(response: Response, body: bytes) -> str:
    kind = fields.media_type(response.headers) or ""
    if not kind.startswith(_TEXTUAL) or b"\0" in body:
        return ""
    text = fields.excerpt(body)
    return f": {text}" if text else ""
