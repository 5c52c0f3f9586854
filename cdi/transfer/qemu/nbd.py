"""Read-only NBD server for one client program, with blocking threads.

It gives QEMU, which knows formats but needs no access to networks or credentials, the bytes of any source. The server
has no address: `NbdServer.attach` returns one end of a socket pair, which the program inherits, so no other process can
connect.

It follows https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: fixed newstyle negotiation with
EXPORT_NAME, ABORT, LIST, INFO and GO, simple replies, block size constraints. Structured replies are not offered: for a
file with unknown holes they carry no more than simple ones.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from cdi.api.errors import CdiError, InternalError

MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698

FLAG_FIXED_NEWSTYLE = 1 << 0
FLAG_NO_ZEROES = 1 << 1

FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_CAN_MULTI_CONN = 1 << 8
TRANSMISSION_FLAGS = FLAG_HAS_FLAGS | FLAG_READ_ONLY | FLAG_CAN_MULTI_CONN

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_INFO = 6
OPT_GO = 7

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_ERR_UNSUP = (1 << 31) + 1
REP_ERR_INVALID = (1 << 31) + 3
REP_ERR_UNKNOWN = (1 << 31) + 6

INFO_EXPORT = 0
INFO_BLOCK_SIZE = 3

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3

MAX_OPTIONS = 64
"""Maximum number of options that a client may negotiate."""
MAX_OPTION_LENGTH = 1 << 16
MAX_WRITE = 32 << 20
"""Maximum payload of a rejected write that is skipped; the protocol's default maximum."""

SECTOR = 512
PADDING = memoryview(bytes(SECTOR))

REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">II8s")


