"""Read-only view of ObjectTransfers in the watch caches, and their event handlers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cdi.api.phases import TransferPhase
from cdi.controller.informers import require_valid
from cdi.controller.request import Request, datavolume
from cdi.kube.resources import CLAIMS, DATA_VOLUMES, OBJECT_TRANSFERS, PODS, Object
from cdi.reconcile.objecttransfer.record import lock_finalizer

if TYPE_CHECKING:
    from cdi.controller.lister import Cache, PodUsageSource
    from cdi.kube.reflector import WatchEvent

_ENDED = (TransferPhase.COMPLETE, TransferPhase.ERROR)
_POD_ENDED = ("Succeeded", "Failed")
Place = tuple[str, str]
"""Namespace and name of a source or target."""


class TransferLister:
    """Implementation of `cdi.reconcile.objecttransfer.context.TransferFacts` on the watch caches."""

    def __init__(self, watches: Cache, users: PodUsageSource) -> None:
        self._watches = watches
        self._users = users

    def claim_body(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        return self._watches.get(CLAIMS, namespace, name)

    def data_volume_body(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        body = self._watches.get(DATA_VOLUMES, namespace, name)
        return None if body is None else require_valid(body)

    def pods_using(self, namespace: str, claim: str) -> tuple[str, ...]:
        ours = (pod["metadata"]["name"] for pod in self._watches.values(PODS) if _holds(pod, namespace, claim))
        return tuple(sorted({*self._users.pods_using(namespace, claim), *ours}))

    def unfinished(self, uid: str) -> str:
        found = (body for body in self._watches.values(OBJECT_TRANSFERS) if body["metadata"]["uid"] == uid)
        return next((str(body["metadata"]["name"]) for body in found if not _has_ended(body)), "")


def transfer(body: Object) -> Request:
    """Return the key of an ObjectTransfer."""
    return Request(kind="transfer", name=body["metadata"]["name"])


def endpoints(body: Object) -> tuple[Place, Place]:
    """Return the source and the target of an ObjectTransfer; the target's fields default to those of the source.

    An object that was stored before the CRD's rules applied may lack either; its fields are empty then.
    """
    spec = body.get("spec") or {}
    source, target = spec.get("source") or {}, spec.get("target") or {}
    begin = str(source.get("namespace") or ""), str(source.get("name") or "")
    return begin, (str(target.get("namespace") or begin[0]), str(target.get("name") or begin[1]))


def locks_of_others(claim: Object, transfers: Iterable[Object]) -> tuple[str, ...]:
    """Return the finalizers of transfers on a PVC that belong to none of these transfers."""
    known = {lock_finalizer(str(body["metadata"]["uid"])) for body in transfers}
    held = claim["metadata"].get("finalizers") or ()
    return tuple(one for one in held if one.startswith(lock_finalizer("")) and one not in known)


def all_requests(caches: Cache) -> Iterator[Request]:
    """Yield the keys of all ObjectTransfers, including ended ones, which may still hold finalizers."""
    return map(transfer, caches.values(OBJECT_TRANSFERS))


def requests_for_transfer(change: WatchEvent, caches: Cache) -> Iterator[Request]:
    """Yield the key of a changed transfer, and others that depend on it.

    If it has ended, those are the transfers with the same source or target; if it was deleted, also the volumes there,
    which may have its finalizer.
    """
    yield transfer(change.object)
    if change.new is None or _has_ended(change.new):
        for place in endpoints(change.object):
            yield from requests_touching(caches, place)
            if change.new is None and all(place):
                yield datavolume(*place)


def requests_for_volume(change: WatchEvent, caches: Cache) -> Iterator[Request]:
    """Yield the unfinished transfers of a PersistentVolume.

    Those are transfers of its PVCs before and after the change, and those that have recorded its name.
    """
    refs = (((state or {}).get("spec") or {}).get("claimRef") or {} for state in (change.old, change.new))
    at = {(ref.get("namespace") or "", ref.get("name") or "") for ref in refs}
    name = change.object["metadata"]["name"]
    for body in _unfinished(caches):
        data = (body.get("status") or {}).get("data") or {}
        if data.get("pvName") == name or not at.isdisjoint(endpoints(body)):
            yield transfer(body)


def requests_for_pod(pod: Object, caches: Cache) -> Iterator[Request]:
    """Yield the transfers of the PVCs that a pod uses."""
    namespace = pod["metadata"]["namespace"]
    yield from requests_touching(caches, *((namespace, claim) for claim in _claims(pod)))


def requests_touching(caches: Cache, *at: Place) -> Iterator[Request]:
    """Yield the unfinished transfers whose source or target is one of these."""
    if at:
        yield from (transfer(body) for body in _unfinished(caches) if not set(at).isdisjoint(endpoints(body)))


def _unfinished(caches: Cache) -> Iterable[Object]:
    return (body for body in caches.values(OBJECT_TRANSFERS) if not _has_ended(body))


def _has_ended(body: Object) -> bool:
    return (body.get("status") or {}).get("phase") in _ENDED


def _holds(pod: Object, namespace: str, claim: str) -> bool:
    ended = (pod.get("status") or {}).get("phase") in _POD_ENDED
    return not ended and pod["metadata"]["namespace"] == namespace and claim in _claims(pod)


def _claims(pod: Object) -> Iterator[str]:
    for each in (pod.get("spec") or {}).get("volumes") or ():
        name = (each.get("persistentVolumeClaim") or {}).get("claimName")
        if name:
            yield str(name)
