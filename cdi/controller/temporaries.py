"""Garbage collection of temporary objects of clones that have no owner (`cdi.reconcile.clone.temporaries`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cdi.controller import cloning
from cdi.controller.clones import ObservedClones
from cdi.controller.keys import Key, Scope
from cdi.controller.observe import Observed
from cdi.controller.watches import Watches
from cdi.kube.resources import CLAIMS, PODS, VOLUME_SNAPSHOTS, Object
from cdi.reconcile.actions import Plan
from cdi.reconcile.clone.record import ANN_TARGET, LABEL_TEMPORARY
from cdi.reconcile.clone.temporaries import (
    reconcile_claim,
    reconcile_measurement,
    reconcile_reader,
    reconcile_snapshot,
)

_GRACE: Final = 2.0
"""Seconds between the end of a snapshot's last user and its deletion.

The snapshot controller keeps a snapshot from which a pending PVC is created, and retries only a quarter of an hour
later. It may see the end of that PVC later than the snapshot's deletion, so the deletion is delayed.
"""


class Temporaries:
    """Reconciler of temporary objects."""

    def __init__(
        self,
        watches: Watches,
        observed: Observed,
        clones: ObservedClones,
        *,
        scope: Scope,
        now: Callable[[], float],
    ) -> None:
        self._watches = watches
        self._observed = observed
        self._clones = clones
        self._scope = scope
        self._now = now
        self._unneeded: dict[Key, float] = {}
        """Since when each snapshot has not been needed, in seconds since the epoch."""

    def plan(self, key: Key) -> Plan | None:
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
        return marked and self._scope.covers(target.partition("/")[0]) and self._scope.selects(body)

    def _claim(self, key: Key) -> Plan | None:
        claim = self._observed.claim(key.namespace, key.name)
        if claim is None or not self._is_ours(self._watches.get(CLAIMS, key.namespace, key.name)):
            return None
        return reconcile_claim(claim, self._observed, self._clones.targets())

    def _reader(self, key: Key) -> Plan | None:
        body = self._watches.get(PODS, key.namespace, key.name)
        reader = self._clones.reader(key.namespace, key.name)
        if body is None or reader is None or not self._is_ours(body):
            return None
        namespace, _, name = body["metadata"]["annotations"][ANN_TARGET].partition("/")
        measurement = self._clones.measurement(key.namespace, key.name) if cloning.measures(body) else None
        if measurement is not None:
            dv = self._observed.data_volume(namespace, name)
            return reconcile_measurement(key.namespace, key.name, measurement, dv)
        return reconcile_reader(key.namespace, key.name, reader, self._observed, self._scope.covers)

    def _snapshot(self, key: Key) -> Plan | None:
        snapshot = self._clones.snapshot(key.namespace, key.name)
        ours = self._is_ours(self._watches.get(VOLUME_SNAPSHOTS, key.namespace, key.name))
        plan = reconcile_snapshot(snapshot, self._clones.targets()) if snapshot is not None and ours else None
        if plan is None or not plan.actions:
            self._unneeded.pop(key, None)
            return plan
        now = self._now()
        left = self._unneeded.setdefault(key, now) + _GRACE - now
        return plan if left <= 0 else Plan(requeue_after=min(left, _GRACE))
