"""HTTPS server of ``/metrics`` for clients that Kubernetes authenticates and authorizes.

A client sends a bearer token. The API server says which user it belongs to (TokenReview) and whether that user may
``get`` the non-resource URL ``/metrics`` (SubjectAccessReview), as with KubeVirt's CDI. The chart grants this to the
ServiceAccount ``cdi-metrics-reader``.

The certificate is signed by an authority that only this process knows: it encrypts the connection and authenticates
nothing. TLS versions and ciphers follow ``tlsSecurityProfile``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Never

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cdi.api.errors import CdiError
from cdi.http.sockets import listen_as_asked
from cdi.kube import pki
from cdi.kube.client import Client
from cdi.kube.pki import Lifetime
from cdi.logs import fields
from cdi.server.proxy.policy import POLL_INTERVAL, policy_of
from cdi.server.tls import ServingTls
from cdi.server.uploadtoken_api.authentication import may_get_path, user_of_token

PATH: Final = "/metrics"
SERVICE: Final = "cdi-prometheus-metrics"
MAX_TOKEN: Final = 16 << 10
"""Characters of a token; a longer one is not sent to the API server."""
MAX_DECISIONS: Final = 64
"""Decisions that are remembered, one for each token."""
ALLOWED_TTL, DENIED_TTL = 60.0, 10.0
"""Seconds for which a decision is remembered: a scrape does not cost two requests each time."""
MAX_PENDING: Final = 16
"""Concurrent requests that wait for the API server; further ones are rejected."""
REVIEW_TIMEOUT: Final = 10.0
_LIFETIME: Final = Lifetime(duration=dt.timedelta(days=365), renew_before=dt.timedelta(days=30))

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Response to a client that asks for the metrics: its permission, or the reason for its refusal."""

    status: HTTPStatus
    message: str = ""

    @property
    def is_allowed(self) -> bool:
        return self.status == HTTPStatus.OK


_UNAUTHORIZED: Final = Decision(status=HTTPStatus.UNAUTHORIZED, message="Unauthorized")
_OVERLOADED: Final = Decision(
    status=HTTPStatus.SERVICE_UNAVAILABLE, message="too many requests wait for the API server; retry later"
)


class MetricsAuthorizer:
    """Decisions of the API server about clients, remembered for a short time."""

    def __init__(self, client: Client, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without decisions; `clock` returns the current time in seconds."""
        self._client = client
        self._clock = clock
        self._decisions: OrderedDict[bytes, tuple[float, Decision]] = OrderedDict()
        self._pending = 0

    async def authorize(self, header: str) -> Decision:
        """Return the decision about a client with this Authorization header."""
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN:
            return _UNAUTHORIZED
        # Only a digest is kept, so that a memory dump contains no tokens of other clients.
        key = hashlib.sha256(token.encode(errors="replace")).digest()
        expires, decision = self._decisions.get(key, (0.0, _UNAUTHORIZED))
        if self._clock() < expires:
            self._decisions.move_to_end(key)
            return decision
        if self._pending >= MAX_PENDING:
            return _OVERLOADED
        self._pending += 1
        try:
            async with asyncio.timeout(REVIEW_TIMEOUT):
                decision = await self._review(token)
        except (CdiError, TimeoutError) as error:
            LOG.warning("cannot check who reads the metrics", extra=fields(reason=error))
            return Decision(
                status=HTTPStatus.SERVICE_UNAVAILABLE, message=f"the API server did not check the token: {error}"
            )
        finally:
            self._pending -= 1
        ttl = ALLOWED_TTL if decision.is_allowed else DENIED_TTL
        self._decisions[key] = (self._clock() + ttl, decision)
        self._decisions.move_to_end(key)
        while len(self._decisions) > MAX_DECISIONS:
            self._decisions.popitem(last=False)
        return decision

    async def _review(self, token: str) -> Decision:
        user = await user_of_token(self._client, token)
        if user is None:
            return _UNAUTHORIZED
        if await may_get_path(self._client, user, PATH):
            return Decision(status=HTTPStatus.OK)
        return Decision(status=HTTPStatus.FORBIDDEN, message=f"Authorization denied for user {user.name}")


@contextlib.asynccontextmanager
async def serve_metrics(
    client: Client,
    port: int,
    registry: CollectorRegistry,
    *,
    hosts: tuple[str, ...] = ("localhost",),
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> AsyncIterator[int]:
    """Serve while the context is open, and yield the port number.

    Args:
        client: Client of the API server, which authenticates and authorizes clients.
        port: The port to listen on; 0 for any free one.
        registry: The metrics to serve.
        hosts: Names in the certificate, the first as its common name.
        clock: Called for the current time.

    Raises:
        UsageError: The port is in use.

    """
    authorizer = MetricsAuthorizer(client)
    endpoint = _Endpoint(client, hosts, clock)

    async def metrics(request: web.Request) -> web.Response:
        decision = await authorizer.authorize(request.headers.get("Authorization", ""))
        if not decision.is_allowed:
            return web.Response(text=f"{decision.message}\n", status=decision.status)
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application(client_max_size=1024)
    app.add_routes([web.get(PATH, metrics)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        listener = listen_as_asked(port)
        # Before the first handshake, so that no weaker TLS is offered than the profile allows.
        await endpoint.refresh()
        await web.SockSite(runner, listener, ssl_context=endpoint.tls.context).start()
        refreshing = asyncio.ensure_future(endpoint.run())
        try:
            yield int(listener.getsockname()[1])
        finally:
            refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refreshing
    finally:
        await runner.cleanup()


class _Endpoint:
    """TLS settings of the server, kept up to date."""

    def __init__(self, client: Client, hosts: tuple[str, ...], clock: Callable[[], dt.datetime]) -> None:
        self.tls = ServingTls()
        self._client = client
        self._hosts = hosts
        self._clock = clock
        self._renew_at: dt.datetime | None = None
        self._trouble = ""

    async def run(self) -> Never:
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            await self.refresh()

    async def refresh(self) -> None:
        """Apply the current TLS profile, and renew the certificate when it is due."""
        now = self._clock()
        if self._renew_at is None or now >= self._renew_at:
            authority = pki.new_authority(self._hosts[0], _LIFETIME, now)
            pair = pki.new_certificate(authority, self._hosts[0], hosts=self._hosts, lifetime=_LIFETIME, now=now)
            self.tls.set_certificate(pair.certificate + authority.certificate, pair.key)
            self._renew_at = now + _LIFETIME.duration - _LIFETIME.renew_before
        try:
            async with asyncio.timeout(REVIEW_TIMEOUT):
                self.tls.apply_policy(await policy_of(self._client))
        except (CdiError, TimeoutError) as error:
            # The last known policy stays. The error is logged once, not at every poll.
            code = error.code if isinstance(error, CdiError) else "timed out"
            if code != self._trouble:
                LOG.warning("cannot read the TLS profile", exc_info=error, extra=fields(code=code))
            self._trouble = code
        else:
            self._trouble = ""
