"""Random access over HTTP, for every kind of source that is based on HTTP.

Range support is detected with a GET of the first byte, never with HEAD (presigned URLs reject it), and is never taken
for granted: the Content-Range, length and validators of each response are compared with those of the first. A
Content-Encoding of gzip or zstd is treated as compression of the image itself, which the engine detects from the
content, because Apache sends it for a plain ``.gz`` file; other codings are rejected.

Nothing here retries after a transient failure; the engine does that.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from typing import Self

from cdi.api.errors import InternalError, Interrupted, SourceError
from cdi.api.job import HttpSourceSpec, Proxy, Tls
from cdi.http import headers as fields
from cdi.http.dialer import SocketCanceller
from cdi.http.http_object import HttpObject
from cdi.http.message import WHOLE, Response
from cdi.http.redirects import RedirectingClient
from cdi.http.transport import Transport
from cdi.http.validator import Validator
from cdi.source import response_validation as checks
from cdi.source.base import Ending, SourceFacts
from cdi.source.http_endpoint import HttpEndpoint
from cdi.source.http_reader import HttpReader


class SourceState(enum.Enum):
    """What is known about a source."""

    NEW = "not probed"
    PROBED = "probed"
    CLOSED = "closed"


class HttpSource:
    """A `cdi.source.base.Source` over any `HttpObject`.

    `stall_timeout` is in seconds. `transport` is shared with other sources of the same TLS and proxy settings; without
    one, the source creates its own. All methods are thread-safe; each `Reader` is used by one thread.
    """

    def __init__(
        self,
        endpoint: HttpObject,
        *,
        tls: Tls = Tls(),  # noqa: B008  # frozen
        proxy: Proxy = Proxy(),  # noqa: B008  # frozen
        stall_timeout: float = 60.0,
        transport: Transport | None = None,
    ) -> None:
        """Set up the source; raise `SourceUrlInvalid` for an unusable proxy URL."""
        self.endpoint = endpoint
        self.transport = transport or Transport(tls=tls, proxy=proxy, stall_timeout=stall_timeout)
        self.transport.acquire()
        self._asker = RedirectingClient(endpoint, self.transport)
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._cancel = SocketCanceller()
        self._readers: set[HttpReader] = set()
        self._facts: SourceFacts | None = None
        self._validator = Validator()
        self._codings: tuple[str, ...] = ()
        self._probe_response: Response | None = None
        self._if_range = True
        self._closed = False

    @property
    def state(self) -> SourceState:
        if self._closed:
            return SourceState.CLOSED
        return SourceState.NEW if self._facts is None else SourceState.PROBED

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint.location}: {self.state.value}, {len(self._readers)} readers>"

    # --- Source protocol ---

    def probe(self) -> SourceFacts:
        """Send a GET of the first byte, and one or two more if the response is unusual; the result is cached.

        Raises a `SourceError`, or the error that the endpoint derives from the service's response.
        """
        with self._probing:
            if self._facts is None:
                self._facts = self._probe()
            return self._facts

    def open(self, offset: int = 0, length: int | None = None) -> HttpReader:
        """Return a reader that sends its request on the first `readinto`, so that `abort` can interrupt it."""
        facts = self.probe()
        if not facts.ranges and offset:
            raise InternalError("range requested from a source without range support", where=facts.location)
        if offset < 0 or (length is not None and length < 0):
            raise InternalError(f"the range {offset}+{length} is invalid", where=facts.location)
        if facts.length is not None:
            if offset + (length or 0) > facts.length:
                raise InternalError(f"the range {offset}+{length} is not within {facts.length}", where=facts.location)
            length = facts.length - offset if length is None else length
        reader = HttpReader(self, facts.location, offset, None if length is None else offset + length)
        with self._lock:
            if self._closed:
                raise InternalError("the source is closed", where=facts.location)
            self._readers.add(reader)
        return reader

    @property
    def redirected(self) -> str | None:
        """The URL that redirects ended at, for messages; None without redirects."""
        return self._asker.redirected

    def sibling(self, name: str) -> HttpSource | None:
        """Return the neighbouring object, which shares this source's connections and outlives it."""
        endpoint = self.endpoint.sibling(name)
        return None if endpoint is None else HttpSource(endpoint, transport=self.transport)

    def close(self) -> None:
        """Close the source and interrupt all its operations in any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            held, self._probe_response = self._probe_response, None
            readers = list(self._readers)
        self._cancel.cancel()
        for reader in readers:
            reader.abort()
        if held is not None:
            self.transport.discard_response(held)
        self.transport.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- Probing ---

    def _probe(self) -> SourceFacts:
        response = self._asker.get(self._cancel, ("Range", "bytes=0-0"))
        if response.status == 206:
            body = response.read_prefix(2)
            self.transport.release_response(response)
            total = checks.total_from_probe(response, body, 0)
            if total is not None:
                if checks.is_html(response):
                    self._reject_html_page(total)
                return self._record_facts(response, length=total, ranges=True)
        elif response.status == 416:
            self.transport.release_response(response)
        if response.status not in WHOLE:
            # Reached for an empty file, an unknown total, a different range, or a server that rejects such a short
            # range. A request without Range is unambiguous.
            response = self._asker.get(self._cancel)
        try:
            return self._facts_from_full_response(response)
        except BaseException:
            self.transport.discard_response(response)
            raise

    def _reject_html_page(self, total: int) -> None:
        page = self._asker.get(self._cancel, ("Range", f"bytes=0-{min(checks.SNIFF_BYTES, total) - 1}"))
        beginning = page.read_prefix(checks.SNIFF_BYTES)
        self.transport.release_response(page)
        checks.reject_html(beginning, page.url)

    def _facts_from_full_response(self, response: Response) -> SourceFacts:
        """Return the facts from a complete response.

        Without ranges, the response is kept for the first reader, because some URLs work only once.
        """
        checks.require_ok(response)
        length = response.body.length
        if checks.is_html(response):
            checks.reject_html(response.read_prefix(checks.SNIFF_BYTES), response.url)
            facts = self._record_facts(response, length=length, ranges=False, ending=checks.ending(response))
            self.transport.discard_response(response)
            return facts
        if self._retry_range_probe(response, length):
            facts = self._record_facts(response, length=length, ranges=True)
            self.transport.discard_response(response)
            return facts
        facts = self._record_facts(response, length=length, ranges=False, ending=checks.ending(response))
        response.connection.release()
        with self._lock:
            if self._closed:
                raise Interrupted("the source is closed", where=facts.location)
            self._probe_response = response
        return facts

    def _retry_range_probe(self, whole: Response, length: int | None) -> bool:
        """Return whether a server that advertises ranges but sent everything for the first byte serves a later byte."""
        if length is None or length < 2 or "bytes" not in whole.headers.get("Accept-Ranges", "").lower():
            return False
        whole.connection.release()
        try:
            response = self._asker.get(self._cancel, ("Range", "bytes=1-1"))
        except SourceError:
            return False
        body = b"" if response.status in WHOLE else response.read_prefix(2)
        agrees = Validator.of(response).matches(Validator.of(whole))
        self.transport.release_response(response)
        return agrees and checks.total_from_probe(response, body, 1) == length

    def _record_facts(
        self, response: Response, *, length: int | None, ranges: bool, ending: Ending = Ending.FRAMED
    ) -> SourceFacts:
        self._codings = checks.codings_of(response)
        self._validator = Validator.of(response)
        identity, pinned = self._identity(response)
        return SourceFacts(
            location=self.endpoint.location,
            length=length,
            ranges=ranges,
            ending=ending,
            validator=self._validator.to_token(length),
            identity=identity,
            pinned=pinned,
            digests=self.endpoint.digests,
            content_type=fields.media_type(response.headers),
            name=self.endpoint.name,
        )

    def _identity(self, response: Response) -> tuple[str | None, str | None]:
        """Return `SourceFacts.identity` and `SourceFacts.pinned`."""
        return Validator.of(response).strong, None

    # --- Interface for readers ---

    def fetch(self, start: int, end: int | None, cancel: SocketCanceller) -> tuple[Response, int | None]:
        facts = self.probe()
        # Without a validator, separately requested ranges could belong to two versions of the content.
        at_once = self._validator.is_empty and start == 0 and end == facts.length
        if not facts.ranges or at_once:
            with self._lock:
                held, self._probe_response = self._probe_response, None
            if held is not None:
                held.connection.hand_over(cancel)
                return held, facts.length
            response = self._asker.get(cancel)
            return self._checked(response, lambda: checks.validate_full_response(response, self._validator, facts))
        if end is None:
            raise InternalError("ranges without a length", where=facts.location)
        part = self._ask_part(("Range", f"bytes={start}-{end - 1}"), facts, cancel)
        return self._checked(part, lambda: checks.validate_range_response(part, self._validator, facts, start, end))

    def _ask_part(self, wanted: tuple[str, str], facts: SourceFacts, cancel: SocketCanceller) -> Response:
        if not self._if_range or self._validator.strong is None:
            return self._asker.get(cancel, wanted)
        response = self._asker.get(cancel, wanted, ("If-Range", self._validator.strong))
        if response.status in WHOLE and checks.is_same_content(response, self._validator, facts):
            # Some servers answer any If-Range with the whole content.
            self.transport.discard_response(response)
            response = self._asker.get(cancel, wanted)
            self._if_range = response.status != 206
        return response

    def _checked(self, response: Response, check: Callable[[], int | None]) -> tuple[Response, int | None]:
        try:
            end = check()
            checks.require_same_coding(response, self._codings)
            return response, end
        except BaseException:
            self.transport.discard_response(response)
            raise

    def finished(self, response: Response) -> None:
        self.transport.discard_response(response)

    def unregister(self, reader: HttpReader) -> None:
        with self._lock:
            self._readers.discard(reader)


def open_http(spec: HttpSourceSpec, stall_timeout: float) -> HttpSource:
    """Open a file at a URL; raise `SourceUrlInvalid`, `SourceCredentialsInvalid` or `InvalidManifest`."""
    return HttpSource(HttpEndpoint.from_spec(spec), tls=spec.tls, proxy=spec.proxy, stall_timeout=stall_timeout)
