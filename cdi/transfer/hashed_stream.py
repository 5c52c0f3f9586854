"""Stream of the source's content, hashed and counted while a decoder consumes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from cdi.api.errors import ContentTruncated, ImageError
from cdi.codec.base import Buffer
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Hash


class HashedStream:
    """One pass over the content to its end; a context manager that closes it."""

    def __init__(
        self, reader: ResumingReader, digest: Hash | None, meter: ProgressMeter, connections: int, start: int = 0
    ) -> None:
        """Open the stream at byte `start`, which is 0 unless the source `resumes`."""
        self._reader = reader
        self._digest = digest
        self._meter = meter
        self._stream: Generator[memoryview, None, None] = reader.stream(connections, start)
        self._pool = ThreadPoolExecutor(1, "digest")
        self.start = start
        self.total = start
        """Offset of the next byte: bytes received, plus those before `start`."""
        self.is_empty = True
        """Whether no byte was received yet."""
        self.record_states = False
        """Whether the digest's state is kept after every piece, for `checkpoint_before`."""
        self._states: deque[tuple[int, bytes | None]] = deque()
        self._pieces = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close the stream; raise `RestartRequired` for content that ended early, if its connection may be the cause.

        Content that is empty counts as well, whatever its decoder made of it.
        """
        self.close()
        if isinstance(error, ContentTruncated) or (isinstance(error, ImageError) and self.is_empty):
            cause = self._reader.truncated(error)
            if cause is not error:
                raise cause from error

    def drain(self) -> None:
        """Read the content to its end: data after the image is covered by the content's length and digest too."""
        for _ in self._pieces:
            pass

    @property
    def pieces(self) -> Iterator[memoryview]:
        """The content in order; a view is valid until the next one is requested."""
        return self._pieces

    def _read(self) -> Iterator[memoryview]:
        for view in self._stream:
            self.is_empty = False
            # Hash in another thread while the decoder works on the same bytes.
            hashing = None if self._digest is None else self._pool.submit(self._digest.update, view)
            try:
                yield view
            finally:
                if hashing is not None:
                    hashing.result()
            self.total += len(view)
            self._meter.advance(self.total)
            if self.record_states:
                self._states.append((self.total, None if self._digest is None else self._digest.save()))

    def interruptible(self, decoded: Iterator[Buffer]) -> Iterator[Buffer]:
        """Yield from `decoded`, the output of a decoder of `pieces`; raise `Interrupted` after a cancellation.

        Output that consumes source bytes is still yielded after a cancellation, so that a watermark covers all received
        data. The check is needed for output that consumes none: a sparse member of a tar archive decodes to terabytes
        of zeros.
        """
        used = None
        for piece in decoded:
            if self.total == used:
                self._reader.check()
            used = self.total
            yield piece

    def checkpoint_before(self, offset: int) -> tuple[int, bytes | None] | None:
        """Return the end of the last piece that is not beyond `offset`, and the digest's state there.

        Returns None if there is no such piece, or the state cannot be saved. Thread-safe; `offset` must not decrease
        from call to call.
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
