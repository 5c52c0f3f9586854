"""Session that serves one target, from its ticket to its result, over connections that are renewed as often as needed.

The source keeps one connection to the target, and gives up when no content was sent for the job's patience and none can
be opened.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cdi.api.copy import CopySourceJob, Ticket
from cdi.api.errors import (
    CdiError,
    InternalError,
    Interrupted,
    InvalidManifest,
    PeerProtocolError,
    PeerUnreachable,
    PeerUntrusted,
    Retry,
    UploadMalformed,
)
from cdi.api.job import Limits
from cdi.api.peer import EACH_TARGET
from cdi.http.connection import RemoteDisconnected
from cdi.http.mutual_tls import client_context
from cdi.http.server.outbound import serve_connection
from cdi.http.server.request import ServerRequest
from cdi.http.sockets import detect_lost_peer
from cdi.transfer.clone.clone_source import CurrentSource
from cdi.transfer.clone.network_probe import NetworkBoundProbe
from cdi.transfer.clone.server import TargetServer
from cdi.transfer.clone.window import SharedWindow
from cdi.transfer.control import TransferControl
from cdi.transfer.rate_limit import RateLimiter

CONNECT_TIMEOUT: Final = 10.0
STARTUP_GRACE: Final = 5.0
"""Seconds for which other targets wait for one that cannot be reached, because it may be starting."""
_SEND_SIZE: Final = 256 << 10
"""Bytes sent at once; the stall timeout applies to each."""
_BACKOFF: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
_STARTING: Final = 1
"""Index of the longest pause while the target may be starting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderContext:
    """Context that all sessions share."""

    job: CopySourceJob
    control: TransferControl
    sources: CurrentSource
    window: SharedWindow
    news: Callable[[], None]
    """Called when a session ends."""


class TargetSession:
    """Session of one target, active from its construction."""

    def __init__(self, ticket: Ticket, context: SenderContext) -> None:
        self.ticket = ticket
        self.failure: CdiError | None = None
        self.finished = False
        self.ended = 0.0
        """Monotonic time at which it finished."""
        self.server = TargetServer(ticket.id, context.sources, context.window)
        self.throttle = RateLimiter(Limits(bandwidth=ticket.bandwidth), stopped := threading.Event())
        self.context = context
        self._stopped = stopped
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._moved_at = self._began
        self._served = 0
        context.window.announce(self.server.subscriber)
        self._thread = threading.Thread(target=self._run, name="target", daemon=True)
        self._thread.start()

    @property
    def digest(self) -> str:
        """Digest of the target's content, once it is complete."""
        result = self.server.result
        return "" if result is None else result.digest

    def update(self, ticket: Ticket) -> bool:
        """Return whether the session continues under this ticket: only the bandwidth may differ."""
        if replace(ticket, bandwidth=self.ticket.bandwidth) != self.ticket:
            return False
        if ticket != self.ticket:
            self.ticket = ticket
            self.throttle.change(Limits(bandwidth=ticket.bandwidth))
        return True

    def stop(self) -> None:
        """Stop the session, whose target is no longer listed."""
        self._stopped.set()

    def join(self) -> None:
        self._thread.join()

    def fail(self, error: CdiError) -> None:
        """End the session with a failure, unless it has ended."""
        self._end(error)

    def check(self) -> None:
        """Raise `Interrupted` if the session has ended."""
        if self._stopped.is_set():
            raise Interrupted("the clone was interrupted")

    # --- connections --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failure: CdiError | None = None
        try:
            self._serve()
        except CdiError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a defect becomes the reported failure
            traceback.print_exc()
            failure = InternalError(f"{type(error).__name__}: {error}")
        self._end(failure)

    def _end(self, failure: CdiError | None) -> None:
        with self._lock:
            if not self.finished:
                self.failure, self.ended, self.finished = failure, time.monotonic(), True
        self._stopped.set()
        self.context.window.withdraw(self.server.subscriber)
        self.context.window.leave(self.server.subscriber)
        self.context.news()

    def _serve(self) -> None:
        """Connect repeatedly until the target reports its end; may raise `CdiError`."""
        address, failures = _parsed(self.ticket.address), 0
        while True:
            self.check()
            began, before = time.monotonic(), self.server.sent
            try:
                self._attempt(address)
                cause: CdiError = PeerUnreachable("the target closed the connection", where=self.ticket.address)
            except RemoteDisconnected as error:
                cause = PeerUnreachable(f"connection lost: {error}", where=self.ticket.address)
            except UploadMalformed as error:
                cause = PeerProtocolError(error.what, where=self.ticket.address)
            except PeerProtocolError:
                raise
            except CdiError as error:
                if error.retry is not Retry.BACKOFF or isinstance(error, Interrupted):
                    raise
                cause = error
            if self._is_over():
                return
            failures = 0 if self.server.sent > before else failures + 1
            self._give_up_after_patience(cause, began)
            self._pause(cause, failures)

    def _is_over(self) -> bool:
        """Return whether the target has ended; raise the failure that a repetition cannot mend."""
        result, self.server.result = self.server.result, None
        if result is None:
            return self.finished
        if result.failure is None:
            self.server.result = result
            return True
        error = result.failure.error()
        if error.retry is not Retry.BACKOFF:
            raise error
        return False

    def _give_up_after_patience(self, cause: CdiError, tried_at: float) -> None:
        """Raise `cause` if nothing was sent for too long."""
        now = time.monotonic()
        if self.server.sent > self._served:
            self._served, self._moved_at = self.server.sent, now
        patience = tried_at - self._moved_at > self.context.job.patience
        if now - self._began > STARTUP_GRACE:
            self.context.window.withdraw(self.server.subscriber)
        if patience:
            raise cause

    def _pause(self, cause: CdiError, failures: int) -> None:
        starting = time.monotonic() - self._began < STARTUP_GRACE
        last = _STARTING if starting else len(_BACKOFF) - 1
        seconds = _BACKOFF[min(failures, last)] * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
        self.context.control.meter.message = (
            f"retrying {self.ticket.address} in {seconds:.0f} s: {cause.code}: {cause.what}"
        )
        self._stopped.wait(min(seconds, self.context.job.patience))

    def _context(self) -> ssl.SSLContext:
        """Return a new context for each connection, as certificates are renewed."""
        files = self.context.job.tls
        own = files.for_target(self.ticket.id)
        if EACH_TARGET in files.certificate and not os.path.exists(own.certificate):
            raise PeerUnreachable("the certificate for this target does not exist yet", where=own.certificate)
        return client_context(own)

    def _attempt(self, address: tuple[str, int]) -> None:
        tls = _connect(self._context(), address, self.ticket.server_name or address[0])
        link = _Link(self, tls)
        try:
            serve_connection(tls, link.respond, stall_timeout=self.context.job.policy.stall_timeout, check=self.check)
        finally:
            self.context.window.leave(self.server.subscriber)
            tls.close()


