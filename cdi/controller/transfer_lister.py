"""Read-only view of ObjectTransfers in the watch caches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cdi.api.kinds import CLAIMS, DATA_VOLUMES, OBJECT_TRANSFERS, PODS, Object
from cdi.api.phases import TERMINAL_PHASES, TransferPhase
from cdi.controller.informers import require_valid
from cdi.controller.lister import Cache, PodUsageSource
from cdi.reconcile.objecttransfer.record import lock_finalizer

_ENDED = (TransferPhase.COMPLETE, TransferPhase.ERROR)
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
        return next((str(body["metadata"]["name"]) for body in found if not has_ended(body)), "")


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


def unfinished_transfers(caches: Cache) -> Iterable[Object]:
    """Return the transfers that have not ended."""
    return (body for body in caches.values(OBJECT_TRANSFERS) if not has_ended(body))


def has_ended(body: Object) -> bool:
    """Return whether a transfer has ended, successfully or not."""
    return (body.get("status") or {}).get("phase") in _ENDED


def _holds(pod: Object, namespace: str, claim: str) -> bool:
    ended = (pod.get("status") or {}).get("phase") in TERMINAL_PHASES
    return not ended and pod["metadata"]["namespace"] == namespace and claim in claims_of_pod(pod)


def claims_of_pod(pod: Object) -> Iterator[str]:
    """Yield the names of the PVCs that a pod mounts."""
    for each in (pod.get("spec") or {}).get("volumes") or ():
        name = (each.get("persistentVolumeClaim") or {}).get("claimName")
        if name:
            yield str(name)
