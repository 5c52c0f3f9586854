"""Bytes over HTTP, for every kind of source that ends in HTTP.

Ranges are asked for by a GET of the first byte, never by HEAD (presigned URLs refuse it), and never believed: each
answer's Content-Range, length and validators are compared with what the first one said.  A Content-Encoding of gzip
or zstd is taken as a wrapper around the image, which the engine recognises by its bytes, since that is what Apache
says of a plain ``.gz`` file; others are refused.

Nothing here tries again after a passing fault: that is the engine's business.  Three things are repeated because the
fault is not the server's: a request on an idle connection that had been closed, one with credentials that were
renewed, and one to a remembered redirect that has expired.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Self

from cdi.api.errors import (
    InternalError,
    SourceChanged,
    SourceNotAnImage,
    SourceProtocolError,
    SourceStalled,
    SourceTooLong,
    SourceTooManyRedirects,
    SourceTruncated,
    SourceUnavailable,
    SourceUnreachable,
)
from cdi.api.job import HttpSourceSpec, Proxy, Tls
from cdi.source import headers as fields
from cdi.source import http_status
from cdi.source.base import SourceFacts
from cdi.source.connection import Canceller
from cdi.source.endpoint import Endpoint, Headers, HttpRequest
from cdi.source.http_endpoint import HttpEndpoint
from cdi.source.http_message import Response
from cdi.source.http_transport import USER_AGENT, Transport
from cdi.source.http_url import Url
from cdi.source.validator import Validator

MAX_REDIRECTS = 10
_FORGET_AFTER = 3
"""Failures in a row until a remembered redirect is asked for anew: another mirror may live."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WRAPPERS = frozenset({"gzip", "x-gzip", "zstd"})
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_HTML_BEGINNINGS = (
    b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title", b"<meta", b"<!--", b"<?xml", b"<div", b"<h1",
)  # fmt: skip
_PEEK = 1 << 10
_MIN_PART = 64 << 10
"""A server may answer with less than the range; with less than this it would never come to an end."""
_DISCARD = 1 << 16


