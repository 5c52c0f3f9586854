"""Sequential reading of a byte range, in as many responses as the server needs for it."""

from __future__ import annotations

from typing import Protocol

from cdi.api.errors import InternalError, Interrupted, SourceTooLong, SourceTruncated
from cdi.http.dialer import SocketCanceller
from cdi.http.message import Response


class RangeOpener(Protocol):
    """The part of a source that a reader needs."""

    def fetch(self, start: int, end: int | None, cancel: SocketCanceller) -> tuple[Response, int | None]:
        """Return a response whose body begins at `start`, and the offset of its end, at most `end`; None if unknown."""
        ...

    def finished(self, response: Response) -> None:
        """Release the response, from which nothing more is read."""
        ...

    def unregister(self, reader: HttpReader) -> None:
        """Unregister the reader, so that `close` does not interrupt it."""
        ...


class HttpReader:
    """A reader of one byte range of an `HttpSource`."""

    def __init__(self, source: RangeOpener, location: str, start: int, end: int | None) -> None:
        self._source = source
        self._location = location
        self._position = start
        self._end = end
        self._part_end: int | None = None
        self._response: Response | None = None
        self._cancel = SocketCanceller()
        self._done = False
        self._failed = False

    def readinto(self, view: memoryview) -> int:
        """Read as `cdi.source.base.Reader` does; also raises any error of `HttpSource.probe`."""
        if self._cancel.requested:
            raise Interrupted("reading was interrupted", where=self._location)
        if self._failed:
            # Without ranges, a new response would start at offset 0, not at the current position.
            raise InternalError("a reader that failed was read again", where=self._location)
        if not len(view):
            return 0
        if self._done or self._position == self._end:
            self._finish()
            return 0
        try:
            return self._read(view)
        except BaseException:
            self._failed = True
            self._drop()
            raise

    def _read(self, view: memoryview) -> int:
        if self._response is None:
            self._response, self._part_end = self._source.fetch(self._position, self._end, self._cancel)
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
                f"the server sent {self._position} of {stop} bytes and ended the response",
                where=response.url.redacted,
            )
        self._position += count
        if self._position == stop:
            self._end_of_part(response)
        return count

    def _end_of_part(self, response: Response) -> None:
        """Check that the response also ends where the part ends, and release it."""
        if self._position == self._part_end and not response.body.ended:
            self._expect_eof(response)
        self._response = None
        self._source.finished(response)
        if self._position == self._end:
            self._finish()

    def _expect_eof(self, response: Response) -> None:
        if not response.body.reads_until_close or not response.connection.is_reusable():
            if response.read_prefix(1):
                raise SourceTooLong(
                    f"the response exceeds the announced {self._part_end} bytes", where=response.url.redacted
                )
            self._cancel.check()

    def abort(self) -> None:
        self._cancel.cancel()

    def close(self) -> None:
        self._drop()
        self._finish()

    def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            self._source.finished(response)

    def _finish(self) -> None:
        self._done = True
        self._source.unregister(self)
