"""HTTP/1.1 messages on a connection (RFC 9112): the request, the head of the response and the framing of its body.

The standard library parses the header fields. Framing is implemented here because bodies are received into the caller's
buffer without a copy, must end exactly where announced, and must be distinguishable from truncated ones.
"""

from __future__ import annotations

import contextlib
import email.parser
import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPMessage

from cdi.api.errors import CdiError, SourceProtocolError, SourceTruncated
from cdi.http import headers as fields
from cdi.http.connection import Connection, RemoteDisconnected
from cdi.http.url import Url

MAX_HEAD = 128 << 10
"""The maximum size of the status line and header fields of a response, in bytes."""
MAX_FIELD = 64 << 10
"""The maximum size of one header line, in bytes; this and `MAX_FIELDS` are the limits of `http.client`."""
MAX_FIELDS = 100
"""The maximum number of header lines in a response."""
MAX_INFORMATIONAL = 8
"""The maximum number of informational (1xx) responses before the final one."""
MAX_DRAIN = 64 << 10
"""The maximum number of unwanted body bytes to read in order to keep a connection."""
_STATUS = re.compile(rb"HTTP/1\.([0-9])[ \t]+([1-9][0-9]{2})(?:[ \t][^\r\n]*)?\r?\n")
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_MAX_LINE = 8 << 10
_MAX_TRAILERS = 100


class Framing(enum.Enum):
    """The ways to find the end of a body."""

    LENGTH = enum.auto()
    CHUNKED = enum.auto()
    CLOSE = enum.auto()


