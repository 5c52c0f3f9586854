"""A source whose bytes other threads of this process bring: the bodies of uploads, one after the other.

The transfer's own thread reads from a body into the transfer's buffer, so nothing lies between the connection and the
decoder; whoever brings a body waits for it to be used up.  While there is none, the transfer waits.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol, Self

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, InternalError, Interrupted, SourceUnreachable, UploadUnderWay
from cdi.source.base import SourceFacts

_LOOK_SECONDS = 0.5


class Brought(Protocol):
    """Some of the content."""

    def readinto(self, view: memoryview) -> int:
        """Some bytes; 0 at the proper end.  Raises a `SourceError` at any other."""
        ...

    def interrupt(self) -> None:
        """From any thread: a read under way, or the next, fails soon."""
        ...


class FedSource:
    """A `cdi.source.base.Source` that is opened once.

    With `resumes` the bodies may come apart: one that breaks off is gone on with by the next.  Without, the first one
    is the whole content, and when it breaks the source does.
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
        self._turn = threading.Condition()
        self._body: Brought | None = None
        self._last = False
        self._failure: CdiError | None = None
        """Of the latest body."""
        self._broken: CdiError | None = None
        """There is no going on."""
        self._opened = self._closed = self._aborted = self._complete = False
        self._offset = 0
        self._moved = time.monotonic()

    # --- what the transfer sees ---------------------------------------------------------------------------------

    def probe(self) -> SourceFacts:
        return self._facts

    def open(self, offset: int = 0, length: int | None = None) -> FedReader:
        """Raises `SourceUnreachable` the second time: what was read is gone."""
        if length is not None or (offset and not self._facts.resumes):
            raise InternalError("a part was asked for of an upload", where=self._facts.location)
        with self._turn:
            if self._opened:
                raise SourceUnreachable("an upload can be read only once", where=self._facts.location)
            self._opened, self._offset = True, offset
            self._complete = offset == self._facts.length
            self._turn.notify_all()
        return FedReader(self)

    def sibling(self, name: str) -> None:
        del name

    def close(self) -> None:
        """Whoever brings something, or would, is told that nobody takes it any more."""
        with self._turn:
            self._closed = True
            if self._body is not None:
                self._body.interrupt()
                self._body = None
            self._turn.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- what those who bring see -------------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Where the next byte belongs."""
        return self._offset

    @property
    def complete(self) -> bool:
        """All of the content was taken."""
        return self._complete

    @property
    def idle(self) -> float:
        """Seconds for which nothing has come; 0 while somebody brings something."""
        with self._turn:
            return 0.0 if self._body is not None else time.monotonic() - self._moved

    def wait_open(self, seconds: float) -> bool:
        """Whether the transfer has got so far that `offset` is known."""
        with self._turn:
            return self._turn.wait_for(lambda: self._opened or self._closed, seconds) and self._opened

    def bring(self, body: Brought, *, last: bool) -> bool:
        """Wait until `body` is used up; `last` says that the content ends with it.

        False where the transfer ended before, which then knows why.  Raises what the body raised, and
        `UploadUnderWay` where another body is being read.
        """
        with self._turn:
            if self._body is not None:
                raise UploadUnderWay("another connection brings this upload")
            if self._closed or self._complete:
                return self._complete
            self._body, self._last, self._failure = body, last, None
            self._turn.notify_all()
            while self._body is body:
                self._turn.wait(_LOOK_SECONDS)
            self._moved = time.monotonic()
            if self._failure is not None and not self._aborted:
                raise self._failure
            return not (self._aborted or self._closed) or self._complete

    def take_over(self, seconds: float) -> None:
        """Send away whoever brings something; an upload that is gone on with belongs to its latest connection."""
        with self._turn:
            body = self._body
            if body is not None:
                body.interrupt()
                self._turn.wait_for(lambda: self._body is not body, seconds)

    # --- the reader's side of it --------------------------------------------------------------------------------

    def read(self, view: memoryview) -> int:
        while True:
            with self._turn:
                while self._body is None and not (self._complete or self._aborted or self._broken):
                    self._turn.wait(_LOOK_SECONDS)
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
                self._let_go(failure)
                continue
            self._offset += count
            if not count or self._offset == length:
                with self._turn:
                    self._complete = self._offset == length or (length is None and self._last)
                self._let_go(None)
            if count:
                return count

    def _let_go(self, failure: CdiError | None) -> None:
        with self._turn:
            self._body, self._failure = None, failure
            if failure is not None and not self._facts.resumes:
                self._broken = failure
            self._turn.notify_all()

    def abort(self) -> None:
        with self._turn:
            self._aborted = True
            if self._body is not None:
                self._body.interrupt()
            self._turn.notify_all()


class FedReader:
    """The one reading of a `FedSource`."""

    def __init__(self, source: FedSource) -> None:
        self._source = source

    def readinto(self, view: memoryview) -> int:
        """Raises what a body raised that cannot be gone on with, and `Interrupted`."""
        return self._source.read(view)

    def abort(self) -> None:
        self._source.abort()

    def close(self) -> None:
        """The source is closed by who opened it."""
