"""TLS policy of the upload proxy, read from the cluster's configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from cdi.api.configuration import CONFIG_NAME, CDIConfig
from cdi.api.errors import CdiError, InvalidManifest, NotFound
from cdi.api.installation import CDI
from cdi.api.kinds import CDI_CONFIGS, CDIS, Object
from cdi.api.validation import parse
from cdi.kube.client import Client
from cdi.kube.sync import SyncClient
from cdi.logs import fields
from cdi.reconcile.cdi.config import active_cdi, effective_spec
from cdi.server.tls import TlsPolicy

LOG = logging.getLogger(__name__)
POLL_INTERVAL = 30.0
"""Seconds between two reads of the configuration."""
M = TypeVar("M", CDI, CDIConfig)


class ClusterPolicy:
    """The last known policy of ``tlsSecurityProfile`` in CDI or CDIConfig; call `close` to stop polling."""

    def __init__(self, client: SyncClient, seconds: float = POLL_INTERVAL) -> None:
        """Read the policy before returning, so that no weaker TLS is offered at first, and then every `seconds`."""
        self._client = client.client
        self._seconds = seconds
        self._policy = TlsPolicy()
        self._trouble = ""
        client.run(self._look())
        self._looking = client.start(self._look_again())

    def __call__(self) -> TlsPolicy:
        return self._policy

    def close(self) -> None:
        self._looking.cancel()

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self._look()

    async def _look(self) -> None:
        try:
            found = await policy_of(self._client)
        except CdiError as error:
            # Keep the last known policy. The error is logged once, not at every poll.
            if error.code != self._trouble:
                LOG.warning("cannot read the TLS profile", exc_info=error, extra=fields(code=error.code))
            self._trouble = error.code
            return
        self._trouble = ""
        if found != self._policy:
            LOG.info("another TLS profile", extra=fields(minimum=found.minimum.name, ciphers=len(found.ciphers)))
            self._policy = found


async def policy_of(client: Client) -> TlsPolicy:
    """Return the policy that CDI and CDIConfig ask for; raise the API server's errors."""
    cdi = active_cdi(_read((await client.list(CDIS)).items, CDI))
    try:
        config = next(_read([await client.get(CDI_CONFIGS, None, CONFIG_NAME)], CDIConfig), None)
    except NotFound:
        config = None
    return TlsPolicy.of(effective_spec(cdi, config).tls_security_profile)


def _read(bodies: Iterable[Object], model: type[M]) -> Iterator[M]:
    """Yield the objects that can be parsed; any other counts as missing, as everywhere else."""
    for body in bodies:
        try:
            found = parse(body)
        except InvalidManifest as error:
            LOG.warning("cannot decode a %s: %s", model.__name__, error.message)
            continue
        if isinstance(found, model):
            yield found
