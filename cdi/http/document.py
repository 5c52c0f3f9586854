"""Small documents that are read whole: manifests, tokens and other JSON, whatever the status of the response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cdi.api.errors import SourceProtocolError, SourceTooManyRedirects, SourceTruncated, SourceUnreachable
from cdi.http.dialer import SocketCanceller
from cdi.http.headers import content_codings
from cdi.http.http_object import HttpRequest
from cdi.http.message import Response
from cdi.http.redirects import MAX_REDIRECTS, is_redirect, redirect_target, request_headers
from cdi.http.status import lowercase_names
from cdi.http.transport import Transport
from cdi.http.url import Url

DOCUMENT_TIMEOUT: Final = 300.0
"""Seconds for one document, so that a server cannot send it a byte at a time without end."""
_PIECE: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentResponse:
    """A response with its whole body."""

    status: int
    headers: Mapping[str, str]
    """The header fields by lower-case name; of repeated ones the first."""
    challenges: tuple[str, ...]
    """All values of WWW-Authenticate."""
    body: bytes
    cross_origin: bool
    """Whether redirects led to another origin."""


class DocumentClient:
    """A client for documents, used by one thread at a time; any thread may `close` it."""

    def __init__(self, transport: Transport, *, follow_redirects: bool = True, allow_downgrade: bool = False) -> None:
        """Register as a user of the transport.

        Args:
            transport: The connections.
            follow_redirects: Whether redirects are followed; otherwise they are returned.
            allow_downgrade: Whether redirects from https to http are followed.
        """
        self._transport = transport
        self._transport.acquire()
        self._follow_redirects = follow_redirects
        self._allow_downgrade = allow_downgrade
        self._cancel = SocketCanceller()

    def close(self) -> None:
        """Interrupt a request that another thread is waiting for, and release the transport."""
        if not self._cancel.requested:
            self._cancel.cancel()
            self._transport.release()

    def fetch(
        self,
        request: HttpRequest,
        *,
        limit: int,
        method: Literal["GET", "HEAD", "POST"] = "GET",
        body: bytes | None = None,
    ) -> DocumentResponse:
        """Send a request and return the response, of any status, if its body has at most `limit` bytes.

        A request with a body is not redirected.

        Raises:
            SourceError: The server cannot be reached, violates the protocol or sends more than `limit` bytes.
            Interrupted: The client was closed.
        """
        first = url = Url.parse(request.url)
        cross_origin = False
        for _ in range(MAX_REDIRECTS + 1):
            headers = request_headers(request, cross_origin=cross_origin)
            response = self._transport.send(method, url, headers, self._cancel, body)
            answer = self._read(response, limit, cross_origin=cross_origin)
            if not is_redirect(response) or body is not None or not self._follow_redirects:
                return answer
            target = redirect_target(response, allow_downgrade=self._allow_downgrade)
            # As in `RedirectingClient`, credentials are not sent even if a later redirect returns to the first origin.
            cross_origin = cross_origin or target.origin != url.origin
            url = target
        raise SourceTooManyRedirects(f"more than {MAX_REDIRECTS} redirects", where=first.redacted)

    def _read(self, response: Response, limit: int, *, cross_origin: bool) -> DocumentResponse:
        """Read the body and release the connection."""
        where = response.url.redacted
        codings = content_codings(response.headers.get_all("Content-Encoding") or ())
        try:
            if codings:
                # A decompression bomb would expand before its size could be checked.
                raise SourceProtocolError(
                    f"the server compressed the data ({', '.join(codings)[:80]!r}) although that was not requested",
                    where=where,
                )
            content = _body(response, limit)
        except SourceTruncated as error:
            raise SourceUnreachable(f"connection lost: {error.what}", where=where) from error
        finally:
            self._transport.discard_response(response)
        return DocumentResponse(
            status=response.status,
            headers=lowercase_names(response),
            challenges=tuple(response.headers.get_all("WWW-Authenticate") or ()),
            body=content,
            cross_origin=cross_origin,
        )


def _body(response: Response, limit: int) -> bytes:
    content = bytearray()
    piece = memoryview(bytearray(_PIECE))
    with response.connection.deadline(DOCUMENT_TIMEOUT):
        while count := response.body.readinto(piece):
            content += piece[:count]
            if len(content) > limit:
                raise SourceProtocolError(
                    f"the document exceeds {limit} bytes",
                    where=response.url.redacted,
                    remedy="check the URL: no manifest is that large",
                )
    return bytes(content)
