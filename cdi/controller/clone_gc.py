"""Garbage collection of temporary objects of clones that have no owner (`cdi.reconcile.clone.gc`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cdi.api.kinds import CLAIMS, PODS, VOLUME_SNAPSHOTS, Object
from cdi.controller import clone_handlers
from cdi.controller.clone_lister import InformerCloneLister
from cdi.controller.informers import InformerSet
from cdi.controller.lister import ClusterLister
from cdi.controller.request import Request, Scope
from cdi.reconcile.actions import Plan
from cdi.reconcile.clone.gc import (
    reconcile_claim,
    reconcile_measurement,
    reconcile_reader,
    reconcile_snapshot,
)
from cdi.reconcile.clone.plan_annotation import ANN_TARGET, LABEL_TEMPORARY

_GRACE: Final = 2.0
"""Seconds between the end of a snapshot's last user and its deletion.

The snapshot controller keeps a snapshot from which a pending PVC is created, and retries only a quarter of an hour
later. It may see the end of that PVC later than the snapshot's deletion, so the deletion is delayed.
"""


class CloneGarbageCollector:
    """Reconciler of temporary objects."""

    def __init__(
        self,
        watches: InformerSet,
        observed: ClusterLister,
        clones: InformerCloneLister,
        *,
        scope: Scope,
        now: Callable[[], float],
    ) -> None:
        self._watches = watches
        self._observed = observed
        self._clones = clones
        self._scope = scope
        self._now = now
        self._unneeded: dict[Request, float] = {}
        """Since when each snapshot has not been needed, in seconds since the epoch."""

    def plan(self, key: Request) -> Plan | None:
        """Return the plan for a temporary object; None if it does not exist or belongs to another installation."""
        match key.kind:
            case "snapshot":
                return self._snapshot(key)
            case "reader":
                return self._reader(key)
            case _:
                return self._claim(key)

    def _is_ours(self, body: Object | None) -> bool:
        """Return whether an object has the label of temporary objects and a target that this installation handles."""
        if body is None:
            return False
        metadata = body["metadata"]
        target = (metadata.get("annotations") or {}).get(ANN_TARGET) or ""
        marked = (metadata.get("labels") or {}).get(LABEL_TEMPORARY) == "true"
        return marked and self._scope.includes_namespace(target.partition("/")[0]) and self._scope.matches(body)

    def _claim(self, key: Request) -> Plan | None:
        claim = self._observed.claim(key.namespace, key.name)
        if claim is None or not self._is_ours(self._watches.get(CLAIMS, key.namespace, key.name)):
            return None
        return reconcile_claim(claim, self._observed, self._clones.targets())

    def _reader(self, key: Request) -> Plan | None:
        body = self._watches.get(PODS, key.namespace, key.name)
        reader = self._clones.source_pod(key.namespace, key.name)
        if body is None or reader is None or not self._is_ours(body):
            return None
        namespace, _, name = body["metadata"]["annotations"][ANN_TARGET].partition("/")
        measurement = (
            self._clones.size_detection_pod(key.namespace, key.name)
            if clone_handlers.is_size_detection_pod(body)
            else None
        )
        if measurement is not None:
            dv = self._observed.data_volume(namespace, name)
            return reconcile_measurement(key.namespace, key.name, measurement, dv)
        return reconcile_reader(key.namespace, key.name, reader, self._observed, self._scope.includes_namespace)

    def _snapshot(self, key: Request) -> Plan | None:
        snapshot = self._clones.snapshot(key.namespace, key.name)
        ours = self._is_ours(self._watches.get(VOLUME_SNAPSHOTS, key.namespace, key.name))
        plan = reconcile_snapshot(snapshot, self._clones.targets()) if snapshot is not None and ours else None
        if plan is None or not plan.actions:
            self._unneeded.pop(key, None)
            return plan
        now = self._now()
        left = self._unneeded.setdefault(key, now) + _GRACE - now
        return plan if left <= 0 else Plan(requeue_after=min(left, _GRACE))
