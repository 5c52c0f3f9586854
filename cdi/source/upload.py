"""A source that other threads of this process supply with the bodies of uploads, one after the other.

The transfer's thread reads from a body directly into its own buffer, so no copy lies between the connection and the
decoder. The thread that supplies a body blocks until it is consumed; without a body, the transfer blocks.

Some programs send a form without its head as the body: the file and the form's closing delimiter after it (RFC 2046,
section 5.1.1). The delimiter is cut off here, so that decoders and disks see the file only.
"""

from __future__ import annotations

import enum
import re
import threading
import time
from collections.abc import Callable
from typing import Protocol, Self

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, InternalError, Interrupted, SourceUnreachable, UploadUnderWay
from cdi.source.base import SourceFacts

LOCATION = "the upload"
"""Location of every upload in messages."""
_CLOSING_DELIMITER = re.compile(rb"\r\n--[0-9A-Za-z'()+_,./:=? -]{1,70}--(?:\r\n)?\Z")
_MAX_CLOSING_DELIMITER = 78
"""Maximum size in bytes of what `_CLOSING_DELIMITER` matches."""


class BodyReader(Protocol):
    """A body that contains a part of the content."""

    def readinto(self, view: memoryview) -> int:
        """Read some bytes into `view`; return 0 at the proper end, and raise a `SourceError` at any other end."""
        ...

    def interrupt(self) -> None:
        """Make the current or next read fail soon. Thread-safe."""
        ...


class ContentState(enum.Enum):
    """State of the content of an upload; all states but `CREATED` and `OPEN` are final."""

    CREATED = "not opened yet"
    OPEN = "being received"
    COMPLETE = "complete"
    """The whole content was received."""
    BROKEN = "broken off"
    """A body failed that no other can continue."""
    INTERRUPTED = "interrupted"
    """The reader was interrupted before the content was complete."""
    CLOSED = "closed"
    """The transfer has ended before the content was complete."""


_UNFINISHED = {ContentState.CREATED, ContentState.OPEN}


class _FileBody:
    """A body of `length` bytes without the closing delimiter of a form, if it ends with one."""

    def __init__(self, body: BodyReader, length: int) -> None:
        self._body = body
        self._before = max(0, length - _MAX_CLOSING_DELIMITER)
        """Bytes to read before the part that may contain the delimiter."""
        self._end: memoryview | None = None
        """The unread bytes of that part; None before it is reached."""

    def readinto(self, view: memoryview) -> int:
        if self._before:
            count = self._body.readinto(view[: self._before])
            self._before -= count
            return count
        if self._end is None:
            self._end = self._read_end()
        count = min(len(view), len(self._end))
        view[:count], self._end = self._end[:count], self._end[count:]
        return count

    def _read_end(self) -> memoryview:
        end, piece = bytearray(), memoryview(bytearray(_MAX_CLOSING_DELIMITER))
        while count := self._body.readinto(piece):
            end += piece[:count]
        return memoryview(_CLOSING_DELIMITER.sub(b"", end))

    def interrupt(self) -> None:
        self._body.interrupt()


