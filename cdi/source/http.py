"""Random access over HTTP, for every kind of source that is based on HTTP.

Range support is detected with a GET of the first byte, never with HEAD (presigned URLs reject it), and is never taken
for granted: the Content-Range, length and validators of each response are compared with those of the first. A
Content-Encoding of gzip or zstd is treated as compression of the image itself, which the engine detects from the
content, because Apache sends it for a plain ``.gz`` file; other codings are rejected.

Nothing here retries after a transient failure; the engine does that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from cdi.api.errors import InternalError, Interrupted, SourceError
from cdi.api.job import HttpSourceSpec, Proxy, Tls
from cdi.source import headers as fields
from cdi.source import http_checks as checks
from cdi.source.base import Ending, SourceFacts
from cdi.source.connection import Canceller
from cdi.source.endpoint import Endpoint
from cdi.source.http_ask import Asker
from cdi.source.http_endpoint import HttpEndpoint
from cdi.source.http_message import WHOLE, Response
from cdi.source.http_reader import HttpReader
from cdi.source.http_transport import Transport
from cdi.source.validator import Validator


class HttpSource:
    """A `cdi.source.base.Source` over any `Endpoint`.

    `stall_timeout` is in seconds. `transport` is shared with other sources of the same TLS and proxy settings; without
    one, the source creates its own. All methods are thread-safe; each `Reader` is used by one thread.
    """

    def __init__(
        self,
        endpoint: Endpoint,
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
        self._asker = Asker(endpoint, self.transport)
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._cancel = Canceller()
        self._readers: set[HttpReader] = set()
        self._facts: SourceFacts | None = None
        self._seen = Validator()
        self._codings: tuple[str, ...] = ()
        self._held: Response | None = None
        self._if_range = True
        self._closed = False

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
            held, self._held = self._held, None
            readers = list(self._readers)
        self._cancel.cancel()
        for reader in readers:
            reader.abort()
        if held is not None:
            self.transport.abandon(held)
        self.transport.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- Probing ---

    def _probe(self) -> SourceFacts:
        response = self._asker.ask(self._cancel, ("Range", "bytes=0-0"))
        if response.status == 206:
            body = response.beginning(2)
            self.transport.finish(response)
            total = checks.single_byte(response, body, 0)
            if total is not None:
                if checks.says_html(response):
                    self._look_at_page(total)
                return self._learn(response, length=total, ranges=True)
        elif response.status == 416:
            self.transport.finish(response)
        if response.status not in WHOLE:
            # Reached for an empty file, an unknown total, a different range, or a server that rejects such a short
            # range. A request without Range is unambiguous.
            response = self._asker.ask(self._cancel)
        try:
            return self._whole(response)
        except BaseException:
            self.transport.abandon(response)
            raise

    def _look_at_page(self, total: int) -> None:
        page = self._asker.ask(self._cancel, ("Range", f"bytes=0-{min(checks.PEEK, total) - 1}"))
        beginning = page.beginning(checks.PEEK)
        self.transport.finish(page)
        checks.refuse_html(beginning, page.url)

    def _whole(self, response: Response) -> SourceFacts:
        """Return the facts from a complete response.

        Without ranges, the response is kept for the first reader, because some URLs work only once.
        """
        checks.refuse_status(response)
        length = response.body.length
        if checks.says_html(response):
            checks.refuse_html(response.beginning(checks.PEEK), response.url)
            facts = self._learn(response, length=length, ranges=False, ending=checks.ending(response))
            self.transport.abandon(response)
            return facts
        if self._has_ranges_after_all(response, length):
            facts = self._learn(response, length=length, ranges=True)
            self.transport.abandon(response)
            return facts
        facts = self._learn(response, length=length, ranges=False, ending=checks.ending(response))
        response.connection.release()
        with self._lock:
            if self._closed:
                raise Interrupted("the source is closed", where=facts.location)
            self._held = response
        return facts

    def _has_ranges_after_all(self, whole: Response, length: int | None) -> bool:
        """Return whether a server that advertises ranges but sent everything for the first byte serves a later byte."""
        if length is None or length < 2 or "bytes" not in whole.headers.get("Accept-Ranges", "").lower():
            return False
        whole.connection.release()
        try:
            response = self._asker.ask(self._cancel, ("Range", "bytes=1-1"))
        except SourceError:
            return False
        body = b"" if response.status in WHOLE else response.beginning(2)
        agrees = Validator.of(response).agrees(Validator.of(whole))
        self.transport.finish(response)
        return agrees and checks.single_byte(response, body, 1) == length

    def _learn(
        self, response: Response, *, length: int | None, ranges: bool, ending: Ending = Ending.FRAMED
    ) -> SourceFacts:
        self._codings = checks.codings_of(response)
        self._seen = Validator.of(response)
        return SourceFacts(
            location=self.endpoint.location,
            length=length,
            ranges=ranges,
            ending=ending,
            validator=self._seen.text(length),
            digests=self.endpoint.digests,
            content_type=fields.media_type(response.headers),
            name=self.endpoint.name,
        )

    # --- Interface for readers ---

    def fetch(self, start: int, end: int | None, cancel: Canceller) -> tuple[Response, int | None]:
        facts = self.probe()
        # Without a validator, separately requested ranges could belong to two versions of the content.
        at_once = self._seen.is_empty and start == 0 and end == facts.length
        if not facts.ranges or at_once:
            with self._lock:
                held, self._held = self._held, None
            if held is not None:
                held.connection.lend_again(cancel)
                return held, facts.length
            response = self._asker.ask(cancel)
            return self._checked(response, lambda: checks.whole(response, self._seen, facts))
        if end is None:
            raise InternalError("ranges without a length", where=facts.location)
        part = self._ask_part(("Range", f"bytes={start}-{end - 1}"), facts, cancel)
        return self._checked(part, lambda: checks.part(part, self._seen, facts, start, end))

    def _ask_part(self, wanted: tuple[str, str], facts: SourceFacts, cancel: Canceller) -> Response:
        if not self._if_range or self._seen.strong is None:
            return self._asker.ask(cancel, wanted)
        response = self._asker.ask(cancel, wanted, ("If-Range", self._seen.strong))
        if response.status in WHOLE and checks.same(response, self._seen, facts):
            # Some servers answer any If-Range with the whole content.
            self.transport.abandon(response)
            response = self._asker.ask(cancel, wanted)
            self._if_range = response.status != 206
        return response

    def _checked(self, response: Response, check: Callable[[], int | None]) -> tuple[Response, int | None]:
        try:
            end = check()
            checks.refuse_other_coding(response, self._codings)
            return response, end
        except BaseException:
            self.transport.abandon(response)
            raise

    def finished(self, response: Response) -> None:
        self.transport.abandon(response)

    def forget(self, reader: HttpReader) -> None:
        with self._lock:
            self._readers.discard(reader)


def open_http(spec: HttpSourceSpec, stall_timeout: float) -> HttpSource:
    """Open a file at a URL; raise `SourceUrlInvalid`, `SourceCredentialsInvalid` or `InvalidManifest`."""
    return HttpSource(HttpEndpoint.from_spec(spec), tls=spec.tls, proxy=spec.proxy, stall_timeout=stall_timeout)
