"""Session that serves one target, from its ticket to its DONE, over as many connections as needed, in a thread."""

from __future__ import annotations

import os
import random
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from cdi.api.copy import EACH_TARGET, CopySourceJob, Ticket
from cdi.api.errors import (
    CdiError,
    InternalError,
    Interrupted,
    InvalidManifest,
    PeerUnreachable,
    PeerUntrusted,
    Retry,
    SourceChanged,
    SourceError,
)
from cdi.api.job import Limits
from cdi.transfer.clone import frames
from cdi.transfer.clone.clone_source import CurrentSource
from cdi.transfer.clone.fanout import Subscription
from cdi.transfer.clone.fanout_scheduler import FanoutScheduler
from cdi.transfer.clone.frames import Fail
from cdi.transfer.clone.peer_connection import PeerConnection
from cdi.transfer.clone.sender import SenderProtocol, SendSession
from cdi.transfer.clone.tls import client_context
from cdi.transfer.control import TransferControl
from cdi.transfer.rate_limit import RateLimiter

CONNECT_TIMEOUT: Final = 10.0
STARTUP_GRACE: Final = 5.0
"""Seconds for which other targets wait for one that cannot be reached, because it may be starting."""
_BACKOFF = (0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderContext:
    """Context that all sessions share."""

    job: CopySourceJob
    control: TransferControl
    stock: CurrentSource
    scheduler: FanoutScheduler
    warn: Callable[[str], None]
    """Add a warning to the outcome."""
    news: Callable[[], None]
    """Called when a session ends."""


class TargetSession:
    """Session of one target, active from its construction."""

    def __init__(self, ticket: Ticket, house: SenderContext) -> None:
        self.ticket = ticket
        self.digest: bytes | None = None
        """Digest of the target's content, once it is complete."""
        self.failure: CdiError | None = None
        self.finished = False
        self.ended = 0.0
        """Monotonic time at which it finished."""
        self.resumed_at: int | None = None
        """Resume offset of the last connection; None if there was none."""
        self.flushing = False
        """Whether everything was sent, and the target is flushing."""
        self._house = house
        self._stopped = threading.Event()
        self._throttle = RateLimiter(Limits(bandwidth=ticket.bandwidth), self._stopped)
        self._fresh = False
        self._alone = False
        self._furthest = -1
        self._delivery: SendSession | None = None
        self._line: PeerConnection | None = None
        self._sent_before = 0
        self._thread = threading.Thread(target=self._run, name="target", daemon=True)
        house.scheduler.announce(self)
        self._thread.start()

    @property
    def sent(self) -> int:
        """Bytes sent over all connections."""
        line = self._line
        return self._sent_before + (line.sent if line is not None else 0)

    def update(self, ticket: Ticket) -> bool:
        """Return whether the session continues under this ticket: only the bandwidth may differ."""
        if replace(ticket, bandwidth=self.ticket.bandwidth) != self.ticket:
            return False
        if ticket != self.ticket:
            self.ticket = ticket
            self._throttle.change(Limits(bandwidth=ticket.bandwidth))
        return True

    def stop(self) -> None:
        """Stop the session, whose target is no longer listed."""
        self._stopped.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        except CdiError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - a defect becomes the reported failure
            traceback.print_exc()
            self.failure = InternalError(f"{type(error).__name__}: {error}")
        finally:
            self._house.scheduler.withdraw(self)
            self.ended = time.monotonic()
            self.finished = True
            self._house.news()

    def _serve(self) -> None:
        """Connect repeatedly until the target is complete; may raise `CdiError`."""
        job = self._house.job
        address = _parsed(self.ticket.address)
        failures = changes = 0
        began = time.monotonic()
        until = began + job.patience
        while True:
            try:
                self._attempt(address)
                return
            except SourceChanged as error:
                # The target starts over with the current content.
                self._fresh = True
                changes += 1
                if changes > job.policy.retries:
                    raise
                cause: CdiError = error
                self._house.warn(f"{error.what}; starting over")
            except CdiError as error:
                if error.retry is not Retry.BACKOFF or isinstance(error, Interrupted):
                    raise
                cause = error
            if time.monotonic() - began > STARTUP_GRACE:
                self._house.scheduler.withdraw(self)
            if self._moved():
                failures, until = 0, time.monotonic() + job.patience
            failures += 1
            if time.monotonic() > until:
                raise cause
            self._pause(cause, failures)

    def _moved(self) -> bool:
        """Return whether the last connection brought the target further than all previous ones."""
        data = self._delivery.data if self._delivery is not None else 0
        further = data > self._furthest
        self._furthest = max(self._furthest, data)
        return further

    def _pause(self, cause: CdiError, failures: int) -> None:
        seconds = _BACKOFF[min(failures, len(_BACKOFF)) - 1] * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
        self._house.control.meter.message = (
            f"retrying {self.ticket.address} in {seconds:.0f} s: {cause.code}: {cause.what}"
        )
        if self._stopped.wait(seconds):
            raise Interrupted("the clone was interrupted")

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Interrupted("the clone was interrupted")

    # --- one connection -----------------------------------------------------------------------------------------

    def _context(self) -> ssl.SSLContext:
        """Return a new context for each connection, as certificates are renewed."""
        files = self._house.job.tls
        own = files.for_target(self.ticket.id)
        if EACH_TARGET in files.certificate and not os.path.exists(own.certificate):
            raise PeerUnreachable("the certificate for this target does not exist yet", where=own.certificate)
        return client_context(own)

    def _attempt(self, address: tuple[str, int]) -> None:
        self._check()
        context = self._context()
        house = self._house
        source = house.stock.current()
        with self._connected(context, address) as line:
            talk = SenderProtocol(line, (self._throttle, house.control.throttle))

            def subscription(cursor: int, alone: bool) -> Subscription:
                return house.scheduler.subscribe(self, source, cursor, delivery.pause, alone=alone)

            delivery = self._delivery = SendSession(source, talk, subscription, alone=self._alone)
            try:
                self.digest = delivery.run(source.hello(self.ticket.id, fresh=self._fresh), self._told)
            except SourceError as error:
                if isinstance(error, SourceChanged):
                    house.stock.renew(source)
                # Tells the target whether waiting for another source is useful.
                line.linger_close(frames.encode_message(Fail.of(error)))
                raise
            finally:
                self._alone = delivery.alone
                self.flushing = False
                self.resumed_at = delivery.resumed_at

    def _told(self) -> None:
        delivery = self._delivery
        assert delivery is not None
        self.flushing = delivery.ending
        self._house.control.meter.advance(delivery.data)

    @contextmanager
    def _connected(self, context: ssl.SSLContext, address: tuple[str, int]) -> Iterator[PeerConnection]:
        job = self._house.job
        tls = _connect(context, address, self.ticket.server_name or address[0])
        line = PeerConnection(tls, self.ticket.address, stall=job.policy.stall_timeout, check=self._check)
        self._line = line
        try:
            yield line
        finally:
            self._sent_before, self._line = self._sent_before + line.sent, None
            line.close()


def _connect(context: ssl.SSLContext, address: tuple[str, int], name: str) -> ssl.SSLSocket:
    where = f"{address[0]}:{address[1]}"
    try:
        connection = socket.create_connection(address, CONNECT_TIMEOUT)
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
