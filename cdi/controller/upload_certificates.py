"""Certificates of the upload proxy, and renewal of those of upload servers whose pods outlive a certificate.

    cdi-uploadproxy-server-cert     the proxy's server certificate; an administrator may replace it
    cdi-uploadproxy-signer          the CA that signs it unless it was replaced
    cdi-uploadserver-client-cert    the proxy's client certificate for upload servers

Beside another CDI their names have another prefix (`cdi.api.names.prefixed_name`).

An upload server's certificate is created with its pod (`cdi.reconcile.datavolume.upload_server`) and renewed here.
Errors do not affect imports: they are logged and the operation is retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Callable, Iterable
from typing import Final, Never
from urllib.parse import urlsplit

from cdi.api.errors import CdiError
from cdi.api.kinds import CLAIMS, Object
from cdi.api.names import is_dns_subdomain, prefixed_name
from cdi.api.upload_protocol import CLIENT_NAME
from cdi.controller.certificates import (
    CA_PROPAGATION_DELAY,
    CA_PROPAGATION_TIMEOUT,
    CLIENT_SIGNER,
    SERVER_SIGNER,
    CertificateManager,
)
from cdi.kube.certificates import CertificateConfig, Lifetimes, ensure_certificate, service_hosts
from cdi.kube.client import Client
from cdi.logs import fields
from cdi.reconcile.datavolume.upload_server import certificate
from cdi.reconcile.types import Service

PROXY: Final = "cdi-uploadproxy"
"""Name of the proxy's Service."""
PROXY_SIGNER: Final = "cdi-uploadproxy-signer"
PROXY_CERTIFICATE: Final = "cdi-uploadproxy-server-cert"
CLIENT_CERTIFICATE: Final = "cdi-uploadserver-client-cert"
SYNC_INTERVAL: Final = 30.0
"""Interval in seconds; clients that request a rotation expect it within a minute."""
RETRY_INTERVAL: Final = 5.0
"""Interval in seconds after an error."""

log = logging.getLogger("cdi.controller")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class UploadCertificateRotator:
    """Rotator of upload certificates."""

    def __init__(
        self,
        client: Client,
        certifier: CertificateManager,
        namespace: str,
        *,
        lifetimes: Callable[[], Lifetimes],
        services: Callable[[], Iterable[Object]],
        override: Callable[[], str],
        exposed: Callable[[], str | None],
        changed: Callable[[], None],
        now: Callable[[], dt.datetime] = _now,
    ) -> None:
        """Start without knowledge about the proxy.

        Args:
            client: Client of the API server.
            certifier: Issuer of the certificates, which stores the signers.
            namespace: Namespace of the installation.
            lifetimes: Called for the current lifetimes of CAs and certificates.
            services: Called for the Services of upload servers.
            override: Called for the proxy's URL in CDIConfig; empty if there is none.
            exposed: Called for the host of the proxy's Ingress or Route; empty if there is none, None if it is unknown.
            changed: Called when `known`, `authorities` or `host` has changed.
            now: Called for the current time.

        """
        self.known = False
        """Whether `authorities` and `host` have been read; they are empty before that."""
        self.authorities = ""
        """PEM of the CAs that signed the proxy's certificate; empty if they are unknown."""
        self.host = ""
        """Host name of an Ingress or Route that leads to the proxy; empty if there is none."""
        self._client = client
        self._certifier = certifier
        self._namespace = namespace
        self._lifetimes = lifetimes
        self._services = services
        self._override = override
        self._exposed = exposed
        self._due = asyncio.Event()
        """Set if the next round is due at once."""
        self._changed = changed
        self._now = now

    async def run(self) -> Never:
        """Run until cancelled."""
        while True:
            self._due.clear()
            pause = SYNC_INTERVAL
            for look in (self.sync, self.look_at_client):
                try:
                    await look()
                except CdiError as error:
                    log.warning("cannot renew the upload proxy's certificates", extra=fields(reason=error))
                    pause = RETRY_INTERVAL
            for service in tuple(self._services()):
                try:
                    await self.renew(service)
                except CdiError as error:
                    name = f"{service['metadata'].get('namespace')}/{service['metadata']['name']}"
                    log.warning("cannot issue an upload server's certificate", extra=fields(key=name, reason=error))
            await self._rest(pause if self.known else RETRY_INTERVAL)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._due.wait()

    def wake(self) -> None:
        """Start the next round at once."""
        self._due.set()

    async def look_at_client(self) -> None:
        """Create or renew the proxy's client certificate for upload servers.

        Raises:
            UploadNotReady: Upload servers do not trust a new CA yet.
            CdiError: Any other error of the API server.

        """
        servers, clients = (
            await self._certifier.authority(SERVER_SIGNER),
            await self._certifier.authority(CLIENT_SIGNER),
        )
        place = CertificateConfig(
            namespace=self._namespace,
            secret=prefixed_name(CLIENT_CERTIFICATE, self._certifier.prefix),
            name=CLIENT_NAME,
            usage="client",
            trusts=servers.bundle,
            is_propagated=CA_PROPAGATION_DELAY,
            patience=CA_PROPAGATION_TIMEOUT,
        )
        await ensure_certificate(self._client, place, clients, self._lifetimes().client, self._now())

    async def sync(self) -> None:
        """Create or renew the proxy's server certificate, once the proxy's host is known.

        Raises:
            CdiError: Any error of the API server.

        """
        lifetimes, now, host = self._lifetimes(), self._now(), self._exposed()
        if host is None:
            # The certificate would be issued without the host, and then again with it.
            return
        before = (self.known, self.authorities, self.host)
        signer = await self._certifier.authority(PROXY_SIGNER)
        self.host = host
        proxy = prefixed_name(PROXY, self._certifier.prefix)
        hosts = [*service_hosts(proxy, self._namespace), *_host(self._override()), *_host(self.host)]
        own = CertificateConfig(
            namespace=self._namespace,
            secret=prefixed_name(PROXY_CERTIFICATE, self._certifier.prefix),
            name=hosts[0],
            hosts=tuple(dict.fromkeys(hosts)),
        )
        held = await ensure_certificate(self._client, own, signer, lifetimes.server, now)
        self.authorities = signer.bundle if held.ours else held.authorities
        self.known = True
        if before != (self.known, self.authorities, self.host):
            self._changed()

    async def renew(self, service: Object) -> None:
        """Renew the certificate of an upload server.

        Raises:
            CdiError: Any error of the API server.

        """
        metadata = service["metadata"]
        owners = metadata.get("ownerReferences") or ()
        owner = next((one for one in owners if one.get("controller") and one.get("kind") == CLAIMS.kind), None)
        if owner is None or "deletionTimestamp" in metadata:
            return
        known = Service(name=metadata["name"], uid=metadata["uid"], claim=owner["uid"])
        await self._certifier.ensure(certificate(metadata["namespace"], owner["name"], known))


def _host(url: str) -> tuple[str, ...]:
    """Return the host of ``host``, ``host:port`` or a URL."""
    try:
        host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
    except ValueError:
        return ()
    return (host,) if is_dns_subdomain(host) else ()
