"""Responses to the requests of one target (`cdi.source.peer`), from the window that all targets share."""

from __future__ import annotations

import itertools
import re
import time
from contextlib import closing
from typing import Final, Protocol
from urllib.parse import unquote

from cdi.api.errors import CdiError, PeerProtocolError, SourceChanged, SourceError
from cdi.http.server.outbound import ChunkedResponse
from cdi.http.server.request import ServerRequest
from cdi.source.peer_chunks import CHUNK, ChunkHeader
from cdi.source.peer_messages import MAX_DOCUMENT, PeerResult, parse_result
from cdi.transfer.clone.clone_source import CloneSource, CurrentSource, DiskSource
from cdi.transfer.clone.compression import ChunkCompressor
from cdi.transfer.clone.window import SharedWindow, Subscriber, WindowChunk

_RANGE: Final = re.compile(r"bytes=([0-9]{1,19})-([0-9]{1,19})")
_KEEPALIVE_INTERVAL: Final = 5.0
"""Seconds without a byte of content after which a mark is sent."""
_MARK_INTERVAL: Final = 64 << 20
"""Bytes without data after which a mark is sent, so that the target can resume there."""
_JSON: Final = "application/json"


class Link(Protocol):
    """What a server needs of the connection that a request came over."""

    def narrow(self) -> bool:
        """Return whether compressed content is faster."""
        ...

    def sending(self, view: memoryview) -> int:
        """Return how many bytes of a view to send at once, after a wait if the bandwidth is limited."""
        ...

    def check(self) -> None:
        """Raise `Interrupted` if the target is to be served no more."""
        ...


class TargetServer:
    """Server of one target, which has one connection at a time."""

    def __init__(self, job: str, sources: CurrentSource, window: SharedWindow) -> None:
        """Serve the target with the job's id."""
        self.subscriber = Subscriber()
        self.result: PeerResult | None = None
        """How the target ended."""
        self.resumed_at: int | None = None
        """First offset of the content that was requested; None if none was."""
        self.served = 0
        """Offset before which content was sent."""
        self.sent = 0
        """Bytes of content sent."""
        self._job = job
        self._sources = sources
        self._window = window
        self._compressor = ChunkCompressor()

    def respond(self, request: ServerRequest, link: Link) -> bool:
        """Respond to a request, and return whether its connection may carry another one.

        Raises:
            PeerProtocolError: The request belongs to another clone.
            CdiError: The source failed, or the connection.
        """
        name, _, what = request.head.path.removeprefix("/").partition("/")
        if what == "result" and request.head.method == "POST":
            result = parse_result(request.small_body(MAX_DOCUMENT))
            if unquote(name) == self._job or result.failure is not None:
                self.result = result
                return request.respond(204)
        if unquote(name) != self._job:
            error = PeerProtocolError(f"the target does not belong to this clone: its job is {unquote(name)[:100]!r}")
            _refuse(request, 404, error)
            raise error
        source: CloneSource | None = None
        try:
            source = self._current()
            return self._respond(request, source, what, link)
        except SourceError as error:
            changed = isinstance(error, SourceChanged)
            if changed and source is not None:
                self._sources.renew(source)
            if not request.responded:
                _refuse(request, 412 if changed else 500, error)
            # The end of a response that was begun is missing, so the target asks again.
            raise

    def _current(self) -> CloneSource:
        """Return the source in its current state."""
        source = self._sources.current()
        try:
            source.check()
        except SourceChanged:
            self._sources.renew(source)
            return self._sources.current()
        return source

    def _respond(self, request: ServerRequest, source: CloneSource, what: str, link: Link) -> bool:
        facts = source.facts()
        if not what:
            return request.respond(200, facts.to_json().encode(), content_type=_JSON)
        if request.head.headers.get("if-match") != f'"{facts.tag}"':
            return _refuse(request, 412, SourceChanged("the content has another tag"))
        if what in ("content", "leaves"):
            return self._content(request, source, link, leaves=what == "leaves")
        return _refuse(request, 404, PeerProtocolError("unknown request"))

    def _content(self, request: ServerRequest, source: CloneSource, link: Link, *, leaves: bool) -> bool:
        disk = source if isinstance(source, DiskSource) else None
        start, stop = (0, None) if disk is None else _range(request, disk.disk.size)
        offsets = itertools.count(0, CHUNK) if disk is None else disk.chunks(start, stop or 0)
        first = next(offsets, start)
        if not leaves:
            self.resumed_at = start if self.resumed_at is None else min(self.resumed_at, start)
        reader = source.reader(self._window)
        response = ChunkedResponse(request, 200 if disk is None else 206, {})
        sender = _ChunkSender(response, link, start, None if leaves else self._compressor)
        try:
            self._window.join(self.subscriber, reader, first, sender.idle)
            wanted = itertools.chain((first,), offsets)
            with closing(self._window.chunks(self.subscriber, wanted, link.check, sender.idle)) as chunks:
                for chunk in chunks:
                    sender.send(chunk)
                    self.served = max(self.served, sender.position)
        finally:
            self.sent += response.sent
        return response.end()


class _ChunkSender:
    """Sends the chunks of one response, and marks between them."""

    def __init__(self, response: ChunkedResponse, link: Link, start: int, compressor: ChunkCompressor | None) -> None:
        """Send chunks from `start` on; without a compressor, only their leaves."""
        self.position = start
        """Offset before which everything was sent."""
        self._response = response
        self._link = link
        self._compressor = compressor
        self._told = start
        """The position that the target knows of."""
        self._told_at = time.monotonic()

    def send(self, chunk: WindowChunk) -> None:
        """Send a chunk, unless it is zero."""
        piece = chunk.piece
        assert piece is not None
        self.position = chunk.offset + len(piece.view)
        if not piece.runs:
            if self.position - self._told >= _MARK_INTERVAL:
                self._mark()
            return
        pieces: list[memoryview] = []
        compressed = False
        if self._compressor is not None:
            pieces = chunk.views
            if self._link.narrow() and (packed := chunk.packed(self._compressor)) is not None:
                pieces, compressed = [memoryview(packed)], True
        header = ChunkHeader(
            offset=chunk.offset, leaf=piece.leaf, runs=piece.runs, payload=sum(map(len, pieces)), compressed=compressed
        )
        self._write(header, pieces)

    def idle(self) -> None:
        """Check the link, and keep it alive; called while there is nothing to send."""
        self._link.check()
        if time.monotonic() - self._told_at >= _KEEPALIVE_INTERVAL:
            self._mark()

    def _mark(self) -> None:
        self._write(ChunkHeader(offset=self.position), [])

    def _write(self, header: ChunkHeader, pieces: list[memoryview]) -> None:
        self._response.write([header.encode(), *pieces], sending=self._link.sending)
        self._told, self._told_at = self.position, time.monotonic()


def _refuse(request: ServerRequest, status: int, error: CdiError) -> bool:
    return request.respond(status, PeerResult.of(error).to_json().encode(), content_type=_JSON)


def _range(request: ServerRequest, size: int) -> tuple[int, int]:
    """Return the begin and end of the requested range; raise `PeerProtocolError`."""
    found = _RANGE.fullmatch(request.head.headers.get("range", ""))
    if found is None:
        raise PeerProtocolError("the target requests no range")
    start, stop = int(found[1]), int(found[2]) + 1
    if start % CHUNK or not start < stop <= size:
        raise PeerProtocolError(f"invalid range from {start} to {stop} of {size} bytes")
    return start, stop
