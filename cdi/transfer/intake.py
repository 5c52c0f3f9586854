"""The source's bytes in order, hashed and counted on their way into a decoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from cdi.codec.base import Buffer
from cdi.transfer.fetch import Fetcher
from cdi.transfer.meter import Meter
from cdi.transfer.watermark import Hash


class Intake:
    """One reading of the content to its end.  To be closed."""

    def __init__(self, fetcher: Fetcher, digest: Hash | None, meter: Meter, connections: int, start: int = 0) -> None:
        """`start` is where a source that `resumes` goes on, bytes."""
        self._fetcher = fetcher
        self._digest = digest
        self._meter = meter
        self._stream: Generator[memoryview, None, None] = fetcher.stream(connections, start)
        self._pool = ThreadPoolExecutor(1, "digest")
        self.start = start
        self.total = start
        """Bytes that have come, those before `start` included."""
        self.is_empty = True
        """No byte has come yet."""
        self.remembers = False
        """Keep the digest's state after every piece, for `passed`."""
        self._states: deque[tuple[int, bytes | None]] = deque()

    def pieces(self) -> Iterator[memoryview]:
        """From the first byte to the last; a view is good until the next one is asked for."""
        for view in self._stream:
            self.is_empty = False
            # The digest is taken beside the decoder, which works on the same bytes.
            hashing = None if self._digest is None else self._pool.submit(self._digest.update, view)
            try:
                yield view
            finally:
                if hashing is not None:
                    hashing.result()
            self.total += len(view)
            self._meter.advance(self.total)
            if self.remembers:
                self._states.append((self.total, None if self._digest is None else self._digest.save()))

    def interruptible(self, decoded: Iterator[Buffer]) -> Iterator[Buffer]:
        """Yield from what `pieces` decode to; raise `Interrupted` once the transfer is cancelled and no piece is used.

        A sparse member of a tar archive decodes to terabytes of zeros without another byte of the source. What was
        received before a cancellation is still given, so that a watermark covers it.
        """
        used = None
        for piece in decoded:
            if self.total == used:
                self._fetcher.check()
            used = self.total
            yield piece

    def passed(self, offset: int) -> tuple[int, bytes | None] | None:
        """The last end of a piece that is not beyond `offset`, and the digest's state there.

        None where there is none, or its state cannot be had.  Any thread; `offset` only grows.
        """
        found = None
        while self._states and self._states[0][0] <= offset:
            found = self._states.popleft()
        if found is None or (self._digest is not None and found[1] is None):
            return None
        return found

    def close(self) -> None:
        self._stream.close()
        self._pool.shutdown()
