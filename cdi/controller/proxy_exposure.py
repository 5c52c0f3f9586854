"""Watch of the Ingresses and Routes that lead to the upload proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Never

from cdi.api.kinds import INGRESSES, ROUTES, Object
from cdi.kube.reflector import Reflector, WatchEvent

if TYPE_CHECKING:
    from cdi.kube.client import Client

_RESOURCES: Final = (INGRESSES, ROUTES)
"""In order of precedence; Routes exist in OpenShift only."""


class ProxyExposure:
    """Watch of the host under which the upload proxy is reached from outside the cluster."""

    def __init__(self, client: Client, namespace: str, service: str, *, changed: Callable[[], None]) -> None:
        """Prepare the watch.

        Args:
            client: Client of the API server.
            namespace: Namespace of the installation.
            service: Name of the proxy's Service.
            changed: Called when the result of `host` may have changed.

        """
        self._service = service
        self._changed = changed
        self._settled = False
        self._reflectors = {
            resource: Reflector(
                client, resource, namespace=namespace, on_change=self._notify, optional=True, sleep=self._sleep
            )
            for resource in _RESOURCES
        }

    async def run(self) -> Never:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors.values():
                group.create_task(reflector.run())
                group.create_task(self._announce(reflector))
        raise AssertionError("no reflector ends")

    def host(self) -> str | None:
        """Return the host; empty if there is none, None while it is not known.

        What may not be read counts as absent.
        """
        if any(not one.cache.synced.is_set() and one.failure is None for one in self._reflectors.values()):
            return None
        return next(self._hosts(), "")

    def _hosts(self) -> Iterator[str]:
        for resource, find in ((INGRESSES, ingress_host), (ROUTES, route_host)):
            for body in sorted(self._reflectors[resource].cache.values(), key=lambda one: str(one["metadata"]["name"])):
                host = find(body, self._service)
                if host:
                    yield host

    def _notify(self, _: WatchEvent) -> None:
        self._changed()

    async def _sleep(self, seconds: float) -> None:
        """Sleep after a failure, the first of which settles that a resource cannot be read."""
        if not self._settled and self.host() is not None:
            self._settled = True
            self._changed()
        await asyncio.sleep(seconds)

    async def _announce(self, reflector: Reflector) -> None:
        await reflector.cache.synced.wait()
        self._changed()


def ingress_host(body: Object, service: str) -> str:
    """Return the host of an Ingress whose default backend, or a path of whose rules, is the Service; else empty."""
    spec = body.get("spec") or {}
    rules = spec.get("rules") or ()
    if _backend(spec.get("defaultBackend")) == service:
        return next((str(rule["host"]) for rule in rules if rule.get("host")), "")
    for rule in rules:
        paths = (rule.get("http") or {}).get("paths") or ()
        if rule.get("host") and any(_backend(path.get("backend")) == service for path in paths):
            return str(rule["host"])
    return ""


def route_host(body: Object, service: str) -> str:
    """Return the host of an admitted Route to the Service; else empty."""
    if ((body.get("spec") or {}).get("to") or {}).get("name") != service:
        return ""
    admitted = (body.get("status") or {}).get("ingress") or ()
    return str(admitted[0].get("host") or "") if admitted else ""


def _backend(backend: dict[str, Any] | None) -> str:
    return str(((backend or {}).get("service") or {}).get("name") or "")