class Body:
    """The body of one message, read sequentially."""

    def __init__(
        self, connection: Connection, framing: Framing, length: int | None, *, reusable: bool, strict: bool = False
    ) -> None:
        """Set up a body of `length` bytes, or of unknown length for None.

        `strict` rejects malformed chunks that other implementations parse differently (section 2.2), because that
        difference allows request smuggling.
        """
        self.length = length
        """The announced length in bytes; None if the message does not state one."""
        self.ended = framing is Framing.LENGTH and length == 0
        """Whether the body was read to its proper end."""
        self.reusable = reusable
        """Whether the connection can carry another request once the body has ended."""
        self.reads_until_close = framing is Framing.CLOSE
        """Whether only the end of the connection marks the end of the body."""
        self._connection = connection
        self._framing = framing
        self._left = length or 0
        self._strict = strict
        self._within_chunks = False

    def readinto(self, view: memoryview) -> int:
        """Read some bytes into `view`; return 0 at the proper end.

        Raises `SourceTruncated` if the body ends early, `SourceProtocolError`, and whatever the connection raises.
        """
        if self.ended or not len(view):
            return 0
        if self._framing is Framing.CHUNKED and not self._left and not self._next_chunk():
            self.ended = True
            return 0
        bounded = self._framing is not Framing.CLOSE
        room = view[: self._left] if bounded and self._left < len(view) else view
        count = self._connection.read(room, due=bounded)
        if not bounded:
            if not count:
                if self._connection.unclean_eof:
                    raise SourceTruncated(
                        "the TLS connection ended without close_notify, and the response has no Content-Length",
                        where=self._connection.where,
                        remedy="give a checksum, or have the server send Content-Length",
                        unclean_eof=True,
                    )
                self.ended = True
            return count
        if not count:
            raise self._truncated(f"the connection was closed with {self._left} bytes missing")
        self._left -= count
        if not self._left and self._framing is Framing.LENGTH:
            self.ended = True
        return count

    def _next_chunk(self) -> bool:
        """Read the next chunk header (section 7.1); return False after the last chunk and its trailers."""
        if self._within_chunks:
            end = self._line(3)
            if end in {b"", b"\r"}:
                raise self._truncated("the connection was closed between two chunks")
            if end not in {b"\r\n", b"\n"}:
                raise self._protocol_error("invalid end of a chunk")
        line = self._line(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise self._truncated("the connection was closed between two chunks")
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None or (self._strict and line[:1].isspace()):
            raise self._protocol_error("invalid chunk size")
        self._within_chunks = True
        self._left = int(match[1], 16)
        if self._left:
            return True
        for _ in range(_MAX_TRAILERS):
            line = self._line(_MAX_LINE)
            if line in {b"\r\n", b"\n"}:
                return False
            if not line:  # the content is complete; only the connection is unusable
                self.reusable = False
                return False
        raise self._protocol_error(f"more than {_MAX_TRAILERS} trailer fields follow the last chunk")

    def _line(self, limit: int) -> bytes:
        line = self._connection.readline(limit)
        if self._strict and line.endswith(b"\n") and not line.endswith(b"\r\n"):
            raise self._protocol_error("invalid line end between two chunks")
        return line

    def _truncated(self, what: str) -> CdiError:
        return SourceTruncated(what, where=self._connection.where)

    def _protocol_error(self, what: str) -> CdiError:
        self.reusable = False
        return SourceProtocolError(what, where=self._connection.where)


WHOLE = frozenset({200, 203})
"""Status codes of a complete response; 203 is one that a proxy transformed (RFC 9110 section 15.3.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The head of a response, and its body that is still to be read."""

    url: Url
    status: int
    headers: HTTPMessage
    body: Body
    connection: Connection

    def read_prefix(self, limit: int) -> bytes:
        """Return at most `limit` bytes of the body, for messages; a failure only ends it early."""
        data = bytearray(limit)
        view = memoryview(data)
        done = 0
        with contextlib.suppress(CdiError, RemoteDisconnected), self.connection.deadline():
            while done < limit and (count := self.body.readinto(view[done:])):
                done += count
        return bytes(view[:done])

    def drain(self) -> bool:
        """Read the rest of the body if it is short; return whether the connection can be reused."""
        if not self.body.reusable:
            return False
        if not self.body.ended:
            if self.body.length is not None and self.body.length > MAX_DRAIN:
                return False
            scratch = memoryview(bytearray(MAX_DRAIN))
            left = MAX_DRAIN
            with contextlib.suppress(CdiError, RemoteDisconnected), self.connection.deadline():
                while left > 0 and (count := self.body.readinto(scratch[:left])):
                    left -= count
        return self.body.ended and self.body.reusable


def request_bytes(method: str, target: str, host: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a request without a body.

    Header values are validated where they are read. A Host header of the user replaces the default one.
    """
    names = {name.lower() for name, _ in headers}
    lines = [f"{method} {target} HTTP/1.1"]
    if "host" not in names:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in headers]
    if any("\r" in line or "\n" in line or "\0" in line for line in lines):
        raise SourceProtocolError("a request header contains a line break", where=host)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


class _BoundedLineReader:
    """A line reader for message heads that limits each line, their number and their total size."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = MAX_HEAD

    def readline(self, limit: int) -> bytes:
        if self._left <= 0:
            raise self._too_much(f"the response head exceeds {MAX_HEAD} bytes")
        line = self._connection.readline(min(limit, self._left))
        self._left -= len(line)
        return line

    def fields(self) -> HTTPMessage:
        """Return the header fields up to the empty line, or to the end of the stream."""
        text = ""
        for _ in range(MAX_FIELDS + 1):
            line = self.readline(MAX_FIELD + 1)
            if len(line) > MAX_FIELD:
                raise self._too_much(f"the response has a header field of more than {MAX_FIELD} bytes")
            if line in {b"\r\n", b"\n", b""}:
                return email.parser.Parser(_class=HTTPMessage).parsestr(text)
            # The parser would take a lone CR for the end of a field (RFC 9110 section 5.5 has it replaced).
            field = line.removesuffix(b"\n").removesuffix(b"\r").replace(b"\r", b" ").replace(b"\0", b" ")
            text += field.decode("iso-8859-1") + "\r\n"
        raise self._too_much(f"the response has more than {MAX_FIELDS} header fields")

    def _too_much(self, what: str) -> SourceProtocolError:
        return SourceProtocolError(what, where=self._connection.where)


def read_response(connection: Connection, url: Url, *, method: str = "GET") -> Response:
    """Read the head of a response.

    Raises `RemoteDisconnected` if the connection ends before the first byte, `SourceProtocolError`, `SourceTruncated`,
    and whatever the connection raises.
    """
    lines = _BoundedLineReader(connection)
    with connection.deadline():
        for _ in range(MAX_INFORMATIONAL):
            minor, status = _status(lines, connection)
            headers = lines.fields()
            if status >= 200:
                break
        else:
            raise SourceProtocolError("the server sends only informational (1xx) responses", where=connection.where)
    return Response(
        url=url,
        status=status,
        headers=headers,
        body=_body(connection, minor, status, headers, method),
        connection=connection,
    )


def _status(lines: _BoundedLineReader, connection: Connection) -> tuple[int, int]:
    line = lines.readline(_MAX_LINE)
    if not line and not connection.received:
        raise RemoteDisconnected("closed")
    if not line.endswith(b"\n") and b"HTTP/1.".startswith(line[:7]):
        raise SourceTruncated("the connection was closed within the response head", where=connection.where)
    match = _STATUS.fullmatch(line)
    if match is None:
        raise SourceProtocolError("the response is not HTTP", where=connection.where)
    return int(match[1]), int(match[2])


def _body(connection: Connection, minor: int, status: int, headers: HTTPMessage, method: str) -> Body:
    words = {word.strip().lower() for value in headers.get_all("Connection") or [] for word in value.split(",")}
    reusable = "close" not in words and (minor >= 1 or "keep-alive" in words)
    if status in {204, 304} or method == "HEAD" or (method == "CONNECT" and 200 <= status < 300):
        return Body(connection, Framing.LENGTH, 0, reusable=reusable)
    is_chunked = fields.chunked(headers, where=connection.where)
    if is_chunked:
        # A response that also has a Content-Length may be an attempt at smuggling, so do not reuse the connection.
        return Body(connection, Framing.CHUNKED, None, reusable=reusable and "Content-Length" not in headers)
    length = fields.content_length(headers, where=connection.where)
    if length is None:
        return Body(connection, Framing.CLOSE, None, reusable=False)
    return Body(connection, Framing.LENGTH, length, reusable=reusable)
