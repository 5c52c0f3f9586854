"""Reading a run of bytes, in as many answers as the server needs for it."""

from __future__ import annotations

from typing import Protocol

from cdi.api.errors import InternalError, Interrupted, SourceTooLong, SourceTruncated
from cdi.source.connection import Canceller
from cdi.source.http_message import Response


class Fetcher(Protocol):
    """What a reader needs of its source."""

    def fetch(self, start: int, end: int | None, cancel: Canceller) -> tuple[Response, int | None]:
        """An answer whose body begins at `start`, and where it ends (None: not known), at most `end`."""
        ...

    def finished(self, response: Response) -> None:
        """Nothing more is read from it."""
        ...

    def forget(self, reader: HttpReader) -> None:
        """The reader need not be interrupted any more."""
        ...


class HttpReader:
    """A run of bytes of an `HttpSource`."""

    def __init__(self, source: Fetcher, location: str, start: int, end: int | None) -> None:
        self._source = source
        self._location = location
        self._position = start
        self._end = end
        self._part_end: int | None = None
        self._response: Response | None = None
        self._cancel = Canceller()
        self._done = False
        self._failed = False

    def readinto(self, view: memoryview) -> int:
        """As `cdi.source.base.Reader`; also any error that `HttpSource.probe` raises."""
        if self._cancel.requested:
            raise Interrupted("reading was interrupted", where=self._location)
        if self._failed:
            # Reading on would begin at the wrong place where the source has no ranges.
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
        self._source.finished(response)
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
            self._source.finished(response)

    def _finish(self) -> None:
        self._done = True
        self._source.forget(self)
