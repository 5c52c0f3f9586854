"""Reconciler of ObjectTransfers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from cdi.api.kinds import CLAIMS, DATA_VOLUMES, OBJECT_TRANSFERS, PODS, VOLUMES
from cdi.api.transfer import ObjectTransfer
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers.base import KindReconciler, Watch
from cdi.controller.reconcilers.event_handlers import itself, requests_for_all, transfers_touching
from cdi.controller.request import Request
from cdi.controller.result import Result
from cdi.controller.transfer_lister import claims_of_pod, endpoints, has_ended, unfinished_transfers
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.objecttransfer.context import TransferWorld
from cdi.reconcile.objecttransfer.reconcile import reconcile_transfer


class ObjectTransferReconciler(KindReconciler):
    """Reconciler of ObjectTransfers."""

    name: ClassVar = "transfer"
    resource: ClassVar = OBJECT_TRANSFERS

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        return (
            Watch(resource=OBJECT_TRANSFERS, handler=itself(ObjectTransferReconciler.name)),
            Watch(resource=OBJECT_TRANSFERS, handler=_waiting, predicate=_has_just_ended),
            Watch(resource=DATA_VOLUMES, handler=_at_volume),
            Watch(resource=CLAIMS, handler=_at_volume),
            Watch(resource=PODS, handler=_of_pod),
            Watch(resource=VOLUMES, handler=_of_persistent_volume),
        )

    @staticmethod
    def initial(caches: InformerSet) -> Iterator[Request]:
        """Yield all transfers, including ended ones, which may still hold finalizers."""
        return requests_for_all(ObjectTransferReconciler.name, OBJECT_TRANSFERS, caches)

    async def reconcile(self, request: Request) -> Result:
        """Reconcile an ObjectTransfer if this installation handles both its namespaces."""
        body = self.get_object(request)
        model = self._d.lister.model(OBJECT_TRANSFERS, "", request.name, ObjectTransfer)
        if body is None or model is None or not self._d.scope.matches(body):
            return Result()
        if not all(self._d.scope.includes_namespace(namespace) for namespace, _ in endpoints(body)):
            return Result()
        context = TransferWorld(now=self._d.now(), transfer=model, objects=self._d.lister, facts=self._d.transfers)
        plan = reconcile_transfer(context)
        rejection = await self._d.apply(request, plan, body)
        if rejection is None:
            return Result(requeue_after=plan.requeue_after)
        fallback_plan = reconcile_transfer(replace(context, now=self._d.now(), refusal=rejection))
        # Actions before the rejected one may have changed its version.
        await self._d.apply(request, fallback_plan, self.get_object(request) or body)
        return Result(requeue_after=fallback_plan.requeue_after)


# --- event handlers ---------------------------------------------------------------------------------------------


def _has_just_ended(change: WatchEvent) -> bool:
    return change.new is None or has_ended(change.new)


def _waiting(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the transfers with the same source or target as one that has ended."""
    return transfers_touching(caches, *endpoints(change.object))


def _at_volume(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    metadata = change.object["metadata"]
    return transfers_touching(caches, (metadata["namespace"], metadata["name"]))


def _of_pod(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the transfers of the PVCs that a pod uses."""
    namespace = change.object["metadata"]["namespace"]
    return transfers_touching(caches, *((namespace, claim) for claim in claims_of_pod(change.object)))


def _of_persistent_volume(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the unfinished transfers of a PersistentVolume.

    Those are transfers of its PVCs before and after the change, and those that have recorded its name.
    """
    refs = (((state or {}).get("spec") or {}).get("claimRef") or {} for state in (change.old, change.new))
    places = {(ref.get("namespace") or "", ref.get("name") or "") for ref in refs}
    name = change.object["metadata"]["name"]
    for body in unfinished_transfers(caches):
        data = (body.get("status") or {}).get("data") or {}
        if data.get("pvName") == name or not places.isdisjoint(endpoints(body)):
            yield Request(kind=ObjectTransferReconciler.name, name=body["metadata"]["name"])
