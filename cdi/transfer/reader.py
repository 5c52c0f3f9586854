"""Reader of a source, with retries, rate limits, progress counting and read-ahead.

After a lost connection the next request begins at the byte where the last one ended; the source checks that the content
is still the same. Each such continuation spends the transfer's retry budget (`cdi.transfer.retry`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self

from cdi.api.errors import (
    CdiError,
    ContentTruncated,
    ImageError,
    Retry,
    SourceChanged,
    SourceTooLong,
    SourceTruncated,
)
from cdi.image.sizes import require_size
from cdi.source.base import Ending, Reader, Source, SourceFacts
from cdi.target.buffer import aligned_buffer
from cdi.transfer.control import TransferControl
from cdi.transfer.plan_input import may_use_ranges
from cdi.transfer.retry import RestartRequired

STREAM_CHUNK = 2 << 20
_STREAM_MEMORY = 6 * STREAM_CHUNK
"""Maximum size of the read-ahead in bytes: a decoder may need 128 MiB in addition."""
_FIRST = 256 << 10
"""Number of bytes at the start of a stream that are read in small pieces and without read-ahead.

Most images are recognised, and unsupported ones rejected, before more is taken from the sender.
"""
_FIRST_CHUNK = 64 << 10
_PAGE = 4096


def _bounded(facts: SourceFacts) -> SourceFacts:
    """Return `facts`; raise `FormatUnsupported` if the source states a length that no image can have."""
    for stated in (facts.length, facts.max_length):
        if stated is not None:
            require_size(stated, "the source announces", where=facts.location)
    return facts


class ResumingReader:
    """Reader of one transfer's source; a context manager, within which a cancellation interrupts it.  Thread-safe.

    The methods raise the source's own errors once the retry budget is spent, and `Interrupted` when the transfer is
    cancelled.
    """

    def __init__(self, source: Source, control: TransferControl) -> None:
        self.source = source
        self._control = control
        self._meter = control.meter
        self._throttle = control.throttle
        self._cancelled = control.cancelled
        self._retries = control.retries
        self._readers: set[Reader] = set()
        self._lock = threading.Lock()
        self._scope = ExitStack()
        self.facts: SourceFacts = _bounded(self._retries.call(source.probe))
        self.digest_promised = False
        """Whether the content will be compared with a known digest."""
        self.unclean_end: SourceTruncated | None = None
        """The error that ended the stream, if it leaves open whether the stream was complete."""

    def __repr__(self) -> str:
        state = "cancelled" if self._cancelled.is_set() else "ranged" if self.ranged else "streamed"
        return f"<ResumingReader of {self.facts.location}: {state}, {len(self._readers)} requests in progress>"

    def __enter__(self) -> Self:
        self._scope.enter_context(self._control.cancelling(self.abort))
        return self

    def __exit__(self, *_: object) -> None:
        self._scope.close()

    @property
    def ranged(self) -> bool:
        """True if the content is read with range requests."""
        return may_use_ranges(self.facts, digest_promised=self.digest_promised)

    # --- the end of the content -------------------------------------------------------------------------------------

    @property
    def may_be_cut(self) -> bool:
        """True if the stream may have been truncated undetected."""
        facts = self.facts
        return facts.length is None and (facts.ending is Ending.CLOSE or self.unclean_end is not None)

    def proof_of_end(self, *, end_marked: bool) -> str | None:
        """Return what proves that the content is complete, or None.

        `end_marked` is whether the content was decoded up to an end mark of its own.
        """
        if self.facts.length is not None:
            return "length"
        if not self.may_be_cut and self.facts.ending is not Ending.PIPE:
            return "transfer framing"
        return "content structure" if end_marked else None

    def truncated(self, error: ImageError) -> Exception:
        """Return the exception to raise for content that is empty or ends early.

        Returns:
            `RestartRequired` if the connection may have been cut off; `error` if the transfer was complete, so that the
            file itself is too short.
        """
        if not self.may_be_cut:
            return error
        remedy = "use a server that sends Content-Length; if this happens each time, the file itself is incomplete"
        cut = ContentTruncated(
            f"{error.what}, and the server announced no length", where=error.where or self.facts.location, remedy=remedy
        )
        cut.checks = error.checks
        return RestartRequired(cut)

    # --- cancellation -------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Interrupt all reads in progress.

        A cancellation sets `cancelled` first, so that reads opened later are interrupted too.
        """
        with self._lock:
            readers = list(self._readers)
        for reader in readers:
            reader.abort()

    def check(self) -> None:
        self._retries.check()

    def open(self, offset: int, length: int | None) -> Reader:
        """Open a reader of the source that a cancellation interrupts; the caller passes it to `release`."""
        reader = self.source.open(offset, length)
        with self._lock:
            self._readers.add(reader)
        if self._cancelled.is_set():
            reader.abort()
        return reader

    def release(self, reader: Reader) -> None:
        with self._lock:
            self._readers.discard(reader)
        reader.close()

    def connections(self, planned: int) -> int:
        """Return how many connections to use now: the limit if one is set, else `planned`."""
        return self._throttle.connections or planned

    # --- reading ------------------------------------------------------------------------------------------------

    def read_range_into(self, offset: int, view: memoryview) -> None:
        """Read exactly ``len(view)`` bytes from `offset`; the source must support ranges."""
        got = 0
        ticket = self._throttle.priority()
        while got < len(view):
            attempt = self._retries.attempt()
            try:
                with self._throttle.slot(ticket):
                    reader = self.open(offset + got, len(view) - got)
                    try:
                        while got < len(view):
                            count = reader.readinto(view[got : got + self._throttle.max_read(len(view) - got)])
                            if count == 0:
                                raise SourceTruncated(
                                    f"the content ended at byte {offset + got}, before {offset + len(view)}",
                                    where=self.facts.location,
                                )
                            got += count
                            self._meter.add_fetched(count)
                            self._throttle.consume(count, ticket)
                    finally:
                        self.release(reader)
            except CdiError as failure:
                self._retries.backoff(failure, attempt)
            else:
                self._meter.clear_failure()

    def read(self, offset: int, length: int) -> bytes:
        """Return a small range, clipped to the content."""
        if self.facts.length is not None:
            length = max(0, min(length, self.facts.length - offset))
        data = bytearray(length)
        if length:
            self.read_range_into(offset, memoryview(data))
        return bytes(data)

    def stream(self, connections: int, start: int = 0) -> Generator[memoryview, None, None]:
        """Yield the content in order, from the byte `start` if the source `resumes`.

        A view is valid until the next one is requested. With ranges, several connections read ahead, and a lost one is
        continued where it broke. Without, there is one connection, and its loss raises `RestartRequired`: the caller
        has to start over. An end that may be a truncation ends the stream and is recorded in `unclean_end`.
        """
        if self.ranged and self.facts.length is not None:
            return self._stream_prefetched(self.facts.length, max(1, connections))
        return self._stream_single(start)

    def _stream_single(self, start: int) -> Generator[memoryview, None, None]:
        """Yield the content of one connection, read by a separate thread so that decoding and receiving overlap."""
        ready: deque[tuple[memoryview, int] | BaseException | None] = deque()
        free = deque([aligned_buffer(STREAM_CHUNK)])
        more = [aligned_buffer(STREAM_CHUNK) for _ in range(2)]
        turn = threading.Condition()
        ended = False

        def put(item: tuple[memoryview, int] | BaseException | None) -> None:
            with turn:
                ready.append(item)
                turn.notify_all()

        def receive() -> None:
            try:
                ticket = self._throttle.priority()
                with self._throttle.slot(ticket):
                    reader = self.open(start, None)
                    try:
                        self._receive(reader, start, ticket, take, put)
                    finally:
                        self.release(reader)
                put(None)
            except BaseException as failure:  # noqa: BLE001 - handed over to the consuming thread
                put(failure)

        def take() -> memoryview | None:
            with turn:
                while not free and not ended:
                    turn.wait(0.5)
                    self.check()
                return None if ended else free.popleft()

        thread = threading.Thread(target=receive, name="receive", daemon=True)
        thread.start()
        given = 0
        try:
            while True:
                with turn:
                    while not ready:
                        turn.wait(0.5)
                    item = ready.popleft()
                if item is None:
                    return
                if isinstance(item, CdiError) and item.retry is Retry.BACKOFF and not self._cancelled.is_set():
                    raise item if isinstance(item, SourceChanged) else RestartRequired(item)
                if isinstance(item, BaseException):
                    raise item
                buffer, filled = item
                yield buffer[:filled]
                given += filled
                with turn:
                    free.append(buffer)
                    if given >= _FIRST:
                        free.extend(more)
                        more.clear()
                    turn.notify_all()
        finally:
            with turn:
                ended = True
                turn.notify_all()
            if thread.is_alive():
                self.abort()
            thread.join()

    def _receive(
        self,
        reader: Reader,
        start: int,
        ticket: int,
        take: Callable[[], memoryview | None],
        put: Callable[[tuple[memoryview, int]], None],
    ) -> None:
        total, length = start, self.facts.length
        while True:
            buffer = take()
            if buffer is None:
                return
            size = len(buffer) if total - start >= _FIRST else min(len(buffer), _FIRST_CHUNK)
            filled = 0
            while filled < size:
                count = self._read_once(reader, buffer[filled : filled + self._throttle.max_read(size - filled)])
                if count == 0:
                    break
                filled += count
                total += count
                self._meter.add_fetched(count)
                self._throttle.consume(count, ticket)
                if length is not None and total > length:
                    raise SourceTooLong(f"the content exceeds the announced {length} bytes", where=self.facts.location)
            if filled:
                put((buffer, filled))
            if filled < size:
                if length is not None and total < length:
                    raise SourceTruncated(f"the content ended at byte {total} of {length}", where=self.facts.location)
                return

    def _read_once(self, reader: Reader, view: memoryview) -> int:
        try:
            return reader.readinto(view)
        except SourceTruncated as error:
            if not error.unclean_eof or self.facts.length is not None:
                raise
            self.unclean_end = error
            return 0

    def _stream_prefetched(self, end: int, connections: int) -> Generator[memoryview, None, None]:
        waiting: deque[tuple[Future[None], memoryview]] = deque()
        chunk = min(STREAM_CHUNK, _STREAM_MEMORY // (connections + 2) // _PAGE * _PAGE)
        free = [aligned_buffer(chunk) for _ in range(connections + 2)]
        position = given = 0
        with ThreadPoolExecutor(connections, "fetch") as pool:
            try:
                while waiting or position < end:
                    while free and position < end:
                        buffer = free.pop()
                        view = buffer[: min(chunk, end - position)]
                        waiting.append((pool.submit(self.read_range_into, position, view), buffer))
                        position += len(view)
                    future, buffer = waiting.popleft()
                    future.result()
                    size = min(chunk, end - given)
                    given += size
                    yield buffer[:size]
                    free.append(buffer)
            finally:
                for future, _ in waiting:
                    future.cancel()
                if any(not future.done() for future, _ in waiting):
                    self.abort()
