"""Static volumes: PersistentVolumes with content, created for a DataVolume's PVC, for example by a restored backup.

With ``storage.checkStaticVolume`` such volumes are looked up before anything is imported. The PVC is then created
without a source, and Kubernetes binds it to one of them. Their names are kept in an annotation of the PVC, because
Kubernetes may bind it to another volume instead, which is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cdi.api.json_document import parse_json
from cdi.api.names import ANN_CHECK_STATIC_VOLUME, ANN_PERSISTENT_VOLUMES, ANN_POPULATED_FOR, ANN_USE_POPULATOR
from cdi.api.phases import Reason
from cdi.api.quantity import Quantity
from cdi.reconcile.actions import DeleteObject
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.populate import already_populated, mark_prepopulated
from cdi.reconcile.datavolume.result import Result, pending
from cdi.reconcile.types import PVC, Pending, Volume

_FREE = ("", "Pending", "Available")
"""Phases of a volume that has no claim yet.

A new volume is Pending until Kubernetes has processed it; Kubernetes then binds it to the claim that it names, whatever
source that claim has.
"""


def build_static_claim(context: ReconcileContext, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the PVC `body` for binding to a static volume; None if there is none or the check is not requested."""
    dv = context.datavolume
    if not context.platform.cluster or ANN_CHECK_STATIC_VOLUME not in (dv.metadata.annotations or {}):
        return None
    spec, metadata = body["spec"], body["metadata"]
    known = context.objects.volumes_for(metadata["namespace"], metadata["name"])
    names = sorted(volume.name for volume in known if _satisfies(volume, spec))
    if not names:
        return None
    annotations = {**metadata["annotations"], ANN_PERSISTENT_VOLUMES: json.dumps(names), ANN_USE_POPULATOR: "false"}
    return {
        **body,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {name: part for name, part in spec.items() if name not in ("dataSource", "dataSourceRef")},
    }


def check_static_binding(context: ReconcileContext, claim: PVC) -> Result | None:
    """Return the result for a PVC that is to be bound to a static volume; None for any other."""
    text = claim.annotations.get(ANN_PERSISTENT_VOLUMES)
    if text is None or not context.platform.cluster:
        return None
    names = _names(text)
    if claim.phase != "Bound":
        message = claim.provisioning_message or f"waiting to be bound to an existing volume: {', '.join(names)}"
        return pending(claim, Pending(reason=Reason.PENDING, message=message))
    if claim.volume_name in names:
        marks = {ANN_POPULATED_FOR: context.datavolume.metadata.name, ANN_PERSISTENT_VOLUMES: None}
        found = already_populated(context, claim)
        return replace(found, annotations=marks, actions=mark_prepopulated(context.datavolume, claim))
    message = f"PVC {claim.name} was bound to volume {claim.volume_name}, not to {' or '.join(names)}; recreating it"
    again = DeleteObject.of_claim(claim)
    return replace(pending(claim, Pending(reason=Reason.PENDING, message=message)), actions=(again,))


def _satisfies(volume: Volume, spec: Mapping[str, Any]) -> bool:
    """Return whether Kubernetes would bind a PVC of this spec to a volume that is reserved for it."""
    asked = Quantity.parse(str(spec["resources"]["requests"]["storage"])).bytes
    return (
        volume.phase in _FREE
        and not volume.claim_uid
        and not volume.deleting
        and volume.capacity is not None
        and volume.capacity >= asked
        and volume.storage_class == (spec.get("storageClassName") or "")
        and volume.volume_mode == (spec.get("volumeMode") or "Filesystem")
        and set(spec.get("accessModes") or ()) <= set(volume.access_modes)
    )


def _names(text: str) -> list[str]:
    """Parse the annotation; an invalid one gives an empty list."""
    try:
        found = parse_json(text)
    except ValueError:
        return []
    return [str(one) for one in found] if isinstance(found, list) else []
