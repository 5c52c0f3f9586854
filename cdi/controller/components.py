"""Health of the installation's other components, which the CDI object shows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cdi.api.errors import ClusterForbidden, NotFound
from cdi.api.kinds import DEPLOYMENTS, MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS, Object, Resource
from cdi.kube.client import Client
from cdi.reconcile.cdi.installation import Installed

CHECK_INTERVAL: Final = 30.0
"""Polling interval in seconds; these objects are not watched."""
KINDS: Final[Mapping[str, Resource]] = {
    "deployment": DEPLOYMENTS,
    "validatingwebhookconfiguration": VALIDATING_WEBHOOKS,
    "mutatingwebhookconfiguration": MUTATING_WEBHOOKS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A Deployment or webhook configuration of the installation."""

    kind: str
    """One of `KINDS`."""
    name: str

    def __str__(self) -> str:
        return f"{KINDS[self.kind].kind} {self.name}"


class ComponentHealth:
    """Components of one installation."""

    def __init__(self, client: Client, namespace: str, version: str, components: tuple[Component, ...]) -> None:
        self._client = client
        self._namespace = namespace
        self._version = version
        self._components = components

    @property
    def pause(self) -> float | None:
        """Seconds until the components are due to be checked again; None if there are none."""
        return CHECK_INTERVAL if self._components else None

    async def check(self) -> Installed:
        """Check the components and return what is missing; one that may not be read counts as healthy.

        Raises:
            CdiError: Any error of the client other than a forbidden read.

        """
        missing: list[str] = []
        for part in self._components:
            with contextlib.suppress(ClusterForbidden):
                missing += await self._look(part)
        return Installed(version=self._version, missing=tuple(missing))

    async def _look(self, part: Component) -> list[str]:
        resource = KINDS[part.kind]
        try:
            body = await self._client.get(resource, self._namespace if resource.namespaced else None, part.name)
        except NotFound:
            return [f"{part} does not exist"]
        if resource == DEPLOYMENTS:
            ready = (body.get("status") or {}).get("availableReplicas") or 0
            return [] if ready else [f"{part} has no pod that is ready"]
        return [] if all(_is_trusted(one) for one in body.get("webhooks") or ()) else [f"{part} has no CA bundle yet"]


def _is_trusted(webhook: Mapping[str, Any]) -> bool:
    client: Object = webhook.get("clientConfig") or {}
    return bool(client.get("caBundle"))
