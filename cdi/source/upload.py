"""A source that other threads of this process supply with the bodies of uploads, one after the other.

The transfer's thread reads from a body directly into its own buffer, so no copy lies between the connection and the
decoder. The thread that supplies a body blocks until it is consumed; without a body, the transfer blocks.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol, Self

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, InternalError, Interrupted, SourceUnreachable, UploadUnderWay
from cdi.source.base import SourceFacts

_POLL_INTERVAL = 0.5


class BodyReader(Protocol):
    """A body that contains a part of the content."""

    def readinto(self, view: memoryview) -> int:
        """Read some bytes into `view`; return 0 at the proper end, and raise a `SourceError` at any other end."""
        ...

    def interrupt(self) -> None:
        """Make the current or next read fail soon. Thread-safe."""
        ...


class UploadSource:
    """A `cdi.source.base.Source` that can be opened once.

    With `resumes` the content may arrive in several bodies, each continuing where the previous one broke off. Otherwise
    the first body is the whole content, and its failure is the failure of the source.
    """

    def __init__(
        self,
        *,
        location: str,
        length: int | None = None,
        announced: int | None = None,
        digests: tuple[Digest, ...] = (),
        validator: str | None = None,
        resumes: bool = False,
    ) -> None:
        self._facts = SourceFacts(
            location=location,
            length=length,
            announced=announced,
            ranges=False,
            resumes=resumes,
            validator=validator,
            digests=digests,
        )
        self._cond = threading.Condition()
        self._body: BodyReader | None = None
        self._last = False
        self._failure: CdiError | None = None
        """The failure of the latest body."""
        self._broken: CdiError | None = None
        """The failure after which no further body is accepted."""
        self._opened = self._closed = self._aborted = self._complete = False
        self._offset = 0
        self._last_activity = time.monotonic()

    # --- Source protocol, used by the transfer ---

    def probe(self) -> SourceFacts:
        return self._facts

    def open(self, offset: int = 0, length: int | None = None) -> FedReader:
        """Return the only reader; raise `SourceUnreachable` on a second call, as the bytes cannot be read again."""
        if length is not None or (offset and not self._facts.resumes):
            raise InternalError("range requested from an upload", where=self._facts.location)
        with self._cond:
            if self._opened:
                raise SourceUnreachable("an upload can be read only once", where=self._facts.location)
            self._opened, self._offset = True, offset
            self._complete = offset == self._facts.length
            self._cond.notify_all()
        return FedReader(self)

    def sibling(self, name: str) -> None:
        del name

    def close(self) -> None:
        """Close the source: interrupt the current body, and accept no further ones."""
        with self._cond:
            self._closed = True
            if self._body is not None:
                self._body.interrupt()
                self._body = None
            self._cond.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- Interface for the threads that supply bodies ---

    @property
    def offset(self) -> int:
        """The offset of the next byte, in the content."""
        return self._offset

    @property
    def complete(self) -> bool:
        """True if the whole content was received."""
        return self._complete

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
            return self._cond.wait_for(lambda: self._opened or self._closed, seconds) and self._opened

    def feed(self, body: BodyReader, *, last: bool) -> bool:
        """Supply `body` and wait until it is consumed; `last` says that the content ends with it.

        Returns False if the transfer ended earlier, which then has the reason. Raises what the body raised, and
        `UploadUnderWay` while another body is being read.
        """
        with self._cond:
            if self._body is not None:
                raise UploadUnderWay("another connection is sending this upload")
            if self._closed or self._complete:
                return self._complete
            self._body, self._last, self._failure = body, last, None
            self._cond.notify_all()
            while self._body is body:
                self._cond.wait(_POLL_INTERVAL)
            self._last_activity = time.monotonic()
            if self._failure is not None and not self._aborted:
                raise self._failure
            return not (self._aborted or self._closed) or self._complete

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
        while True:
            with self._cond:
                while self._body is None and not (self._complete or self._aborted or self._broken):
                    self._cond.wait(_POLL_INTERVAL)
                if self._aborted:
                    raise Interrupted("reading was interrupted", where=self._facts.location)
                if self._complete:
                    return 0
                body = self._body
                if body is None:
                    assert self._broken is not None
                    raise self._broken
            length = self._facts.length
            room = view if length is None else view[: length - self._offset]
            try:
                count = body.readinto(room)
            except CdiError as failure:
                self._finish_body(failure)
                continue
            self._offset += count
            if not count or self._offset == length:
                with self._cond:
                    self._complete = self._offset == length or (length is None and self._last)
                self._finish_body(None)
            if count:
                return count

    def _finish_body(self, failure: CdiError | None) -> None:
        with self._cond:
            self._body, self._failure = None, failure
            if failure is not None and not self._facts.resumes:
                self._broken = failure
            self._cond.notify_all()

    def abort(self) -> None:
        with self._cond:
            self._aborted = True
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
