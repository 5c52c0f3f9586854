"""Prometheus metrics of the upload proxy; ``docs/reference/metrics.md`` explains them.

They are served on a port of their own, since the other one is reachable by any client.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector

from cdi.api.upload_protocol import TUS_START, PlainUpload, TusUpload, route
from cdi.http.server.request import ServerRequest

LOST = "lost"
"""The value of the label ``code`` for a request whose client disconnected before the response."""


class Metrics:
    """The proxy's metrics in a registry of their own; safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "cdi_uploadproxy_requests",
            "Finished requests, by path and response status",
            ["path", "code"],
            registry=self.registry,
        )
        self._received = Counter(
            "cdi_uploadproxy_received_bytes",
            "Bytes of uploads that were forwarded to upload servers",
            registry=self.registry,
        )
        self._uploads = Gauge(
            "cdi_uploadproxy_uploads",
            "Uploads that are being forwarded",
            registry=self.registry,
        )
        self._waiting = Gauge(
            "cdi_uploadproxy_waiting",
            "Requests that are waiting for the upload server of their volume",
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def ended(self, request: ServerRequest) -> None:
        """Count a request that was answered or lost its client."""
        self._requests.labels(_place(request.head.path), LOST if request.status is None else str(request.status)).inc()

    @contextlib.contextmanager
    def uploading(self) -> Iterator[None]:
        """Count a body that is being forwarded for as long as the context lasts."""
        with self._uploads.track_inprogress():
            yield

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a request that waits for an upload server for as long as the context lasts."""
        with self._waiting.track_inprogress():
            yield

    def received(self, size: int) -> None:
        """Add `size` forwarded bytes."""
        self._received.inc(size)

    def serve(self, request: ServerRequest) -> bool:
        """Answer a scrape; return whether the connection may carry another request."""
        if request.head.path != "/metrics" or request.head.method != "GET":
            return request.respond(404, b"metrics are at /metrics\n")
        return request.respond(200, generate_latest(self.registry), content_type=CONTENT_TYPE_LATEST)


def _place(path: str) -> str:
    """Return the value of the label ``path``; unknown paths are folded, so that clients cannot create series."""
    match route(path):
        case PlainUpload(path=known):
            return known
        case TusUpload():
            return TUS_START.rstrip("/")
        case None if path == "/healthz":
            return path
        case None if path == "/" or path.startswith("/page/"):
            return "page"
        case None:
            return "other"
