"""Parts of event handlers that several reconcilers share, and the handler of PVCs that pods no longer use."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.annotation_types import annotations_of
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, Object, Resource
from cdi.api.names import ANN_POD_PHASE, ANN_SOURCE, ANN_UPLOAD_TARGET, GROUP
from cdi.api.phases import TERMINAL_PHASES
from cdi.controller.informers import InformerSet
from cdi.controller.lister import Cache
from cdi.controller.reconcilers.base import Handler
from cdi.controller.reconcilers.clone_events import target_of_temporary
from cdi.controller.request import Request, datavolume
from cdi.controller.transfer_lister import Place, endpoints, unfinished_transfers
from cdi.kube.reflector import WatchEvent

_MAX_OWNERS = 3
"""Length of the chain of owners that is followed: a pod belongs to a prime PVC, which belongs to its target."""


def itself(kind: str) -> Handler:
    """Return a handler that returns the request of a kind for the changed object."""

    def handler(change: WatchEvent, _: InformerSet) -> tuple[Request]:
        return (request_for(kind, change.object),)

    return handler


def all_of(kind: str, resource: Resource) -> Handler:
    """Return a handler that yields the requests of a kind for all objects of a resource."""

    def handler(_: WatchEvent, caches: InformerSet) -> Iterator[Request]:
        return requests_for_all(kind, resource, caches)

    return handler


def requests_for_all(kind: str, resource: Resource, caches: InformerSet) -> Iterator[Request]:
    """Yield the requests of a kind for all objects of a resource."""
    return (request_for(kind, body) for body in caches.values(resource))


def request_for(kind: str, body: Object) -> Request:
    """Return the request of a kind for an object."""
    metadata = body["metadata"]
    return Request(kind=kind, namespace=metadata.get("namespace") or "", name=metadata["name"])


def requests_for_released_pvc(namespace: str, claim: str, caches: InformerSet) -> Iterator[Request]:
    """Yield what may wait for a PVC that a pod no longer uses: its volume, its clones and its transfers."""
    yield datavolume(namespace, claim)
    yield from caches.waiting.clones_of(namespace, claim)
    yield from transfers_touching(caches, (namespace, claim))


# --- volumes ----------------------------------------------------------------------------------------------------


def unfinished_volumes(caches: InformerSet) -> Iterator[Request]:
    """Yield the volumes that are not in a final phase."""
    for body in caches.values(DATA_VOLUMES):
        if (body.get("status") or {}).get("phase") not in TERMINAL_PHASES:
            yield datavolume(body["metadata"]["namespace"], body["metadata"]["name"])
    for body in caches.values(CLAIMS):
        annotations = annotations_of(body)
        ref = (body.get("spec") or {}).get("dataSourceRef") or {}
        ours = ANN_SOURCE in annotations or ANN_UPLOAD_TARGET in annotations or ref.get("apiGroup") == GROUP
        if ours and annotations.get(ANN_POD_PHASE) != "Succeeded":
            yield from pvc_and_targets(body, caches)


def pvc_and_targets(claim: Object, caches: InformerSet, depth: int = 0) -> Iterator[Request]:
    """Yield the volume of a PVC and those of the PVCs that it is filled for."""
    yield datavolume(claim["metadata"]["namespace"], claim["metadata"]["name"])
    yield from target_of_temporary(claim)
    if depth < _MAX_OWNERS:
        yield from owners_of(claim, caches, depth + 1)


def owners_of(body: Object, caches: InformerSet, depth: int = 0) -> Iterator[Request]:
    """Yield the volume that a pod, PVC or volume source exists for, and the PVCs in between, by owner references."""
    namespace = body["metadata"].get("namespace") or ""
    for owner in body["metadata"].get("ownerReferences") or ():
        name = owner.get("name") or ""
        if owner.get("kind") == DATA_VOLUMES.kind:
            yield datavolume(namespace, name)
        elif owner.get("kind") == CLAIMS.kind:
            yield from claim_named(namespace, name, caches, depth)


def claim_named(namespace: str, name: str, caches: InformerSet, depth: int = 0) -> Iterator[Request]:
    """Yield the volume of the PVC with a name, which need not exist, and those of the PVCs that it is filled for."""
    if not namespace or not name:
        return
    claim = caches.get(CLAIMS, namespace, name)
    if claim is None:
        yield datavolume(namespace, name)
    else:
        yield from pvc_and_targets(claim, caches, depth)


# --- ObjectTransfers --------------------------------------------------------------------------------------------


def transfers_touching(caches: Cache, *places: Place) -> Iterator[Request]:
    """Yield the unfinished transfers whose source or target is one of these."""
    if places:
        for body in unfinished_transfers(caches):
            if not set(places).isdisjoint(endpoints(body)):
                yield Request(kind="transfer", name=body["metadata"]["name"])


# --- facts that other objects depend on -------------------------------------------------------------------------


def volume_facts(body: Object | None) -> object:
    """Return the fields of a DataVolume or PVC that other objects depend on; progress is not among them."""
    if body is None:
        return None
    metadata = body["metadata"]
    phase = (body.get("status") or {}).get("phase")
    return metadata["uid"], phase, "deletionTimestamp" in metadata, metadata.get("labels")


def readiness(body: Object | None) -> object:
    """Return the conditions of a node; none if it does not exist."""
    conditions = ((body or {}).get("status") or {}).get("conditions") or []
    return [one.get("status") for one in conditions]
