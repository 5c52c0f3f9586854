"""mTLS certificates of the pods that send and receive volumes.

There are two signers, one for servers and one for clients. Both are stored in the installation namespace and created if
they are missing. Servers trust certificates of the client signer, clients those of the server signer. Both sides read
the CA bundle from a file in the pod, which the kubelet updates with a delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable
from typing import Final

from cdi.api.names import INSTALLATION, prefixed_name
from cdi.kube.certificates import (
    PROPAGATED,
    Authority,
    CertificateConfig,
    Lifetimes,
    SignerConfig,
    ensure_authority,
    ensure_certificate,
)
from cdi.kube.client import Client
from cdi.reconcile.actions import EnsureCertificate

SERVER_SIGNER: Final = "cdi-uploadserver-signer"
CLIENT_SIGNER: Final = "cdi-uploadserver-client-signer"
CA_PROPAGATION_DELAY: Final = PROPAGATED
"""Time until a new CA is in every Secret and bundle and the kubelets have updated the files of all pods."""
CA_PROPAGATION_TIMEOUT: Final = dt.timedelta(minutes=2)
"""Typical time until a kubelet has updated the files of a pod."""
_CACHE_TTL: Final = dt.timedelta(seconds=20)
"""How long a CA is used before its Secret is read again; less than the interval at which rotations are checked."""


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class CertificateManager:
    """Issuer of the certificates that plans ask for."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        lifetimes: Callable[[], Lifetimes],
        *,
        prefix: str = INSTALLATION,
        now: Callable[[], dt.datetime] = _now,
    ) -> None:
        """Configure where the signers are stored.

        Args:
            client: Client of the API server.
            namespace: Namespace of the signers' Secrets and bundles.
            lifetimes: Called for the current lifetimes of CAs and certificates.
            prefix: First part of the Secrets' names.
            now: Called for the current time.

        """
        self.prefix = prefix
        self._client = client
        self._namespace = namespace
        self._lifetimes = lifetimes
        self._now = now
        self._known: dict[str, tuple[dt.datetime, Authority]] = {}
        self._entries = asyncio.Lock()

    async def ensure(self, action: EnsureCertificate) -> None:
        """Create or renew the certificate that `action` describes.

        Raises:
            AlreadyExists: A Secret of that name exists and is not managed by this installation.
            UploadNotReady: A CA's key was lost, and the new CA is not trusted everywhere yet.
            CdiError: Any other error of the API server.

        """
        lifetimes = self._lifetimes()
        servers, clients = await self.authority(SERVER_SIGNER), await self.authority(CLIENT_SIGNER)
        is_server = action.usage == "server"
        place = CertificateConfig(
            namespace=action.namespace,
            secret=action.secret,
            name=action.name,
            hosts=action.hosts,
            usage=action.usage,
            trusts=(clients if is_server else servers).bundle,
            owner=action.owner,
            key_prefix=action.entry,
            beside=action.beside,
            exclusive=True,
            is_propagated=CA_PROPAGATION_DELAY,
            patience=CA_PROPAGATION_TIMEOUT,
        )
        lifetime = lifetimes.server if is_server else lifetimes.client
        # Many certificates of one shared Secret are requested at the same time; writing them one by one avoids
        # conflicts.
        async with self._entries if action.entry else contextlib.nullcontext():
            await ensure_certificate(self._client, place, servers if is_server else clients, lifetime, self._now())

    async def authority(self, name: str) -> Authority:
        """Return a signer, created or renewed if necessary; it is cached for `_CACHE_TTL`.

        Raises:
            CdiError: Any error of the API server.

        """
        now = self._now()
        known = self._known.get(name)
        if known is not None and now - known[0] < _CACHE_TTL:
            return known[1]
        place = SignerConfig.named(self._namespace, prefixed_name(name, self.prefix))
        made = await ensure_authority(self._client, place, self._lifetimes().authority, now)
        self._known[name] = (now, made)
        return made
