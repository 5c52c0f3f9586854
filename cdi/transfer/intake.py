"""The source's bytes in order, hashed and counted on their way into a decoder."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from cdi.transfer.fetch import Fetcher
from cdi.transfer.meter import Meter
from cdi.transfer.watermark import Hash


class Intake:
    """One reading of the whole content.  To be closed."""

    def __init__(self, fetcher: Fetcher, digest: Hash | None, meter: Meter, connections: int) -> None:
        self._digest = digest
        self._meter = meter
        self._stream: Generator[memoryview, None, None] = fetcher.stream(connections)
        self._pool = ThreadPoolExecutor(1, "digest")
        self.total = 0
        """Bytes that have come."""

    def pieces(self) -> Iterator[memoryview]:
        """From the first byte to the last; a view is good until the next one is asked for."""
        for view in self._stream:
            # The digest is taken beside the decoder, which works on the same bytes.
            hashing = None if self._digest is None else self._pool.submit(self._digest.update, view)
            try:
                yield view
            finally:
                if hashing is not None:
                    hashing.result()
            self.total += len(view)
            self._meter.advance(self.total)

    def close(self) -> None:
        self._stream.close()
        self._pool.shutdown()
