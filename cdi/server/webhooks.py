"""HTTP layer of the webhooks: routes, limits on unread requests, metrics and health checks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.rules.problems import Problem
from cdi.logs import fields
from cdi.server import admission, clone_authorization, mutation
from cdi.server.admission import Cluster
from cdi.server.clone_authorization import Access
from cdi.server.hooks import HOOKS, TIMEOUT, Hook
from cdi.server.mutation import Storage
from cdi.server.review import MAX_BODY, Allowed, Refused, Review, Verdict, answer, read

LOG = logging.getLogger(__name__)
MAX_PENDING = 64 << 20
"""Largest number of bytes of requests that are read at the same time; further requests are rejected."""
_LARGE = 64 << 10
"""Size of a body in bytes above which it is decoded outside the event loop, one at a time."""


class Metrics:
    """Prometheus metrics of the server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "kubevirt_cdi_admission_requests_total",
            "Admission requests, by webhook, operation and verdict",
            ("webhook", "operation", "verdict"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "kubevirt_cdi_admission_seconds",
            "Time to answer an admission request in seconds",
            ("webhook",),
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, TIMEOUT),
            registry=self.registry,
        )
        self.malformed = Counter(
            "kubevirt_cdi_admission_malformed_total",
            "HTTP requests that were not valid AdmissionReviews",
            ("webhook", "status"),
            registry=self.registry,
        )
        self.expiry = Gauge(
            "kubevirt_cdi_apiserver_certificate_expiry_seconds",
            "Expiry of the serving certificate in seconds since the epoch",
            registry=self.registry,
        )


class Webhooks:
    """Handlers of AdmissionReviews."""

    def __init__(
        self,
        cluster: Cluster,
        storage: Storage,
        access: Access,
        metrics: Metrics,
        admits: Callable[[str], bool],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Create the handlers.

        Args:
            cluster: The objects that validation reads.
            storage: The storage classes that mutation reads.
            access: The access checks for clones.
            metrics: What counts the requests.
            admits: Returns whether requests with this path prefix may be served (`cdi.server.webhook_path`).
            labels: The labels of the objects that the webhooks are called for; None if they are called for all.
        """
        self._cluster, self._storage, self._access, self._metrics = cluster, storage, access, metrics
        self._admits, self._labels = admits, labels
        self._pending = 0
        self._decoding = asyncio.Semaphore(1)

    def application(self, *, ready: Callable[[], str], more: Iterable[web.RouteDef] = ()) -> web.Application:
        """Return the application; `ready` returns an empty string or what is missing, `more` are further routes."""

        async def healthz(_: web.Request) -> web.Response:
            return web.Response(text="OK")

        async def readyz(_: web.Request) -> web.Response:
            trouble = ready()
            return web.Response(text=f"{trouble}\n", status=503) if trouble else web.Response(text="OK")

        async def metrics(_: web.Request) -> web.Response:
            body = generate_latest(self._metrics.registry)
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
        app.add_routes([web.post(f"/{{word}}{hook.path}", self._handler(hook)) for hook in HOOKS])
        app.add_routes(more)
        return app

    def _handler(self, hook: Hook) -> Callable[[web.Request], Coroutine[Any, Any, web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                review, large = await self._question(request, hook)
            except web.HTTPException as refused:
                self._metrics.malformed.labels(hook.name, str(refused.status)).inc()
                LOG.warning("malformed request", extra=fields(webhook=hook.name, status=refused.status))
                raise
            began = time.monotonic()
            verdict = await self._verdict(hook, review, large=large)
            self._metrics.seconds.labels(hook.name).observe(time.monotonic() - began)
            self._record(hook, review, verdict)
            return web.json_response(answer(review, verdict), dumps=_dumps)

        return handle

    async def _question(self, request: web.Request, hook: Hook) -> tuple[Review, bool]:
        """Return the parsed request, and whether it is large; raise `web.HTTPException` for an unacceptable one."""
        if not self._admits(request.match_info["word"]):
            raise web.HTTPNotFound
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="Content-Type must be application/json\n")
        async with self._room(request.content_length):
            try:
                async with asyncio.timeout(TIMEOUT):
                    body = await request.read()
            except TimeoutError:
                raise web.HTTPRequestTimeout(text="timed out waiting for the body\n") from None
            try:
                if len(body) < _LARGE:
                    return read(body, hook), False
                async with self._decoding:
                    return await asyncio.to_thread(read, body, hook), True
            except InvalidManifest as error:
                raise web.HTTPBadRequest(text=f"{error.what}\n") from error

    @contextlib.asynccontextmanager
    async def _room(self, length: int | None) -> AsyncIterator[None]:
        """Bound the memory that the bodies of all concurrent requests occupy."""
        wanted = MAX_BODY if length is None else length
        if wanted > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, wanted)
        if self._pending + wanted > MAX_PENDING:
            raise web.HTTPServiceUnavailable(text="too many requests; try again\n")
        self._pending += wanted
        try:
            yield
        finally:
            self._pending -= wanted

    async def _verdict(self, hook: Hook, review: Review, *, large: bool) -> Verdict:
        try:
            match hook.name:
                case "datavolume-mutate":
                    return await clone_authorization.authorise(review, self._access, self._labels)
                case "pvc-mutate":
                    return await mutation.mutate_claim(review, self._storage)
                case _ if large:
                    async with self._decoding:
                        return await admission.validate(review, self._cluster, apart=True)
                case _:
                    return await admission.validate(review, self._cluster)
        except InvalidManifest as error:
            return Refused(problems=(Problem(field=error.where or "", message=error.what),))
        except CdiError as error:
            LOG.warning("cannot validate an object", exc_info=error, extra=_about(hook, review))
            return _later(f"validation failed: {error.what}")
        except Exception:
            LOG.exception("unexpected error", extra=_about(hook, review))
            return _later("validation failed: internal error, see the log of cdi-apiserver", status=500)

    def _record(self, hook: Hook, review: Review, verdict: Verdict) -> None:
        allowed = isinstance(verdict, Allowed)
        self._metrics.requests.labels(hook.name, str(review.operation), "allowed" if allowed else "refused").inc()
        if isinstance(verdict, Refused):
            reason = "; ".join(str(problem) for problem in verdict.problems)
            LOG.info("refused", extra={**_about(hook, review, reason=reason, status=verdict.status)})
        else:
            LOG.debug("allowed", extra=_about(hook, review))


def _later(message: str, status: int = 503) -> Refused:
    reason = "ServiceUnavailable" if status == HTTPStatus.SERVICE_UNAVAILABLE else "InternalError"
    return Refused(problems=(Problem(field="", message=message),), status=status, reason=reason)


def _about(hook: Hook, review: Review, **more: object) -> Any:
    key = f"{review.plural} {review.namespace}/{review.name}" if review.namespace else f"{review.plural} {review.name}"
    return fields(webhook=hook.name, operation=str(review.operation), key=key, user=review.user, **more)


def _dumps(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))
