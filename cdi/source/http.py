"""Bytes over HTTP, for every kind of source that ends in HTTP.

Ranges are asked for by a GET of the first byte, never by HEAD (presigned URLs refuse it), and never believed: each
answer's Content-Range, length and validators are compared with what the first one said.  A Content-Encoding of gzip
or zstd is taken as a wrapper around the image, which the engine recognises by its bytes, since that is what Apache
says of a plain ``.gz`` file; others are refused.

Nothing here tries again after a passing fault: that is the engine's business.
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

    `stall_timeout` is in seconds.  `transport` is shared with other sources of the same TLS and proxy settings; one of
    its own is made where none is given.  All methods may be called from any thread; each `Reader` belongs to one.
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
        """Raises `SourceUrlInvalid` for a proxy that cannot be used."""
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

    # --- the contract ---------------------------------------------------------------------------------------------

    def probe(self) -> SourceFacts:
        """One GET of the first byte, two or three where the server's answer to that is odd; remembered.

        Raises a `SourceError`, or whatever the endpoint makes of the service's own.
        """
        with self._probing:
            if self._facts is None:
                self._facts = self._probe()
            return self._facts

    def open(self, offset: int = 0, length: int | None = None) -> HttpReader:
        """The request goes out with the first `readinto`, so that `abort` reaches it too."""
        facts = self.probe()
        if not facts.ranges and offset:
            raise InternalError("a part was asked for of a source without ranges", where=facts.location)
        if offset < 0 or (length is not None and length < 0):
            raise InternalError(f"the range {offset}+{length} is impossible", where=facts.location)
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
        """Where the object was found in the end, for messages, if redirects led to another place."""
        return self._asker.redirected

    def sibling(self, name: str) -> HttpSource | None:
        """Shares this one's connections and stays usable when this one is closed."""
        endpoint = self.endpoint.sibling(name)
        return None if endpoint is None else HttpSource(endpoint, transport=self.transport)

    def close(self) -> None:
        """Interrupts whatever is under way, in any thread."""
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

    # --- the first look -------------------------------------------------------------------------------------------

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
            # An empty file, a server that dislikes so short a range, an unknown total, another range than asked for:
            # without a Range there is nothing to misunderstand.
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
        """Facts from an answer that carries everything; it is kept for the first reader, as URLs may work only once."""
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
                raise Interrupted("the source was closed", where=facts.location)
            self._held = response
        return facts

    def _has_ranges_after_all(self, whole: Response, length: int | None) -> bool:
        """Of a server that says so, and yet answered the first byte with everything."""
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

    # --- for readers ----------------------------------------------------------------------------------------------

    def fetch(self, start: int, end: int | None, cancel: Canceller) -> tuple[Response, int | None]:
        facts = self.probe()
        # Pieces of one content, asked for one by one, could be of two versions where nothing tells those apart.
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
            # Some servers take any If-Range for a reason to send everything.
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
    """A file at a URL; raises `SourceUrlInvalid`, `SourceCredentialsInvalid`, `InvalidManifest`."""
    return HttpSource(HttpEndpoint.from_spec(spec), tls=spec.tls, proxy=spec.proxy, stall_timeout=stall_timeout)