class BlockReader(Protocol):
    """Source of bytes at any offset; called from several threads."""

    length: int

    def read_at(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return exactly `length` bytes, in one or more views that are valid until this thread's next call.

        Raises:
            CdiError: the bytes cannot be read.
        """
        ...

    def release(self) -> None:
        """Release the views that this thread received last."""
        ...


class ClientDisconnected(Exception):
    """The client disconnected or violated the protocol; its connection is closed without a response."""


class NbdServer:
    """Server of `access` for each process that inherits an end returned by `attach`.

    The size of the export is rounded up to a sector and padded with zeros, as QEMU would see a file of that length: a
    mirror job of QEMU 7.2 whose source ends within a sector never ends.

    `cause` is the first error of a read; the client only receives an input/output error.
    """

    def __init__(self, access: BlockReader, *, threads: int = 4, max_request: int = 1 << 20) -> None:
        """Process up to `threads` requests per connection concurrently, each of at most `max_request` bytes."""
        self._access = access
        self._size = -(-access.length // SECTOR) * SECTOR
        self._threads_per_connection = threads
        self._max_request = max_request
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._connections: list[Connection] = []
        self._closed = False
        self.cause: CdiError | None = None
        self.requests = 0
        self.sent = 0

    def attach(self) -> socket.socket:
        """Return the client's end of a new connection, which the caller closes once the program has inherited it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # A reply that does not fit costs several wake-ups on both sides. Capped by net.core.wmem_max.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._max_request)
        connection = Connection(ours)
        thread = threading.Thread(target=self._converse, args=(connection,), name="nbd", daemon=True)
        with self._lock:
            if self._closed:
                ours.close()
                theirs.close()
                raise InternalError("the NBD server is closed")
            self._connections.append(connection)
            self._threads.append(thread)
        thread.start()
        return theirs

    def close(self) -> None:
        """Close all connections and wait for the threads; a running read must be ended separately before."""
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.hang_up()
        while True:
            with self._lock:
                if not self._threads:
                    break
                thread = self._threads.pop()
            thread.join()
        for connection in connections:
            connection.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- negotiation --------------------------------------------------------------------------------------------

    def _converse(self, connection: Connection) -> None:
        try:
            self._negotiate(connection)
        except (ClientDisconnected, OSError):
            connection.hang_up()
            return
        helpers = [
            threading.Thread(target=self._serve, args=(connection,), name=f"nbd-{n}", daemon=True)
            for n in range(1, self._threads_per_connection)
        ]
        with self._lock:
            if self._closed:
                return
            self._threads += helpers
            for helper in helpers:
                helper.start()
        self._serve(connection)

    def _negotiate(self, connection: Connection) -> None:
        """Negotiate until the transmission phase begins; raise `ClientDisconnected` if it does not."""
        sock = connection.socket
        sock.sendall(MAGIC + OPTION_MAGIC + struct.pack(">H", FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES))
        (client_flags,) = struct.unpack(">I", connection.receive(4))
        if client_flags & ~(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES):
            raise ClientDisconnected
        for _ in range(MAX_OPTIONS):
            header = connection.receive(16)
            magic, option, length = struct.unpack(">8sII", header)
            if magic != OPTION_MAGIC or length > MAX_OPTION_LENGTH:
                raise ClientDisconnected
            data = connection.receive(length)

            def reply(kind: int, payload: bytes = b"", option: int = option) -> None:
                sock.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(payload)) + payload)

            if option == OPT_EXPORT_NAME:
                if data:
                    raise ClientDisconnected  # the protocol has no error reply to this option
                padding = b"" if client_flags & FLAG_NO_ZEROES else bytes(124)
                sock.sendall(struct.pack(">QH", self._size, TRANSMISSION_FLAGS) + padding)
                return
            if option == OPT_ABORT:
                reply(REP_ACK)
                raise ClientDisconnected
            if option == OPT_LIST:
                if data:
                    reply(REP_ERR_INVALID)
                    continue
                reply(REP_SERVER, struct.pack(">I", 0))
                reply(REP_ACK)
            elif option in (OPT_INFO, OPT_GO):
                if self._handle_info(data, reply) and option == OPT_GO:
                    return
            else:
                reply(REP_ERR_UNSUP)
        raise ClientDisconnected

    def _handle_info(self, data: bytes, reply: Callable[[int, bytes], None]) -> bool:
        """Respond to INFO and GO; return whether the export was accepted."""
        if len(data) < 6:
            reply(REP_ERR_INVALID, b"")
            return False
        (name_length,) = struct.unpack_from(">I", data)
        if len(data) < 6 + name_length:
            reply(REP_ERR_INVALID, b"")
            return False
        (count,) = struct.unpack_from(">H", data, 4 + name_length)
        if len(data) != 6 + name_length + 2 * count:
            reply(REP_ERR_INVALID, b"")
            return False
        if name_length:
            reply(REP_ERR_UNKNOWN, b"")
            return False
        reply(REP_INFO, struct.pack(">HQH", INFO_EXPORT, self._size, TRANSMISSION_FLAGS))
        # Unrequested, as the protocol permits: a server with a maximum should announce it.
        reply(REP_INFO, struct.pack(">HIII", INFO_BLOCK_SIZE, 1, 4096, self._max_request))
        reply(REP_ACK, b"")
        return True

    # --- transmission -------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection) -> None:
        """Receive requests in turn with the connection's other threads, and process them in parallel.

        The thread that receives a request also responds to it: a handover between threads would cost more than most
        reads.
        """
        try:
            while True:
                with connection.receiving:
                    request = self._receive(connection)
                self._answer(connection, *request)
        except (ClientDisconnected, OSError):
            connection.hang_up()
        finally:
            self._access.release()

    def _receive(self, connection: Connection) -> tuple[int, bytes, int, int]:
        magic, _flags, command, cookie, offset, length = REQUEST.unpack(connection.receive(REQUEST.size))
        if magic != REQUEST_MAGIC or command == CMD_DISC:
            raise ClientDisconnected
        if command == CMD_WRITE:
            if length > MAX_WRITE:
                raise ClientDisconnected
            connection.skip(length)
        return command, cookie.to_bytes(8, "big"), offset, length

    def _answer(self, connection: Connection, command: int, cookie: bytes, offset: int, length: int) -> None:
        views: Sequence[memoryview] = ()
        error = 0
        if command == CMD_READ:
            if length > self._max_request or offset + length > self._size:
                error = errno.EINVAL
            elif length:
                try:
                    views = self._read(offset, length)
                except CdiError as cause:
                    self._record_error(cause)
                    error = errno.EIO
                except Exception as defect:  # noqa: BLE001 — without a response the client would wait forever
                    self._record_error(InternalError(f"failed to read the image: {defect!r}"))
                    error = errno.EIO
        elif command == CMD_FLUSH:
            pass
        else:
            error = errno.EPERM
        with connection.sending:
            connection.send(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie), views)
            self.requests += 1
            if not error:
                self.sent += length
        self._access.release()

    def _read(self, offset: int, length: int) -> Sequence[memoryview]:
        there = min(length, max(0, self._access.length - offset))
        views = self._access.read_at(offset, there) if there else ()
        return views if there == length else (*views, PADDING[: length - there])

    def _record_error(self, cause: CdiError) -> None:
        with self._lock:
            if self.cause is None:
                self.cause = cause


class Connection:
    """Socket with a lock per direction."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.receiving = threading.Lock()
        self.sending = threading.Lock()

    def receive(self, length: int) -> bytes:
        """Return exactly `length` bytes; raise `ClientDisconnected` at the end of the stream."""
        if length == 0:
            return b""
        data = self.socket.recv(length, socket.MSG_WAITALL)
        while len(data) < length:  # a signal may interrupt MSG_WAITALL
            more = self.socket.recv(length - len(data), socket.MSG_WAITALL)
            if not more:
                raise ClientDisconnected
            data += more
        return data

    def skip(self, length: int) -> None:
        while length:
            data = self.socket.recv(min(length, 1 << 16))
            if not data:
                raise ClientDisconnected
            length -= len(data)

    def send(self, header: bytes, views: Sequence[memoryview]) -> None:
        pieces: list[memoryview] = [memoryview(header), *views]
        while pieces:
            sent = self.socket.sendmsg(pieces)
            while pieces and sent >= len(pieces[0]):
                sent -= len(pieces[0])
                del pieces[0]
            if pieces and sent:
                pieces[0] = pieces[0][sent:]

    def hang_up(self) -> None:
        """Shut the socket down and wake the threads that block on it; idempotent, callable from any thread."""
        with contextlib.suppress(OSError):  # already disconnected
            self.socket.shutdown(socket.SHUT_RDWR)
