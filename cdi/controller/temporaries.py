"""What becomes of what clones made for themselves and nothing owns (`cdi.reconcile.clone.temporaries`)."""

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
"""Seconds.  Whoever deletes snapshots for Kubernetes leaves one alone that a pending claim is made of, and looks again
a quarter of an hour later.  It may hear of that claim's end later than of the snapshot's, so it is given time."""


class Temporaries:
    """Of one controller."""

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
        """Since when; a snapshot."""

    def plan(self, key: Key) -> Plan | None:
        """None where it is none of ours, or is not there."""
        match key.kind:
            case "snapshot":
                return self._snapshot(key)
            case "reader":
                return self._reader(key)
            case _:
                return self._claim(key)

    def _is_ours(self, body: Object | None) -> bool:
        """Marked as such, and made for a target that is ours."""
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