class UploadSource:
    """A `cdi.source.base.Source` that can be opened once.

    With `resumes` the content may arrive in several bodies, each continuing where the previous one broke off. Otherwise
    the first body is the whole content, and its failure is the failure of the source. With `body_length` it has that
    many bytes, and what follows the file of a form is cut off.
    """

    def __init__(
        self,
        *,
        length: int | None = None,
        body_length: int | None = None,
        digests: tuple[Digest, ...] = (),
        validator: str | None = None,
        resumes: bool = False,
        on_complete: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the source of one upload.

        Args:
            length: Length of the content in bytes, if it is known.
            body_length: Length of the only body in bytes, if what follows the file of a form is cut off.
            digests: Digests that the content must have.
            validator: Identifies the content in a journal.
            resumes: Whether several bodies may bring the content.
            on_complete: Called once, as soon as the whole content was received.

        """
        self._facts = SourceFacts(
            location=LOCATION,
            length=length,
            min_length=0 if body_length is None else max(0, body_length - _MAX_CLOSING_DELIMITER),
            max_length=body_length,
            ranges=False,
            resumes=resumes,
            validator=validator,
            digests=digests,
        )
        self._on_complete = on_complete
        self._cond = threading.Condition()
        self._state = ContentState.CREATED
        self._body: BodyReader | None = None
        self._last = False
        self._failure: CdiError | None = None
        """The failure of the latest body."""
        self._offset: int | None = None
        """Offset of the next byte in the content; None until the source is opened."""
        self._last_activity = time.monotonic()

    def __repr__(self) -> str:
        return f"<UploadSource: {self._state.value}, {self.offset} bytes received>"

    # --- Source protocol, used by the transfer ---

    def probe(self) -> SourceFacts:
        return self._facts

    def open(self, offset: int = 0, length: int | None = None) -> FedReader:
        """Return the only reader; raise `SourceUnreachable` on a second call, as the bytes cannot be read again."""
        if length is not None or (offset and not self._facts.resumes):
            raise InternalError("range requested from an upload", where=LOCATION)
        with self._cond:
            if self._state is not ContentState.CREATED:
                raise SourceUnreachable("an upload can be read only once", where=LOCATION)
            self._offset = offset
            complete = offset == self._facts.length
            self._state = ContentState.COMPLETE if complete else ContentState.OPEN
            self._cond.notify_all()
        if complete:
            self._on_complete()
        return FedReader(self)

    def sibling(self, name: str) -> None:
        del name

    def close(self) -> None:
        """Close the source: interrupt the current body, and accept no further ones."""
        with self._cond:
            self._end(ContentState.CLOSED)
            self._body = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- Interface for the threads that supply bodies ---

    @property
    def offset(self) -> int:
        """The offset of the next byte in the content; 0 until the source is opened."""
        return self._offset or 0

    @property
    def complete(self) -> bool:
        """True if the whole content was received."""
        return self._state is ContentState.COMPLETE

    @property
    def idle(self) -> float:
        """Seconds since the last body ended, or since creation; 0 while a body is being read."""
        with self._cond:
            return 0.0 if self._body is not None else time.monotonic() - self._last_activity

    def wait_open(self, seconds: float) -> bool:
        """Wait up to `seconds` until the transfer has opened the source; return whether it has.

        Only then is `offset` valid.
        """
        with self._cond:
            self._cond.wait_for(lambda: self._state is not ContentState.CREATED, seconds)
            return self._offset is not None

    def feed(self, body: BodyReader, *, last: bool) -> bool:
        """Supply `body` and wait until it is consumed; `last` says that the content ends with it.

        Returns False if the transfer ended earlier, which then has the reason. Raises what the body raised, and
        `UploadUnderWay` while another body is being read.
        """
        with self._cond:
            if self._body is not None:
                raise UploadUnderWay("another connection is sending this upload")
            if self._state not in _UNFINISHED:
                return self.complete
            if self._facts.max_length is not None:
                body = _FileBody(body, self._facts.max_length)
            self._body, self._last, self._failure = body, last, None
            self._cond.notify_all()
            self._cond.wait_for(lambda: self._body is not body)
            self._last_activity = time.monotonic()
            if self._failure is not None and self._state is not ContentState.INTERRUPTED:
                raise self._failure
            return self._state in {ContentState.OPEN, ContentState.COMPLETE}

    def preempt(self, seconds: float) -> None:
        """Interrupt the current body and wait up to `seconds` until it is released.

        The latest connection of a resumable upload takes precedence.
        """
        with self._cond:
            body = self._body
            if body is not None:
                body.interrupt()
                self._cond.wait_for(lambda: self._body is not body, seconds)

    # --- Interface for the reader ---

    def read(self, view: memoryview) -> int:
        assert self._offset is not None
        while True:
            with self._cond:
                self._cond.wait_for(lambda: self._body is not None or self._state is not ContentState.OPEN)
                match self._state:
                    case ContentState.COMPLETE:
                        return 0
                    case ContentState.BROKEN:
                        assert self._failure is not None
                        raise self._failure
                    case ContentState.OPEN:
                        body = self._body
                        assert body is not None
                    case _:
                        raise Interrupted("reading was interrupted", where=LOCATION)
            length = self._facts.length
            room = view if length is None else view[: length - self._offset]
            try:
                count = body.readinto(room)
            except CdiError as failure:
                self._finish_body(failure)
                continue
            self._offset += count
            if not count or self._offset == length:
                self._finish_body(None)
            if count:
                return count

    def _finish_body(self, failure: CdiError | None) -> None:
        """Release the current body, which has ended, and the thread that supplies it."""
        facts = self._facts
        with self._cond:
            if self._state is ContentState.OPEN:
                if failure is not None and not facts.resumes:
                    self._state = ContentState.BROKEN
                elif failure is None and (self._offset == facts.length or (facts.length is None and self._last)):
                    self._state = ContentState.COMPLETE
            complete = self.complete
        if complete:
            # Before the thread that supplies the body continues, so that it finds the state that follows.
            self._on_complete()
        with self._cond:
            self._body, self._failure = None, failure
            self._cond.notify_all()

    def abort(self) -> None:
        with self._cond:
            self._end(ContentState.INTERRUPTED)

    def _end(self, state: ContentState) -> None:
        """Interrupt the current body, and enter `state` unless the content is in a final state."""
        if self._state in _UNFINISHED:
            self._state = state
        if self._body is not None:
            self._body.interrupt()
        self._cond.notify_all()


class FedReader:
    """The only reader of a `UploadSource`."""

    def __init__(self, source: UploadSource) -> None:
        self._source = source

    def readinto(self, view: memoryview) -> int:
        """Read some bytes into `view`; raise the failure of a body that cannot be continued, and `Interrupted`."""
        return self._source.read(view)

    def abort(self) -> None:
        self._source.abort()

    def close(self) -> None:
        """Do nothing: the source is closed by its owner."""
