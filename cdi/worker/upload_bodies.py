"""Request bodies as input of an upload source (`cdi.source.upload.BodyReader`)."""

from __future__ import annotations

import hashlib
from collections import deque

from cdi.api.digest import Digest
from cdi.api.errors import ChecksumMismatch, SourceUnreachable
from cdi.api.upload_protocol import BODY_KEPT_HEADER, number
from cdi.codec.multipart import MultipartFileParser
from cdi.http.connection import RemoteDisconnected
from cdi.http.server.request import ServerRequest
from cdi.source.upload import BodyReader

_BUFFER = 256 << 10
MAX_BUFFERED = 16 << 20
"""Maximum size in bytes of a piece with a checksum that is buffered until it is verified.

A larger one is written as it arrives.
"""


class IncomingBody:
    """Body of a request, whose start the proxy may keep (`BODY_KEPT_HEADER`) until this server reads beyond it."""

    def __init__(self, request: ServerRequest) -> None:
        """Ask the client to send the body.

        Raises:
            RemoteDisconnected: The connection broke.
            UploadMalformed: The headers are invalid.

        """
        self._request = request
        self._kept = number(request.head.headers, BODY_KEPT_HEADER) if request.head.expect_continue else None
        if self._kept is not None:
            request.inform(100, {BODY_KEPT_HEADER: str(self._kept)})
        self._body = request.body

    @property
    def ended(self) -> bool:
        return self._body.ended

    def readinto(self, view: memoryview) -> int:
        """Read some bytes and return their number, 0 at the end.

        Raises:
            CdiError: The body is incomplete or the connection broke.

        """
        if self._kept == 0:
            self._kept = None
            try:
                self._request.inform(102)
            except RemoteDisconnected as error:
                raise SourceUnreachable(f"the connection broke: {error}", where="the client", remedy="") from error
        count = self._body.readinto(view if self._kept is None else view[: self._kept])
        if self._kept is not None:
            self._kept -= count
        return count


class WholeBody:
    """Body that is the content."""

    def __init__(self, request: ServerRequest) -> None:
        self._request = request
        self._body = IncomingBody(request)

    def readinto(self, view: memoryview) -> int:
        return self._body.readinto(view)

    def interrupt(self) -> None:
        self._request.interrupt()


class CheckedBody(WholeBody):
    """Body that is the content, and has the digest `expected`.

    Its last bytes, up to the byte `length`, are delivered only if the digest matches: with them the content may be
    complete, and its volume finished.
    """

    def __init__(self, request: ServerRequest, expected: Digest, length: int) -> None:
        super().__init__(request)
        self._expected = expected
        self._left = length
        self._hash = hashlib.new(expected.algorithm, usedforsecurity=False)

    def readinto(self, view: memoryview) -> int:
        count = super().readinto(view)
        self._hash.update(view[:count])
        self._left -= count
        if not count or self._left <= 0:
            self.verify()
        return count

    def verify(self) -> None:
        """Raise `ChecksumMismatch` if what has been read does not have the digest."""
        if Digest(self._expected.algorithm, self._hash.hexdigest()) != self._expected:
            raise ChecksumMismatch("the chunk does not match its checksum", remedy="send it again")


class BufferedBody:
    """Buffered content."""

    def __init__(self, data: bytearray) -> None:
        self._view = memoryview(data)

    def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._view))
        view[:count] = self._view[:count]
        self._view = self._view[count:]
        return count

    def interrupt(self) -> None:
        """Do nothing: reads never block."""


def buffer_body(body: BodyReader, length: int) -> bytearray:
    """Read `length` bytes, or fewer if the body ends before.

    Raises:
        CdiError: The body is incomplete or the connection broke.

    """
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length and (count := body.readinto(view[done:])):
        done += count
    view.release()
    del data[done:]
    return data


class FormBody:
    """Content of the file in a multipart form."""

    def __init__(self, request: ServerRequest, form: MultipartFileParser) -> None:
        self._request = request
        self._body = IncomingBody(request)
        self._form = form
        self._buffer = memoryview(bytearray(_BUFFER))
        self._ready: deque[memoryview] = deque()

    def begin(self) -> None:
        """Read up to the beginning of the file.

        Raises:
            UploadMalformed: The form has no file.

        """
        while not self._form.found:
            self._read()

    def readinto(self, view: memoryview) -> int:
        while not self._ready and not self._form.ended:
            self._read()
        if not self._ready:
            return 0
        first = self._ready.popleft()
        count = min(len(view), len(first))
        view[:count] = first[:count]
        if count < len(first):
            self._ready.appendleft(first[count:])
        return count

    def drain(self) -> None:
        """Read and discard what follows the file.

        Raises:
            CdiError: The body is incomplete or the connection broke.

        """
        while not self._body.ended and self._body.readinto(self._buffer):
            pass

    def interrupt(self) -> None:
        self._request.interrupt()

    def _read(self) -> None:
        count = self._body.readinto(self._buffer)
        if not count:
            self._form.end()
            return
        self._ready.extend(self._form.feed(self._buffer[:count]))
