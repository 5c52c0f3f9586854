"""Reconciler of DataSources: resolved source and readiness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdi.api.datasource import DataSource
from cdi.api.names import propagates
from cdi.api.phases import ConditionType, Phase, Reason
from cdi.api.sources import SourcePvc, SourceSnapshot
from cdi.reconcile.actions import PatchObject, Plan
from cdi.reconcile.clone.lister import CloneLister
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.context import Lister
from cdi.reconcile.datavolume.status import ConditionValue, conditions, false, true
from cdi.reconcile.settings import Platform
from cdi.reconcile.source import UnresolvedDataSource, resolve_data_source
from cdi.reconcile.types import PVC


def reconcile_data_source(
    data_source: DataSource, objects: Lister, platform: Platform, now: float, clones: CloneLister | None = None
) -> Plan:
    """Return ``status.source``, the Ready condition, and the labels by which instance types are chosen."""
    metadata = data_source.metadata
    if metadata.deletion_timestamp is not None:
        return Plan()
    end = resolve_data_source(data_source, objects)
    status: dict[str, Any] = {}
    carried: Mapping[str, str] = {}
    if isinstance(end, UnresolvedDataSource):
        ready = false(end.reason, end.message)
    elif isinstance(end, SourcePvc):
        status["source"] = {"pvc": end.to_dict()}
        claim = objects.claim(end.namespace, end.name)
        ready = _claim_ready(end, claim, objects)
        carried = claim.labels if claim is not None else {}
    else:
        status["source"] = {"snapshot": end.to_dict()}
        snapshot = clones.snapshot(end.namespace, end.name) if clones is not None else None
        ready = _snapshot_ready(end, snapshot, platform)
        carried = snapshot.labels if snapshot is not None else {}
    old = (data_source.status.conditions if data_source.status else None) or []
    status["conditions"] = conditions(old, {ConditionType.READY: ready}, now)
    before = data_source.status.to_dict() if data_source.status is not None else None
    labels = {
        name: text for name, text in carried.items() if propagates(name) and (metadata.labels or {}).get(name) is None
    }
    patch = PatchObject(
        plural="datasources",
        namespace=metadata.namespace or "",
        name=metadata.name or "",
        uid=metadata.uid or "",
        labels=labels,
    )
    return Plan(actions=(patch,) if labels else (), status=None if status == before else status)


def _snapshot_ready(source: SourceSnapshot, snapshot: Snapshot | None, platform: Platform) -> ConditionValue:
    place = f"VolumeSnapshot {source.namespace}/{source.name}"
    if not platform.cluster:
        return false(Reason.SNAPSHOT_NOT_READY, "there are no volume snapshots outside of a cluster")
    if snapshot is None:
        return false(Reason.NOT_FOUND, f"{place} not found")
    if not snapshot.ready:
        return false(
            Reason.SNAPSHOT_NOT_READY, f"{place} is not ready{f': {snapshot.error}' if snapshot.error else ''}"
        )
    return true(Reason.READY, "DataSource is ready to be consumed")


def _claim_ready(source: SourcePvc, claim: PVC | None, objects: Lister) -> ConditionValue:
    owner = objects.data_volume(source.namespace, source.name)
    phase = (owner.status.phase if owner is not None and owner.status is not None else None) or "Pending"
    if owner is not None and phase != Phase.SUCCEEDED:
        return false(phase, f"Import DataVolume phase {phase}")
    if claim is None:
        return false(Reason.NOT_FOUND, f"PVC {source.namespace}/{source.name} not found")
    return true(Reason.READY, "DataSource is ready to be consumed")
