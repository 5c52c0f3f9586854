"""The process of ``cdi apiserver``: caches, certificates and the server, from startup to graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import random
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from cdi.api.datasource import DataSource
from cdi.api.errors import CdiError, NotFound
from cdi.api.kinds import DATA_SOURCES
from cdi.api.names import prefixed_name
from cdi.api.validation import parse
from cdi.http.sockets import listen_as_asked
from cdi.kube.certificates import (
    CertificateConfig,
    SignerConfig,
    ensure_authority,
    ensure_certificate,
    service_hosts,
)
from cdi.kube.client import Client, connect
from cdi.kube.jwt import SIGNING_KEY, TokenClaims
from cdi.logs import fields
from cdi.server.ca_injection import publish, publish_service
from cdi.server.hooks import Installation
from cdi.server.informers import Observed
from cdi.server.tls import ServingTls
from cdi.server.uploadtoken_api.authentication import User, may
from cdi.server.uploadtoken_api.routes import Aggregated
from cdi.server.webhook_path import PathSecrets, ensure_words
from cdi.server.webhooks import Metrics, Webhooks

LOG = logging.getLogger(__name__)
_POLL_INTERVAL = 30.0
"""Seconds between checks of the certificates if no change triggers one earlier."""
_MIN_INTERVAL = 0.5
"""Smallest number of seconds between two checks."""
_MAX_BACKOFF = 30.0
_FIRST_READ = 10.0
"""Seconds that startup waits for the caches; without them the server starts, and reports that it is not ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the server."""

    installation: Installation
    prefix: str = "cdi"
    """The prefix of the names of its Secrets and ConfigMaps."""
    hosts: tuple[str, ...] = ()
    """Host names and addresses in its certificate, besides those of its Service."""
    port: int = 8443
    bind: str = ""
    """The address to listen on; empty for all."""
    kubeconfig: Path | None = None
    context: str | None = None
    linger: float = 5.0
    """Seconds that it keeps serving after the signal to terminate, until clients have noticed that it is not ready."""


class ApiServer:
    """An aggregated API and webhook server."""

    def __init__(
        self,
        client: Client,
        options: Options,
        *,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._client, self._options, self._clock = client, options, clock
        self._wake = asyncio.Event()
        self._tls = ServingTls()
        self._ending = False
        self._foreign = ""
        self._words = PathSecrets()
        self.metrics = Metrics()
        self.observed = Observed(client, self._wake.set)
        self.aggregated = Aggregated(
            client,
            self.observed,
            namespace=options.installation.namespace,
            signing_key=prefixed_name(SIGNING_KEY, options.prefix),
            now=lambda: self._clock().timestamp(),
        )

    async def run(self, stop: asyncio.Event, *, listening: Callable[[int], None] = lambda _: None) -> None:
        """Serve until `stop`, then shut down gracefully.

        Calls `listening` with the port. Raises `UsageError` if the port is not available.
        """
        with listen_as_asked(self._options.port, self._options.bind) as listener:
            async with asyncio.TaskGroup() as group:
                background = [group.create_task(self.observed.run())]
                try:
                    await self.observed.synced(_FIRST_READ)
                    background.append(group.create_task(self._keep_certificate()))
                    async with self._serving(listener):
                        listening(int(listener.getsockname()[1]))
                        LOG.info("serving", extra=fields(port=int(listener.getsockname()[1])))
                        await stop.wait()
                        self._ending = True
                        LOG.info("ending")
                        await asyncio.sleep(self._options.linger)
                finally:
                    for task in background:
                        task.cancel()

    @contextlib.asynccontextmanager
    async def _serving(self, listener: socket.socket) -> AsyncIterator[None]:
        webhooks = Webhooks(
            self.observed,
            self.observed,
            self,
            self.metrics,
            lambda word: self._words.admits(word, self._clock()),
            self._options.installation.object_labels,
        )
        runner = web.AppRunner(
            webhooks.application(ready=self._trouble, more=self.aggregated.routes()),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=10.0,
            keepalive_timeout=75.0,
        )
        await runner.setup()
        try:
            await web.SockSite(runner, listener, ssl_context=self._tls.context).start()
            yield
        finally:
            await runner.cleanup()

    def _trouble(self) -> str:
        if self._ending:
            return "the server is shutting down"
        if not self._tls.has_certificate:
            return "the serving certificate is not available yet"
        if not self._words.words:
            return "the path secret of the webhooks is not known yet"
        if self.observed.unsynced:
            return f"the caches are not synchronized: {self.observed.trouble() or 'listing objects'}"
        return ""

    # --- clones -------------------------------------------------------------------------------------------------

    async def data_source(self, namespace: str, name: str) -> DataSource | None:
        """Return a DataSource, bypassing any cache."""
        try:
            found = parse(await self._client.get(DATA_SOURCES, namespace, name))
        except NotFound:
            return None
        return found if isinstance(found, DataSource) else None

    async def may(self, user: User, attributes: Mapping[str, str]) -> bool:
        """Return the decision of the API server's authorizers."""
        allowed, _ = await may(self._client, user, attributes)
        return allowed

    async def claim(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a PVC, bypassing any cache."""
        return await self.observed.claim(namespace, name)

    async def snapshot(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a VolumeSnapshot, bypassing any cache."""
        return await self.observed.snapshot(namespace, name)

    def sign(self, claims: TokenClaims) -> str:
        """Return a signed token; raise `ClusterUnavailable` while there is no key."""
        return self.aggregated.sign(claims)

    # --- certificates -------------------------------------------------------------------------------------------

    async def _keep_certificate(self) -> None:
        """Refresh periodically, and after each change."""
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self.refresh()
                failures = 0
            except (CdiError, ssl.SSLError) as error:
                failures += 1
                LOG.warning("cannot renew certificates, retrying", exc_info=error, extra=fields(failures=failures))
            except Exception:
                failures += 1
                LOG.exception("cannot renew certificates, retrying")
            pause = min(_MAX_BACKOFF, _MIN_INTERVAL * 2**failures) if failures else _MIN_INTERVAL
            await asyncio.sleep(pause)
            if not failures:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_INTERVAL * random.uniform(0.8, 1.2)):  # noqa: S311  spreads replicas
                        await self._wake.wait()

    async def refresh(self) -> None:
        """Ensure authority, path, published configurations and certificate, in this order.

        See `cdi.kube.certificates` for why.
        """
        now, options = self._clock(), self._options
        namespace, name = options.installation.namespace, f"{options.prefix}-apiserver"
        lifetimes = self.observed.lifetimes
        self._tls.apply_policy(self.observed.policy)
        signer = SignerConfig.named(namespace, f"{name}-signer")
        authority = await ensure_authority(self._client, signer, lifetimes.authority, now)
        self._words = await ensure_words(
            self._client, namespace, f"{name}-webhook-path", lifetimes.server, now, self._words
        )
        await self._publish(authority.bundle)
        hosts = (*service_hosts(options.installation.service, namespace), *options.hosts)
        place = CertificateConfig(namespace=namespace, secret=f"{name}-server-cert", name=hosts[0], hosts=hosts)
        held = await ensure_certificate(self._client, place, authority, lifetimes.server, now)
        if held.authorities != self._foreign:
            self._foreign = held.authorities
            await self._publish(authority.bundle)
        try:
            # This has to precede the first handshake: the API server reuses connections, and one that was not asked for
            # a client certificate would stay without.
            await self.aggregated.refresh()
            self._tls.request_client_certificates(self.aggregated.front_proxy.authorities)
        finally:
            # Webhooks are served even if this fails.
            if self._tls.set_certificate(held.pair.certificate, held.pair.key):
                LOG.info("a new serving certificate is in use", extra=fields(expires=held.expires.isoformat()))
            self.metrics.expiry.set(held.expires.timestamp())

    async def _publish(self, bundle: str) -> None:
        options = self._options
        for current in self._words.current(self._clock()):
            await publish(self._client, options.installation, self.observed, bundle + self._foreign, current.word)
        await publish_service(self._client, options.installation, self.observed, bundle + self._foreign)


async def serve(options: Options, *, listening: Callable[[int], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT; raise `ClusterConfigInvalid` or `UsageError`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stop.set)
    async with connect(options.kubeconfig, options.context) as client:
        await ApiServer(client, options).run(stop, listening=listening)
