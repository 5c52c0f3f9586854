"""Certificates by which pods that send and take volumes know each other.

Both authorities are kept where the installation is, and made where they are missing.  Servers trust what the clients'
authority signed, and clients what that of the servers did.  Whom to trust is a file of the pod on either side, which a
kubelet brings up to date now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable
from typing import Final

from cdi.api.names import INSTALLATION, own_name
from cdi.kube.certificates import (
    Authority,
    AuthorityPlace,
    CertificatePlace,
    ensure_authority,
    ensure_certificate,
)
from cdi.kube.client import Client
from cdi.kube.lifetimes import Lifetimes
from cdi.reconcile.actions import ProvideCertificate

SERVERS: Final = "cdi-uploadserver-signer"
CLIENTS: Final = "cdi-uploadserver-client-signer"
SETTLED: Final = dt.timedelta(minutes=10)
"""By then a new authority is in every Secret and bundle, and a kubelet has shown it to every pod."""
PATIENCE: Final = dt.timedelta(minutes=2)
"""What a kubelet takes for it, where nothing goes wrong."""
_KEPT: Final = dt.timedelta(minutes=1)
"""How long an authority that was looked at is taken for granted."""


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Certifier:
    """Of one controller."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        lifetimes: Callable[[], Lifetimes],
        *,
        prefix: str = INSTALLATION,
        now: Callable[[], dt.datetime] = _now,
    ) -> None:
        """`namespace` is where the authorities are kept, `prefix` what their names begin with there."""
        self.prefix = prefix
        self._client = client
        self._namespace = namespace
        self._lifetimes = lifetimes
        self._now = now
        self._known: dict[str, tuple[dt.datetime, Authority]] = {}
        self._entries = asyncio.Lock()

    async def provide(self, action: ProvideCertificate) -> None:
        """Raises `AlreadyExists` for a Secret of that name that is somebody else's, and what the API server answers.

        Raises `UploadNotReady` where an authority was lost and its successor is not known everywhere yet.
        """
        lifetimes = self._lifetimes()
        servers, clients = await self.authority(SERVERS), await self.authority(CLIENTS)
        is_server = action.usage == "server"
        place = CertificatePlace(
            namespace=action.namespace,
            secret=action.secret,
            name=action.name,
            hosts=action.hosts,
            usage=action.usage,
            trusts=(clients if is_server else servers).bundle,
            owner=action.owner,
            entry=action.entry,
            beside=action.beside,
            exclusive=True,
            settled=SETTLED,
            patience=PATIENCE,
        )
        lifetime = lifetimes.server if is_server else lifetimes.client
        # Of a Secret that holds several, many are asked for at once.
        async with self._entries if action.entry else contextlib.nullcontext():
            await ensure_certificate(self._client, place, servers if is_server else clients, lifetime, self._now())

    async def authority(self, name: str) -> Authority:
        """One of them; it is looked at now and then.  Raises what the API server answers."""
        now = self._now()
        known = self._known.get(name)
        if known is not None and now - known[0] < _KEPT:
            return known[1]
        place = AuthorityPlace.named(self._namespace, own_name(name, self.prefix))
        made = await ensure_authority(self._client, place, self._lifetimes().authority, now)
        self._known[name] = (now, made)
        return made