class _Link:
    """The connection to a target (`cdi.transfer.clone.server.Link`)."""

    def __init__(self, session: TargetSession, tls: ssl.SSLSocket) -> None:
        self._session = session
        self._throttles = [(one, one.priority()) for one in (session.throttle, session.context.control.throttle)]
        self._probe = NetworkBoundProbe(tls)
        self.check = session.check

    def respond(self, request: ServerRequest) -> bool:
        return self._session.server.respond(request, self) and self._session.server.result is None

    def narrow(self) -> bool:
        """Return whether the network is the bottleneck, or its use is limited.

        A fast network does not wait for the compressor, which uses more CPU time than everything else together.
        """
        return any(throttle.bandwidth > 0 for throttle, _ in self._throttles) or self._probe()

    def sending(self, view: memoryview) -> int:
        self.check()
        self._session.context.control.meter.advance(self._session.server.served)
        count = min(_SEND_SIZE, len(view), *(throttle.max_read(len(view)) for throttle, _ in self._throttles))
        for throttle, ticket in self._throttles:
            throttle.consume(count, ticket)
        return count


def _connect(context: ssl.SSLContext, address: tuple[str, int], name: str) -> ssl.SSLSocket:
    where = f"{address[0]}:{address[1]}"
    try:
        connection = socket.create_connection(address, CONNECT_TIMEOUT)
        detect_lost_peer(connection)
    except OSError as error:
        raise PeerUnreachable(f"cannot connect: {error.strerror or type(error).__name__}", where=where) from error
    try:
        return context.wrap_socket(connection, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise PeerUntrusted(f"the target's certificate is not trusted: {error.verify_message}", where=where) from error
    except OSError as error:
        connection.close()
        text = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise PeerUnreachable(f"TLS handshake failed: {text}", where=where) from error


def _parsed(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise InvalidManifest("the address of a clone target must be host:port", where=address)
    return host, int(port)