@dataclass(frozen=True, slots=True)
class _Final:
    """Where a URL led to."""

    asked: str
    url: Url
    crossed: bool
    """An origin was left on the way, so credentials stay behind."""


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
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._cancel = Canceller()
        self._readers: set[HttpReader] = set()
        self._facts: SourceFacts | None = None
        self._seen = Validator()
        self._held: Response | None = None
        self._final: _Final | None = None
        self._final_failures = 0
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
        reader = HttpReader(self, facts, offset, None if length is None else offset + length)
        with self._lock:
            if self._closed:
                raise InternalError("the source is closed", where=facts.location)
            self._readers.add(reader)
        return reader

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

    # --- asking ---------------------------------------------------------------------------------------------------

    def _ask(self, cancel: Canceller, *extra: tuple[str, str]) -> Response:
        """A GET with redirects followed and credentials renewed.

        Gives an answer of status 200, 206 or 416; raises for any other.
        """
        renewed = False
        request = self.endpoint.request()
        final = self._remembered(request.url)
        while True:
            try:
                response, crossed = self._follow(request, final, cancel, extra)
            except (SourceUnreachable, SourceStalled, SourceTruncated):
                self._count_failure(final)
                raise
            if response.status in {200, 206, 416}:
                self._final_failures = 0
                return response
            body = response.beginning(http_status.MAX_BODY)
            self.transport.finish(response)
            if final is not None and 400 <= response.status < 500 and response.status not in http_status.PASSING:
                # A signed link has run out, most likely: ask the one who gave it.
                self._forget()
                final = None
                continue
            self._count_failure(final)
            problem = self.endpoint.explain(response.status, http_status.lower(response), body)
            if not crossed and not renewed and response.status in {301, 307, 400, 401, 403}:
                renewed = True
                if self.endpoint.refused(response.status):
                    request = self.endpoint.request()
                    continue
            if problem is None:
                dropped = crossed and bool(request.secret_headers)
                problem = http_status.failure(response, body, credentials_dropped=dropped)
            raise problem

    def _follow(
        self, request: HttpRequest, final: _Final | None, cancel: Canceller, extra: Headers
    ) -> tuple[Response, bool]:
        """The answer at the end of the redirects, and whether another origin gave it."""
        url, crossed = (Url.parse(request.url), False) if final is None else (final.url, final.crossed)
        for _ in range(MAX_REDIRECTS + 1):
            response = self.transport.get(url, self._headers(request, extra, crossed=crossed), cancel)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                break
            self.transport.finish(response)
            following = url.redirected(location)
            if url.scheme == "https" and following.scheme == "http":
                raise SourceProtocolError(
                    f"the server redirects from https to plain http ({following.location})",
                    where=url.location,
                    remedy="use a server that stays with https, or its http URL if that is what you mean",
                )
            # Once left, credentials stay behind even where the way leads back: whoever redirects chooses the path.
            crossed = crossed or following.origin != url.origin
            url = following
        else:
            raise SourceTooManyRedirects(f"more than {MAX_REDIRECTS} redirects", where=self.endpoint.location)
        if final is None and url.text != Url.parse(request.url).text and response.status in {200, 206, 416}:
            with self._lock:
                self._final = _Final(request.url, url, crossed)
        return response, crossed

    def _headers(self, request: HttpRequest, extra: Headers, *, crossed: bool) -> Headers:
        own = request.headers if crossed else (*request.headers, *request.secret_headers)
        names = {name.lower() for name, _ in own}
        usual = (("User-Agent", USER_AGENT), ("Accept", "*/*"), ("Accept-Encoding", "identity"))
        return (*(pair for pair in usual if pair[0].lower() not in names), *own, *extra)

    def _remembered(self, asked: str) -> _Final | None:
        with self._lock:
            return self._final if self._final is not None and self._final.asked == asked else None

    def _forget(self) -> None:
        with self._lock:
            self._final = None
            self._final_failures = 0

    def _count_failure(self, final: _Final | None) -> None:
        if final is None:
            return
        with self._lock:
            self._final_failures += 1
            if self._final_failures >= _FORGET_AFTER:
                self._final = None
                self._final_failures = 0

    # --- the first look -------------------------------------------------------------------------------------------

    def _probe(self) -> SourceFacts:
        response = self._ask(self._cancel, ("Range", "bytes=0-0"))
        if response.status == 206:
            total = self._first_byte(response)
            if total is not None:
                return self._learn(response, length=total, ranges=True)
        if response.status != 200:
            # 416 (an empty file, or a server that dislikes so short a range), an unknown total, another range than
            # asked for: without a Range there is nothing to misunderstand.
            if response.status == 416:
                self.transport.finish(response)
            response = self._ask(self._cancel)
            if response.status != 200:
                self.transport.finish(response)
                raise SourceProtocolError(
                    f"the server answers {response.status} to a request for the whole file", where=response.url.location
                )
        return self._whole(response)

    def _first_byte(self, response: Response) -> int | None:
        """The total, if this 206 is what was asked for.  The response is finished."""
        got = fields.content_range(response.headers)
        body = response.beginning(2)
        html = fields.media_type(response.headers) in _HTML
        self.transport.finish(response)
        if got is None or (got.start, got.end) != (0, 0) or not got.total or len(body) != 1:
            return None
        if html and body in b"< \t\r\n\xef":
            page = self._ask(self._cancel, ("Range", f"bytes=0-{min(_PEEK, got.total) - 1}"))
            beginning = page.beginning(_PEEK)
            self.transport.finish(page)
            _refuse_html(beginning, response.url)
        return got.total

    def _whole(self, response: Response) -> SourceFacts:
        """Facts from an answer that carries everything, which is held for the first `open`."""
        length = response.body.length
        if fields.media_type(response.headers) in _HTML:
            prefix = response.beginning(_PEEK)
            try:
                _refuse_html(prefix, response.url)
            finally:
                self.transport.finish(response)
            return self._learn(response, length=length, ranges=False)
        if (fields_accept_ranges := response.headers.get("Accept-Ranges", "")) and length is not None and length > 1:
            if "bytes" in fields_accept_ranges.lower() and self._second_byte(response, length):
                self.transport.abandon(response)
                return self._learn(response, length=length, ranges=True)
        facts = self._learn(response, length=length, ranges=False)
        if response.body.ended:
            self.transport.finish(response)
        else:
            response.connection.release()
            with self._lock:
                self._held = response
        return facts

    def _second_byte(self, whole: Response, length: int) -> bool:
        """Whether ranges work after all, with a server that says so and answered the first byte with everything."""
        whole.connection.release()
        response = self._ask(self._cancel, ("Range", "bytes=1-1"))
        got = fields.content_range(response.headers) if response.status == 206 else None
        same = Validator.of(response).agrees(Validator.of(whole))
        if response.status == 200:
            self.transport.abandon(response)
        else:
            self.transport.finish(response)
        return same and got == fields.ContentRange(1, 1, length)

    def _learn(self, response: Response, *, length: int | None, ranges: bool) -> SourceFacts:
        coding = fields.content_coding(response.headers)
        if coding is not None and coding not in _WRAPPERS:
            self.transport.abandon(response)
            raise SourceProtocolError(
                f"the server encodes the file as {coding!r} although that was not asked for",
                where=response.url.location,
                remedy="turn compression on the fly off for images, at the server or the proxy on the way",
            )
        self._seen = Validator.of(response)
        return SourceFacts(
            location=self.endpoint.location,
            length=length,
            ranges=ranges,
            validator=self._seen.text(length),
            digests=self.endpoint.digests,
            content_type=fields.media_type(response.headers),
            name=self.endpoint.name,
        )

    # --- for readers ----------------------------------------------------------------------------------------------

    def fetch(self, facts: SourceFacts, start: int, end: int | None, cancel: Canceller) -> tuple[Response, int | None]:
        """An answer whose body begins at `start`, and where it ends (None: not known); at most `end`."""
        if not facts.ranges:
            with self._lock:
                held, self._held = self._held, None
            if held is not None:
                held.connection.lend_again(cancel)
                return held, facts.length
            response = self._ask(cancel)
            return response, self._check_whole(response, facts)
        assert end is not None  # ranges come with a length
        wanted = ("Range", f"bytes={start}-{end - 1}")
        if self._if_range and self._seen.strong is not None:
            response = self._ask(cancel, wanted, ("If-Range", self._seen.strong))
            if response.status == 200 and self._same(response, facts):
                # Some servers take any If-Range for a reason to send everything.
                self.transport.abandon(response)
                response = self._ask(cancel, wanted)
                self._if_range = response.status != 206
        else:
            response = self._ask(cancel, wanted)
        try:
            return response, self._check_part(response, facts, start, end)
        except BaseException:
            self.transport.abandon(response)
            raise

    def _same(self, response: Response, facts: SourceFacts) -> bool:
        length = response.body.length
        return Validator.of(response).agrees(self._seen) and (length is None or length == facts.length)

    def _check_part(self, response: Response, facts: SourceFacts, start: int, end: int) -> int | None:
        where = response.url.location
        got = fields.content_range(response.headers)
        if response.status == 416:
            if got is not None and got.total not in {None, facts.length}:
                raise SourceChanged(f"the content has {got.total} bytes now, not {facts.length}", where=where)
            raise SourceProtocolError("the server refuses a range that is within the file (416)", where=where)
        if response.status == 200:
            if not self._same(response, facts):
                raise SourceChanged("the content was replaced while it was being fetched", where=where)
            if start:
                raise SourceUnavailable("the server gave ranges before and now only the whole file", where=where)
            return facts.length
        if not Validator.of(response).agrees(self._seen):
            raise SourceChanged("the content was replaced while it was being fetched", where=where)
        if got is None or got.start is None or got.end is None:
            raise SourceProtocolError("the server does not say which range it sends", where=where)
        if got.total is not None and got.total != facts.length:
            raise SourceChanged(f"the content has {got.total} bytes now, not {facts.length}", where=where)
        if got.start != start or not start <= got.end < end:
            raise SourceProtocolError(
                f"the server was asked for the bytes {start}-{end - 1} and sends {got.start}-{got.end}", where=where
            )
        if response.body.length not in {None, got.end + 1 - start}:
            raise SourceProtocolError(
                f"the server announces {response.body.length} bytes for the range {got.start}-{got.end}", where=where
            )
        if got.end + 1 < end and got.end + 1 - start < _MIN_PART:
            raise SourceProtocolError(f"the server sends ranges of only {got.end + 1 - start} bytes", where=where)
        return got.end + 1

    def _check_whole(self, response: Response, facts: SourceFacts) -> int | None:
        try:
            if response.status != 200:
                raise SourceProtocolError(
                    f"the server answers {response.status} to a request for the whole file", where=response.url.location
                )
            length = response.body.length
            if not Validator.of(response).agrees(self._seen) or (
                length is not None and facts.length is not None and length != facts.length
            ):
                raise SourceChanged(
                    "the content was replaced since it was first looked at", where=response.url.location
                )
        except BaseException:
            self.transport.abandon(response)
            raise
        return facts.length

    def forget_reader(self, reader: HttpReader) -> None:
        with self._lock:
            self._readers.discard(reader)


