"""What a DataSource stands for, and whether that can be used."""

from __future__ import annotations

from typing import Any

from cdi.api.datasource import DataSource
from cdi.api.names import propagates
from cdi.api.phases import ConditionType, Phase, Reason
from cdi.api.sources import SourcePvc
from cdi.reconcile.actions import PatchObject, Plan
from cdi.reconcile.origin import Broken, follow
from cdi.reconcile.status import Aspect, conditions, no, yes
from cdi.reconcile.world import Claim, Objects, Platform


def reconcile_data_source(data_source: DataSource, objects: Objects, platform: Platform, now: float) -> Plan:
    """``status.source``, the Ready condition, and labels that instance types are chosen by."""
    metadata = data_source.metadata
    if metadata.deletion_timestamp is not None:
        return Plan()
    end = follow(data_source, objects)
    status: dict[str, Any] = {}
    claim: Claim | None = None
    if isinstance(end, Broken):
        ready = no(end.reason, end.message)
    elif isinstance(end, SourcePvc):
        status["source"] = {"pvc": end.to_dict()}
        claim = objects.claim(end.namespace, end.name)
        ready = _claim_ready(end, claim, objects)
    else:
        status["source"] = {"snapshot": end.to_dict()}
        message = "" if platform.snapshots else "there are no volume snapshots outside of a cluster"
        ready = no(Reason.SNAPSHOT_NOT_READY, message)
    old = (data_source.status.conditions if data_source.status else None) or []
    status["conditions"] = conditions(old, {ConditionType.READY: ready}, now)
    before = data_source.status.to_dict() if data_source.status is not None else None
    labels = {
        name: text
        for name, text in (claim.labels if claim is not None else {}).items()
        if propagates(name) and (metadata.labels or {}).get(name) is None
    }
    patch = PatchObject(
        plural="datasources",
        namespace=metadata.namespace or "",
        name=metadata.name or "",
        uid=metadata.uid or "",
        labels=labels,
    )
    return Plan(actions=(patch,) if labels else (), status=None if status == before else status)


def _claim_ready(source: SourcePvc, claim: Claim | None, objects: Objects) -> Aspect:
    owner = objects.data_volume(source.namespace, source.name)
    phase = (owner.status.phase if owner is not None and owner.status is not None else None) or "Pending"
    if owner is not None and phase != Phase.SUCCEEDED:
        return no(phase, f"Import DataVolume phase {phase}")
    if claim is None:
        return no(Reason.NOT_FOUND, f"PVC {source.namespace}/{source.name} not found")
    return yes(Reason.READY, "DataSource is ready to be consumed")
