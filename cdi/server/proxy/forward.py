"""Forward a request to its volume's upload server, and wait while that server is being replaced.

An upload server is a pod: it ends when it lacks scratch space, it is killed or evicted, and its replacement takes
seconds to start. Meanwhile the request is held here. Its body is not read and ``Expect: 100-continue`` is not answered;
if the body had been begun, its start is kept and sent to the next server (`cdi.server.proxy.relay`). The replacement is
invisible to the client.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, assert_never

from cdi.api.errors import (
    CdiError,
    ClusterError,
    Interrupted,
    Retry,
    ScratchNeeded,
    TargetBusy,
    UploadNotReady,
    UploadUnderWay,
    by_code,
)
from cdi.http.connection import RemoteDisconnected
from cdi.http.server.request import ServerRequest
from cdi.logs import fields
from cdi.server.proxy.concurrency import ConcurrencyLimiter
from cdi.server.proxy.metrics import Metrics
from cdi.server.proxy.relay import BodyStart, Relayed, ServerLost, relay
from cdi.server.proxy.volumes import Destination, Filled, Pending, Volumes

LOG = logging.getLogger(__name__)
_MAX_REPLACEMENTS = 3
"""Largest number of replacement upload servers that are sent the start of one body."""
_MIN_INTERVAL, _MAX_INTERVAL, _INTERVAL_GROWTH = 0.25, 2.0, 1.5
"""Seconds between two lookups of the volume's state: the first and the longest interval, and the growth factor."""
_PASSING = (Interrupted, ScratchNeeded, TargetBusy, UploadNotReady, UploadUnderWay)
"""Errors of an upload server after which it, or its replacement, may accept the same request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitLimits:
    """Timeouts of a waiting request, in seconds."""

    replacement: float = 50.0
    """Waiting for an upload server.

    Load balancers and Ingresses commonly time out after 60 seconds without a response, as does ``cdi upload``; the
    error with its cause has to be sent before that.
    """
    contention: float = 10.0
    """Waiting for the end of another upload, which may just have failed and is being cleaned up."""


class Forwarder:
    """Forwarder of requests; each request runs in the thread of its caller."""

    def __init__(
        self,
        volumes: Volumes,
        context: Callable[[], ssl.SSLContext],
        metrics: Metrics,
        *,
        patience: WaitLimits,
        max_waiting: int,
    ) -> None:
        """Forward with the TLS context from `context`; at most `max_waiting` requests wait at a time."""
        self._volumes = volumes
        self._context = context
        self._metrics = metrics
        self._patience = patience
        self._waiting = ConcurrencyLimiter(max_waiting, "too many requests are waiting for their volumes")

    def forward(self, request: ServerRequest, namespace: str, name: str) -> Relayed | Filled:
        """Return the upload server's response, or `Filled` if the volume already has its image.

        Raises:
            UploadNotReady: No upload server became ready in time, or `Volumes.look` says that none will.
            UploadUnderWay: Another upload did not end in time.
            RemoteDisconnected: The client disconnected.
            CdiError: Reading the client's body failed.
        """
        start = BodyStart()
        with _Wait(request, self._patience, self._waiting, self._metrics, f"{namespace}/{name}") as wait:
            while True:
                found = self._attempt(request, namespace, name, start, wait)
                if not isinstance(found, CdiError):
                    return found
                wait.pause(found)

    def _attempt(
        self, request: ServerRequest, namespace: str, name: str, start: BodyStart, wait: _Wait
    ) -> Relayed | Filled | CdiError:
        """Try once; return an error that is worth a retry, raise any other."""
        try:
            state = self._volumes.look(namespace, name)
        except UploadUnderWay as error:
            return error
        except ClusterError as error:
            if error.retry is not Retry.BACKOFF:
                raise
            return error
        match state:
            case Filled():
                return state
            case Pending(why=why):
                return UploadNotReady(f"the upload server is not ready{': ' if why else ''}{why.rstrip('.')}")
            case Destination():
                return self._relay(request, state, start, wait)
            case _:
                assert_never(state)

    def _relay(
        self, request: ServerRequest, destination: Destination, start: BodyStart, wait: _Wait
    ) -> Relayed | CdiError:
        start.sent = False
        uploading = self._metrics.uploading() if request.head.length != 0 else contextlib.nullcontext()
        obstacle: CdiError
        try:
            with uploading:
                relayed = relay(request, destination, self._context(), start, wait.end, self._metrics.received)
        except ServerLost as lost:
            if start.dropped:
                raise lost.error from lost
            obstacle = lost.error
        else:
            passing = _obstacle(relayed)
            if passing is None or start.dropped:
                return relayed
            obstacle = passing
        if start.sent:
            wait.count_replacement(obstacle)
        return obstacle


def _obstacle(relayed: Relayed) -> CdiError | None:
    """Return the temporary error that the upload server reported, or None if its response is final."""
    if relayed.status != 503:
        return None
    if relayed.failure is None:
        # The response to HEAD has no body with a cause.
        return UploadNotReady("the upload server is not ready")
    kind = by_code(relayed.failure.code)
    return kind(relayed.failure.message.rstrip("."), remedy="") if issubclass(kind, _PASSING) else None


class _Wait:
    """The wait of one request: until the upload server is ready, the client disconnects or a timeout expires."""

    def __init__(
        self, request: ServerRequest, patience: WaitLimits, waiting: ConcurrencyLimiter, metrics: Metrics, claim: str
    ) -> None:
        self._request = request
        self._patience = patience
        self._waiting = waiting
        self._metrics = metrics
        self._claim = claim
        self._held = contextlib.ExitStack()
        self._replacements = 0
        self._began: float | None = None
        self._contended: float | None = None
        self._interval = _MIN_INTERVAL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def pause(self, obstacle: CdiError) -> None:
        """Wait until the next attempt.

        Raises:
            UploadUnderWay: Another upload did not end in time.
            UploadNotReady: No upload server became ready in time, or the proxy is shutting down.
            RemoteDisconnected: The client disconnected.
        """
        now = time.monotonic()
        if self._began is None:
            self._held.enter_context(self._waiting.take(""))
            self._held.enter_context(self._metrics.waiting())
            self._began = now
            LOG.info("waiting for the upload server", extra=fields(claim=self._claim, reason=obstacle.what))
        if isinstance(obstacle, UploadUnderWay):
            self._contended = now if self._contended is None else self._contended
            if now - self._contended >= self._patience.contention:
                raise obstacle
        if now - self._began >= self._patience.replacement:
            raise UploadNotReady(
                f"the upload server did not become ready within {self._patience.replacement:.0f} s: {obstacle.what}",
                where=self._claim,
            )
        if self._request.is_gone(self._interval):
            raise RemoteDisconnected("the client disconnected")
        if self._request.interrupted:
            raise UploadNotReady("the upload proxy is shutting down", remedy="send it again in a few seconds")
        self._interval = min(_MAX_INTERVAL, self._interval * _INTERVAL_GROWTH)

    def end(self) -> None:
        """Stop waiting and reset the timeouts."""
        self._held.close()
        self._began = self._contended = None
        self._interval = _MIN_INTERVAL

    def count_replacement(self, obstacle: CdiError) -> None:
        """Count an upload server that ended after receiving part of the body; raise `UploadNotReady` after too many."""
        self._replacements += 1
        if self._replacements > _MAX_REPLACEMENTS:
            raise UploadNotReady(
                f"{self._replacements} upload servers ended during the upload, the last one because: {obstacle.what}",
                where=self._claim,
                remedy="check the conditions and events of the DataVolume",
            )