def open_http(spec: HttpSourceSpec, stall_timeout: float) -> HttpSource:
    """A file at a URL; raises `SourceUrlInvalid`, `SourceCredentialsInvalid`, `InvalidManifest`."""
    return HttpSource(HttpEndpoint.from_spec(spec), tls=spec.tls, proxy=spec.proxy, stall_timeout=stall_timeout)


class HttpReader:
    """A run of bytes of an `HttpSource`."""

    def __init__(self, source: HttpSource, facts: SourceFacts, start: int, end: int | None) -> None:
        self._source = source
        self._facts = facts
        self._position = start
        self._end = end
        self._part_end: int | None = None
        self._response: Response | None = None
        self._cancel = Canceller()
        self._done = False

    def readinto(self, view: memoryview) -> int:
        """As `cdi.source.base.Reader`; also any error that `HttpSource.probe` raises."""
        self._cancel.check()
        if self._done or not len(view) or self._position == self._end:
            self._finish()
            return 0
        try:
            return self._read(view)
        except BaseException:
            self._drop()
            raise

    def _read(self, view: memoryview) -> int:
        if self._response is None:
            self._response, self._part_end = self._source.fetch(self._facts, self._position, self._end, self._cancel)
        response = self._response
        stop = self._end if self._part_end is None else min(self._part_end, self._end or self._part_end)
        room = view if stop is None else view[: stop - self._position]
        count = response.body.readinto(room)
        if not count:
            if self._part_end is None:
                self._drop()
                self._finish()
                return 0
            raise SourceTruncated(
                f"the server sent {self._position} of {stop} bytes and called it complete",
                where=response.url.location,
            )
        self._position += count
        if self._position == stop:
            self._end_of_part(response)
        return count

    def _end_of_part(self, response: Response) -> None:
        """See that the server, too, thinks that this was all, where it was to be all."""
        if self._position == self._part_end and not response.body.ended:
            self._see_end(response)
        self._response = None
        self._source.transport.abandon(response)
        if self._position == self._end:
            self._finish()

    def _see_end(self, response: Response) -> None:
        if not response.body.endless or not response.connection.quiet():
            if response.beginning(1):
                raise SourceTooLong(f"more than the announced {self._part_end} bytes came", where=response.url.location)
            self._cancel.check()

    def abort(self) -> None:
        self._cancel.cancel()

    def close(self) -> None:
        self._drop()
        self._finish()

    def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            self._source.transport.abandon(response)

    def _finish(self) -> None:
        self._done = True
        self._source.forget_reader(self)


def _refuse_html(beginning: bytes, url: Url) -> None:
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text or text.startswith(_HTML_BEGINNINGS):
        raise SourceNotAnImage("the server answered with a web page", where=url.location)
