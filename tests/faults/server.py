"""An HTTP server that misbehaves on demand and records its requests.

    with FaultServer() as server:
        url = server.put("/disk.qcow2", data, faults=[Fault(drop_after=1000), Fault(status=503, retry_after="1")])
        ...
        assert server.requests[0].range == (0, 0)

The first request for a path gets the first of its `faults`, the second the second, and so on; when they are used up,
`always` (a `Fault`, or a function from `Request` to one) applies, and without that the file is served correctly:
HTTP/1.1 with keep-alive, one range, ETag, Last-Modified, If-Range, If-Match, Content-Length. Every connection has a
thread; leaving the context closes all of them, also those that stall.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One received request."""

    number: int
    """Number of the request for its path, from 0."""
    connection: int
    """Number of the connection, from 0."""
    method: str
    target: str
    """Path and query, or the whole URL if the client took this for a proxy."""
    headers: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        return re.sub(r"^https?://[^/]*", "", self.target).partition("?")[0]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def range(self) -> tuple[int, int | None] | None:
        """Return the first and last byte of the requested range."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.header("Range") or "")
        return None if match is None else (int(match[1]), int(match[2]) if match[2] else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The deviation of one response from the correct one; offsets count bytes of that response's body."""

    status: int | None = None
    """The status to answer with instead of the content, together with `body`."""
    reason: str = "Whatever"
    body: bytes = b""
    retry_after: str | None = None
    location: str | None = None
    """The Location of a redirect."""
    headers: tuple[tuple[str, str], ...] = ()
    """Headers to add, replacing those of the same name."""
    without: tuple[str, ...] = ()
    """Names of headers to leave out."""
    drop_after: int | None = None
    """Close the connection after this many bytes of the body."""
    reset_after: int | None = None
    """Reset the connection after this many bytes of the body."""
    stall_after: int | None = None
    """Send nothing more after this many bytes, and keep the connection open."""
    resume: threading.Event | None = None
    """With `stall_after`, send the rest once this event is set; shorter bodies are sent at once."""
    drip: tuple[int, float] | None = None
    """Send pieces of this many bytes with this many seconds between them."""
    announce: int | None = None
    """The Content-Length to announce instead of the true one."""
    extra: bytes = b""
    """Bytes to send after the content, in the same framing."""
    total: int | None = None
    """The total to name in Content-Range."""
    shift: int = 0
    """Send a range that begins this many bytes further on, and say so in Content-Range."""
    lie: int = 0
    """Send the right range, but name one that begins this many bytes further on."""
    shorten: int | None = None
    """Send at most this many bytes of the range, and say so."""
    ignore_range: bool = False
    ignore_if_range: bool = False
    """Answer with the range although the validator differs."""
    if_range_gives_all: bool = False
    """Treat any If-Range as a mismatch and send everything."""
    etag: str | None = None
    """The ETag to send instead of the file's own."""
    data: bytes | None = None
    """The content to send instead of the file's own."""
    framing: Literal["length", "chunked", "close"] = "length"
    chunk: int = 1000
    close_notify: bool = False
    """Over TLS, send the closing alert, which is left out otherwise."""
    version: str = "HTTP/1.1"
    close: bool = False
    """Announce Connection: close, and close it."""
    close_silently: bool = False
    """Close the connection after the response without an announcement."""
    raw: bytes | None = None
    """Send just these bytes instead of head and body, and close."""
    delay: float = 0.0
    """Seconds to wait before the response."""


@dataclass(slots=True, kw_only=True)
class File:
    """The content of a path; change it while the server runs to replace the content."""

    data: bytes
    etag: str | None = '"v1"'
    modified: str | None = "Mon, 01 Jan 2024 00:00:00 GMT"
    content_type: str = "application/octet-stream"
    ranges: bool = True
    faults: list[Fault] = field(default_factory=list)
    always: Fault | Callable[[Request], Fault | None] | None = None
    authorization: str | None = None
    """The Authorization header to require; anything else is answered with 401."""
    head_status: int = 200
    asked: int = 0


