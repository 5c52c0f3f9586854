"""The body of a request, with errors that address the client that sends it."""

from __future__ import annotations

from typing import Final

from cdi.api.errors import CdiError, SourceStalled, SourceTruncated, SourceUnreachable, UploadMalformed
from cdi.http.connection import RemoteDisconnected
from cdi.http.message import Body

_SEND_AGAIN: Final = "send it again"
_SEND_STEADILY: Final = "send it again, over a connection that does not pause as long"
_SEND_CHUNKS: Final = "send Content-Length, or chunks and trailer fields as RFC 9112, section 7.1, has them"


class RequestBody(Body):
    """A `Body` whose errors tell the client, not the user of a server, what is wrong and what to do."""

    def readinto(self, view: memoryview) -> int:
        """Read some bytes into `view`; return 0 at the proper end.

        Raises `SourceTruncated` if the client ends the body early, `SourceStalled` if it stops sending,
        `SourceUnreachable` if the connection breaks, and `UploadMalformed` for invalid chunks.
        """
        try:
            return super().readinto(view)
        except SourceStalled as error:
            raise SourceStalled(error.what, where=error.where, remedy=_SEND_STEADILY) from error
        except SourceUnreachable as error:
            raise SourceUnreachable(error.what, where=error.where, remedy=_SEND_AGAIN) from error
        except RemoteDisconnected as error:
            raise SourceUnreachable(
                f"connection lost: {error}", where=self._connection.where, remedy=_SEND_AGAIN
            ) from error

    def _truncated(self, what: str) -> CdiError:
        return SourceTruncated(what, where=self._connection.where, remedy=_SEND_AGAIN)

    def _protocol_error(self, what: str) -> CdiError:
        self.reusable = False
        return UploadMalformed(what, where=self._connection.where, remedy=_SEND_CHUNKS)
