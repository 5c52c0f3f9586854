"""A volume that another worker reads and serves: the source of a clone that is copied.

Its requests travel over connections that the other worker opens (`cdi.source.peer_connections`):

    GET  /ID            facts about the volume (`PeerFacts`)
    GET  /ID/content    the chunks with data of a range, or of the whole archive (`cdi.source.peer_chunks`)
    GET  /ID/leaves     the same without the data
    POST /ID/result     how the target ended (`PeerResult`)

ID is that of the target's job. Content of another state of the volume is refused (412).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Literal, Self
from urllib.parse import quote

from cdi.api.errors import (
    ChecksumMismatch,
    Interrupted,
    PeerProtocolError,
    SourceChanged,
    SourceTruncated,
    SourceUnreachable,
)
from cdi.http.dialer import SocketCanceller
from cdi.http.message import Response
from cdi.source.base import SourceFacts
from cdi.source.peer_chunks import (
    HEADER_SIZE,
    Chain,
    ChunkHeader,
    leaf_hash,
    parse_header,
    table_size,
    unpack,
)
from cdi.source.peer_connections import WHERE, PeerConnections
from cdi.source.peer_messages import MAX_DOCUMENT, PeerFacts, PeerResult, parse_facts, parse_result

_ENDLESS: Final = 1 << 62
_REMEDY: Final = "the volume was wiped; check the memory of both nodes, then clone again"


class PeerReplaced(Exception):
    """Another process serves the source now, and nothing shows whether its content is still the same."""

    def __init__(self) -> None:
        super().__init__()
        self.cause = SourceUnreachable("another process serves the source volume now", where=WHERE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """What a reader reads."""

    start: int
    stop: int
    leaves: bool = False


class PeerSource:
    """A `cdi.source.base.Source` over the connections of a peer, for one attempt."""

    def __init__(self, connections: PeerConnections, job: str, content: Literal["kubevirt", "archive"]) -> None:
        self._connections = connections
        self._name = job
        self._path = f"/{quote(job, safe='')}"
        self._content = content
        self._lock = threading.Lock()
        self._cancels: set[SocketCanceller] = set()
        self._facts: PeerFacts | None = None
        self.chain = Chain()
        """Digest of an archive up to the byte that was read last."""
        self.position = 0
        """Bytes of an archive that were read."""

    def __repr__(self) -> str:
        return f"<PeerSource for {self._name}>"

    @property
    def facts(self) -> PeerFacts:
        """What the source has stated; only after `probe`."""
        assert self._facts is not None
        return self._facts

    def probe(self) -> SourceFacts:
        if self._facts is None:
            facts = parse_facts(self._document(self._path, MAX_DOCUMENT))
            if facts.content != self._content:
                raise PeerProtocolError(f"the source sends content {facts.content}, not {self._content}")
            self._facts = facts
        facts = self._facts
        disk = facts.content == "kubevirt"
        return SourceFacts(
            location=WHERE,
            length=facts.size if disk else None,
            estimate=None if disk else facts.size,
            ranges=disk,
            validator=facts.validator or None,
        )

    def open(self, offset: int = 0, length: int | None = None) -> PeerReader:
        if self.facts.content == "archive":
            self.chain, self.position = Chain(), 0
            return PeerReader(self, _Range(start=0, stop=_ENDLESS))
        stop = self.facts.size if length is None else offset + length
        return PeerReader(self, _Range(start=offset, stop=stop))

    def leaves_of(self, start: int, stop: int) -> list[tuple[int, bytes]]:
        """Return the offset and leaf of each chunk with data in a range, which the source reads again."""
        reader, found = PeerReader(self, _Range(start=start, stop=stop, leaves=True)), []
        try:
            while (header := reader.next_header()) is not None:
                if header.runs:
                    found.append((header.offset, header.leaf))
        finally:
            reader.close()
        return found

    def report(self, result: PeerResult) -> None:
        """Tell the source how this target ended; raise a `CdiError` if that fails."""
        with self._request() as cancel:
            body = result.to_json().encode()
            response = self._connections.exchange("POST", f"{self._path}/result", (), cancel, body)
            self._connections.release(response)

    def sibling(self, name: str) -> None:
        """Return None: a volume has no neighbours."""
        del name

    def close(self) -> None:
        """Interrupt all requests in progress; the connections stay."""
        with self._lock:
            for cancel in self._cancels:
                cancel.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- requests -----------------------------------------------------------------------------------------------

    def request_content(self, wanted: _Range, cancel: SocketCanceller) -> Response:
        """Request a range of the content, which begins with a chunk."""
        path = f"{self._path}/{'leaves' if wanted.leaves else 'content'}"
        headers: tuple[tuple[str, str], ...] = (("If-Match", f'"{self.facts.tag}"'),)
        if wanted.stop != _ENDLESS:
            headers += (("Range", f"bytes={wanted.start}-{wanted.stop - 1}"),)
        return self._checked(self._connections.exchange("GET", path, headers, cancel))

    def release(self, response: Response) -> None:
        self._connections.release(response)

    @contextmanager
    def _request(self) -> Iterator[SocketCanceller]:
        cancel = SocketCanceller()
        with self._lock:
            self._cancels.add(cancel)
        try:
            yield cancel
        finally:
            with self._lock:
                self._cancels.discard(cancel)

    def _document(self, target: str, limit: int) -> bytes:
        headers = () if self._facts is None else (("If-Match", f'"{self._facts.tag}"'),)
        with self._request() as cancel:
            response = self._checked(self._connections.exchange("GET", target, headers, cancel))
            try:
                return _read_whole(response, limit)
            finally:
                self._connections.release(response)

    def _checked(self, response: Response) -> Response:
        """Return the response; raise the error that it reports."""
        if response.status in (200, 206):
            return response
        try:
            body = response.read_prefix(MAX_DOCUMENT)
        finally:
            self._connections.release(response)
        if response.status == 412:
            if self._facts is None or self._facts.is_strong:
                raise SourceChanged("the source volume was modified while it was cloned", where=WHERE)
            raise PeerReplaced
        with suppress(PeerProtocolError):
            failure = parse_result(body).failure
            if failure is not None:
                raise failure.error()
        raise PeerProtocolError(f"the source answered with status {response.status}")


class PeerReader:
    """The chunks with data of a range of a disk, or an archive, of which it is a `cdi.source.base.Reader`.

    The methods raise:

        ChecksumMismatch    a chunk is not what the source read
        SourceChanged       the volume was modified
        PeerReplaced        another process serves the volume, and cannot prove that it is unchanged
        PeerProtocolError   the source violates the protocol
        CdiError            the connection failed, or the source reported its failure
    """

    def __init__(self, source: PeerSource, wanted: _Range) -> None:
        self._source = source
        self._range = wanted
        self._position = wanted.start
        self._cancel = SocketCanceller()
        self._response: Response | None = None
        self._fixed = memoryview(bytearray(HEADER_SIZE))
        self._buffer = memoryview(b"")
        """Rest of a verified chunk of an archive."""

    def next_header(self) -> ChunkHeader | None:
        """Return the header of the next chunk, or a mark; None at the end of the range."""
        if self._cancel.requested:
            raise Interrupted("reading was interrupted", where=WHERE)
        if self._position == self._range.stop:
            return None
        if self._response is None:
            self._response = self._source.request_content(self._range, self._cancel)
        fixed = self._fixed
        first = self._response.body.readinto(fixed)
        if not first:
            self._position = self._range.stop
            return None
        self.fill(fixed[first:])
        table = memoryview(bytearray(table_size(fixed)))
        self.fill(table)
        header = parse_header(bytes(fixed) + bytes(table), self._position, self._range.stop, leaves=self._range.leaves)
        self._position = header.offset + 1 if header.runs else header.offset
        return header

    def fill(self, view: memoryview) -> None:
        """Read ``len(view)`` bytes of a payload."""
        assert self._response is not None
        body, done = self._response.body, 0
        while done < len(view):
            count = body.readinto(view[done:])
            if not count:
                raise SourceTruncated("the source ended its response within a chunk", where=WHERE)
            done += count

    def readinto(self, view: memoryview) -> int:
        """Read verified bytes of an archive."""
        while not self._buffer:
            position = self._source.position
            header = self.next_header()
            if header is None:
                return 0
            if not header.runs:
                continue
            if header.offset != position or header.runs[0] != (0, header.data):
                raise PeerProtocolError(f"invalid chunk at offset {header.offset} of an archive after {position} bytes")
            payload = memoryview(bytearray(header.payload))
            self.fill(payload)
            self._buffer = verified(header, payload)
            self._source.chain.add(header.offset, header.leaf)
            self._source.position = self._position = position + header.data
        count = min(len(view), len(self._buffer))
        view[:count] = self._buffer[:count]
        self._buffer = self._buffer[count:]
        return count

    def abort(self) -> None:
        self._cancel.cancel()

    def close(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            self._source.release(response)


def verified(header: ChunkHeader, payload: memoryview) -> memoryview:
    """Return the bytes of all runs of a chunk; raise `ChecksumMismatch`, or `PeerProtocolError` for a bad frame."""
    plain = memoryview(unpack(payload, header.data)) if header.compressed else payload
    if leaf_hash(header.runs, (plain,)) != header.leaf:
        raise ChecksumMismatch(f"the chunk at offset {header.offset} does not match its digest", remedy=_REMEDY)
    return plain


def _read_whole(response: Response, limit: int) -> bytes:
    data, done = memoryview(bytearray(limit + 1)), 0
    while done < len(data) and (count := response.body.readinto(data[done:])):
        done += count
    if done > limit:
        raise PeerProtocolError(f"a document exceeds {limit} bytes")
    return bytes(data[:done])