class FaultServer:
    """A running server.

    Attributes:
        tls: makes it an https server.
        requests: the received requests, in order.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        """Create a server.

        Args:
            port: 0 takes a free one; the port of a server that has ended makes this one its successor.
        """
        self._tls = tls
        self._files: dict[str, File] = {}
        self._lock = threading.Lock()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self._stopping = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[Request] = []
        self.connections = 0

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def url(self, path: str) -> str:
        return f"{self.origin}{path}"

    def put(
        self,
        path: str,
        data: bytes = b"",
        *,
        faults: Sequence[Fault] = (),
        always: Fault | Callable[[Request], Fault | None] | None = None,
        **attributes: object,
    ) -> str:
        """Serve `data` at `path` and return the URL; `attributes` are those of `File`."""
        file = File(data=data, faults=list(faults), always=always)
        for name, value in attributes.items():
            setattr(file, name, value)
        with self._lock:
            self._files[path] = file
        return self.url(path)

    def file(self, path: str) -> File:
        return self._files[path]

    def asked(self, path: str) -> list[Request]:
        """Return the requests for one path."""
        with self._lock:
            return [request for request in self.requests if request.path == path]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            number = self.connections
            self.connections += 1
            self._start(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            sock.settimeout(30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            with self._lock:
                self._sockets.add(sock)
            buffer = b""
            while not self._stopping.is_set():
                while b"\r\n\r\n" not in buffer:
                    more = sock.recv(65536)
                    if not more:
                        return
                    buffer += more
                    if buffer.startswith(b"\x16"):  # TLS on a plain port, answered as nginx does
                        sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                        return
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                if not self._answer(sock, number, head.decode("latin-1")):
                    return
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()

    def _answer(self, sock: socket.socket, connection: int, head: str) -> bool:
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        request = Request(number=0, connection=connection, method=method, target=target, headers=headers)
        with self._lock:
            file = self._files.get(request.path) or self._files.get("*")
            number = 0 if file is None else file.asked
            request = Request(number=number, connection=connection, method=method, target=target, headers=headers)
            self.requests.append(request)
            if file is not None:
                file.asked += 1
        fault = None
        if file is not None:
            if number < len(file.faults):
                fault = file.faults[number]
            else:
                fault = file.always(request) if callable(file.always) else file.always
        if file is None:
            file, fault = File(data=b""), Fault(status=404, body=b"nothing here\n")
        elif file.authorization is not None and request.header("Authorization") != file.authorization:
            fault = Fault(status=401, body=b"who are you?\n")
        return self._send(sock, request, file, fault or Fault())

    def _send(self, sock: socket.socket, request: Request, file: File, fault: Fault) -> bool:
        if fault.delay:
            self._stopping.wait(fault.delay)
        if fault.raw is not None:
            self._transmit(sock, fault.raw, fault)
            return False
        status, reason, fields, body = self._content(request, file, fault)
        body += fault.extra
        fields.setdefault("Content-Type", file.content_type)
        if fault.framing == "length":
            fields["Content-Length"] = str(len(body) if fault.announce is None else fault.announce)
        elif fault.framing == "chunked":
            fields["Transfer-Encoding"] = "chunked"
        keep = fault.framing != "close" and not fault.close and fault.version == "HTTP/1.1"
        if fault.close:
            fields["Connection"] = "close"
        for name, value in fault.headers:
            fields = {key: old for key, old in fields.items() if key.lower() != name.lower()}
            fields[name] = value
        lines = [f"{name}: {value}" for name, value in fields.items() if name not in fault.without]
        sock.sendall("\r\n".join([f"{fault.version} {status} {reason}", *lines, "", ""]).encode("latin-1"))
        if request.method == "HEAD":
            return keep
        if fault.framing == "chunked":
            size = fault.chunk
            pieces = [body[i : i + size] for i in range(0, len(body), size)]
            body = (
                b"".join(b"%x;x=y\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Trailer: 1\r\n\r\n"
            )
        return self._transmit(sock, body, fault) and keep and not fault.close_silently

    def _content(self, request: Request, file: File, fault: Fault) -> tuple[int, str, dict[str, str], bytes]:
        fields: dict[str, str] = {}
        if fault.location is not None:
            fields["Location"] = fault.location
        if fault.retry_after is not None:
            fields["Retry-After"] = fault.retry_after
        if fault.status is not None:
            return fault.status, fault.reason, {**fields, "Content-Type": "text/plain"}, fault.body
        if request.method == "HEAD" and file.head_status != 200:
            return file.head_status, "No", fields, b""
        data = file.data if fault.data is None else fault.data
        etag = file.etag if fault.etag is None else fault.etag
        fields |= {name: value for name, value in (("ETag", etag), ("Last-Modified", file.modified)) if value}
        if_match = request.header("If-Match")
        if if_match is not None and if_match not in {etag, "*"}:
            return 412, "Precondition Failed", fields, b""
        wanted = request.range
        if_range = request.header("If-Range")
        if if_range is not None and (
            fault.if_range_gives_all or (if_range not in {etag, file.modified} and not fault.ignore_if_range)
        ):
            wanted = None
        if file.ranges:
            fields["Accept-Ranges"] = "bytes"
        if wanted is None or not file.ranges or fault.ignore_range:
            return 200, "OK", fields, data
        first, last = wanted
        total = len(data) if fault.total is None else fault.total
        if first >= len(data):
            return 416, "Range Not Satisfiable", {**fields, "Content-Range": f"bytes */{total}"}, b""
        first += fault.shift
        last = min(len(data) - 1, last + fault.shift if last is not None else len(data))
        if fault.shorten is not None:
            last = min(last, first + fault.shorten - 1)
        fields["Content-Range"] = f"bytes {first + fault.lie}-{last + fault.lie}/{total}"
        return 206, "Partial Content", fields, data[first : last + 1]

    def _transmit(self, sock: socket.socket, body: bytes, fault: Fault) -> bool:
        """Send a body with its faults; return whether the connection can be reused."""
        stops = [stop for stop in (fault.drop_after, fault.reset_after, fault.stall_after) if stop is not None]
        part = body[: min(stops)] if stops else body
        if fault.drip is None:
            sock.sendall(part)
        else:
            size, pause = fault.drip
            for start in range(0, len(part), size):
                sock.sendall(part[start : start + size])
                if self._stopping.wait(pause):
                    return False
        rest = body[len(part) :]
        if fault.stall_after is not None and (fault.resume is None or rest):
            while not self._stopping.is_set() and not self._gone(sock):
                if fault.resume is not None and fault.resume.is_set():
                    sock.sendall(rest)
                    return True
                time.sleep(0.01)
        if fault.close_notify and isinstance(sock, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                sock.unwrap()
        if fault.reset_after is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not stops or (fault.resume is not None and not rest)

    @staticmethod
    def _gone(sock: socket.socket) -> bool:
        poller = select.poll()
        poller.register(sock, select.POLLRDHUP)
        return bool(poller.poll(0))
