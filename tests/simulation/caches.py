"""Invariants of what a controller knows: its watch caches, and the results of its own writes."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.kinds import DATA_VOLUMES
from cdi.controller.informers import InformerSet
from tests.simulation.api_server import ApiServer, Request, Stored, selector


class CacheInvariants:
    """The invariants of caches, each a method whose docstring is its sentence."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._written: dict[tuple[str, str, str], int] = {}
        """Versions of the DataVolumes whose status controllers have written, by controller, namespace and name."""

    def record(self, request: Request, stored: Stored) -> None:
        """Record the answer to a request, as a listener of the API server."""
        if _is_status(request):
            self._written[request.client, request.namespace, request.name] = stored.version

    def own_writes_are_known(self, request: Request) -> Iterator[str]:
        """No status of a DataVolume is based on a version older than the one that the controller has written itself.

        Other objects are written by several reconcilers at once, which may conflict.
        """
        if not _is_status(request):
            return
        stated = request.body["metadata"].get("resourceVersion")
        known = self._written.get((request.client, request.namespace, request.name))
        if stated is not None and known is not None and int(stated) < known:
            yield f"{request} is based on version {stated}, but {request.client} has written version {known}"

    def caches_match_the_server(self, name: str, caches: InformerSet) -> Iterator[str]:
        """The caches of a controller hold exactly the objects of the API server once the cluster is quiet."""
        for resource, reflectors in caches._reflectors.items():
            for namespace, reflector in reflectors.items():
                selects = selector({"labelSelector": reflector._labels, "fieldSelector": reflector._fields})
                stored = {
                    (
                        body["metadata"].get("namespace") or "",
                        body["metadata"]["name"],
                        body["metadata"]["resourceVersion"],
                    )
                    for body in self._server.all(resource)
                    if namespace in (None, body["metadata"].get("namespace")) and selects(body)
                }
                cached = {
                    (place[0], place[1], body["metadata"]["resourceVersion"])
                    for place, body in reflector.cache._objects.items()
                }
                for place in sorted(cached - stored):
                    yield f"{name} caches version {place[2]} of {resource.plural} {'/'.join(place[:2]).strip('/')}"
                for place in sorted(stored - cached):
                    yield f"{name} does not cache version {place[2]} of {resource.plural} {'/'.join(place[:2]).strip('/')}"


def _is_status(request: Request) -> bool:
    return request.verb == "patch" and request.resource == DATA_VOLUMES and request.subresource == "status"
