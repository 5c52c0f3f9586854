"""The certificates of the upload proxy, and those of upload servers whose pods run for longer than a certificate lives.

    cdi-uploadproxy-server-cert     the proxy's own; an administrator may put another one there
    cdi-uploadproxy-signer          who signs it, where nobody did
    cdi-uploadserver-client-cert    by which upload servers know the proxy

Beside another CDI their names begin with something else (`cdi.api.names.own_name`).
An upload server's certificate is made with its pod (`cdi.reconcile.uploading`); here it is renewed.  Nothing of this
keeps anybody who imports waiting: what cannot be done is told in the log and tried again.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Iterable
from typing import Final, Never
from urllib.parse import urlsplit

from cdi.api.errors import CdiError, ClusterForbidden, KindNotServed
from cdi.api.names import is_dns_subdomain, own_name
from cdi.api.upload_protocol import CLIENT_NAME
from cdi.controller.certifier import CLIENTS, PATIENCE, SERVERS, SETTLED, Certifier
from cdi.controller.logs import fields
from cdi.kube.certificates import CertificatePlace, ensure_certificate, service_hosts
from cdi.kube.client import Client
from cdi.kube.lifetimes import Lifetimes
from cdi.kube.resources import CLAIMS, INGRESSES, Object
from cdi.reconcile.uploading import certificate
from cdi.reconcile.world import Service

PROXY: Final = "cdi-uploadproxy"
"""The proxy's Service."""
PROXY_SIGNER: Final = "cdi-uploadproxy-signer"
PROXY_CERTIFICATE: Final = "cdi-uploadproxy-server-cert"
CLIENT_CERTIFICATE: Final = "cdi-uploadserver-client-cert"
EVERY: Final = 60.0
"""Seconds between two looks."""
SOON: Final = 5.0
"""Seconds after one that failed."""

log = logging.getLogger("cdi.controller")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class UploadCertificates:
    """Of one controller."""

    def __init__(
        self,
        client: Client,
        certifier: Certifier,
        namespace: str,
        *,
        lifetimes: Callable[[], Lifetimes],
        services: Callable[[], Iterable[Object]],
        override: Callable[[], str],
        changed: Callable[[], None],
        now: Callable[[], dt.datetime] = _now,
    ) -> None:
        """`services` gives the Services of upload servers, `override` where CDIConfig says that the proxy is.

        `changed` hears that `authorities` or `host` are others than before, and when they are known at last.
        """
        self.known = False
        """Somebody has looked; what follows says nothing before."""
        self.authorities = ""
        """PEM of who signed the proxy's certificate; empty where that is not known here."""
        self.host = ""
        """Where an Ingress leads to the proxy."""
        self._client = client
        self._certifier = certifier
        self._namespace = namespace
        self._lifetimes = lifetimes
        self._services = services
        self._override = override
        self._changed = changed
        self._now = now

    async def run(self) -> Never:
        """Until it is cancelled."""
        while True:
            pause = EVERY
            for look in (self.look, self.look_at_client):
                try:
                    await look()
                except CdiError as error:
                    log.warning("certificates of the upload proxy", extra=fields(reason=error))
                    pause = SOON
            for service in tuple(self._services()):
                try:
                    await self.renew(service)
                except CdiError as error:
                    name = f"{service['metadata'].get('namespace')}/{service['metadata']['name']}"
                    log.warning("the certificate of an upload server", extra=fields(key=name, reason=error))
            await asyncio.sleep(pause)

    async def look_at_client(self) -> None:
        """By what upload servers know the proxy.

        Raises what the API server answers, and `UploadNotReady` while they do not know an authority that is new.
        """
        servers, clients = await self._certifier.authority(SERVERS), await self._certifier.authority(CLIENTS)
        place = CertificatePlace(
            namespace=self._namespace,
            secret=own_name(CLIENT_CERTIFICATE, self._certifier.prefix),
            name=CLIENT_NAME,
            usage="client",
            trusts=servers.bundle,
            settled=SETTLED,
            patience=PATIENCE,
        )
        await ensure_certificate(self._client, place, clients, self._lifetimes().client, self._now())

    async def look(self) -> None:
        """The proxy's own, and where it is.  Raises what the API server answers."""
        lifetimes, now = self._lifetimes(), self._now()
        before = (self.known, self.authorities, self.host)
        signer = await self._certifier.authority(PROXY_SIGNER)
        self.host = await self._ingress()
        proxy = own_name(PROXY, self._certifier.prefix)
        hosts = [*service_hosts(proxy, self._namespace), *_host(self._override()), *_host(self.host)]
        own = CertificatePlace(
            namespace=self._namespace,
            secret=own_name(PROXY_CERTIFICATE, self._certifier.prefix),
            name=hosts[0],
            hosts=tuple(dict.fromkeys(hosts)),
        )
        held = await ensure_certificate(self._client, own, signer, lifetimes.server, now)
        self.authorities = signer.bundle if held.ours else held.authorities
        self.known = True
        if before != (self.known, self.authorities, self.host):
            self._changed()

    async def renew(self, service: Object) -> None:
        """Raises what the API server answers."""
        metadata = service["metadata"]
        owners = metadata.get("ownerReferences") or ()
        owner = next((one for one in owners if one.get("controller") and one.get("kind") == CLAIMS.kind), None)
        if owner is None or "deletionTimestamp" in metadata:
            return
        known = Service(name=metadata["name"], uid=metadata["uid"], claim=owner["uid"])
        await self._certifier.provide(certificate(metadata["namespace"], owner["name"], known))

    async def _ingress(self) -> str:
        """The host by which an Ingress leads to the proxy; empty where none does, or nobody may look."""
        try:
            found = await self._client.list(INGRESSES, self._namespace)
        except (ClusterForbidden, KindNotServed):
            return ""
        for body in sorted(found.items, key=lambda one: str(one["metadata"]["name"])):
            for rule in (body.get("spec") or {}).get("rules") or ():
                for path in (rule.get("http") or {}).get("paths") or ():
                    backend = (path.get("backend") or {}).get("service") or {}
                    if rule.get("host") and backend.get("name") == own_name(PROXY, self._certifier.prefix):
                        return str(rule["host"])
        return ""


def _host(url: str) -> tuple[str, ...]:
    """Of ``host``, ``host:port`` or a URL."""
    try:
        host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
    except ValueError:
        return ()
    return (host,) if is_dns_subdomain(host) else ()
