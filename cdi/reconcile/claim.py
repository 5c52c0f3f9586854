"""The PersistentVolumeClaim of a DataVolume."""

from __future__ import annotations

from typing import Any

from cdi.api.datavolume import ContentType, DataVolume
from cdi.api.names import (
    ANN_CLONE_REQUEST,
    ANN_CONTENT_TYPE,
    ANN_CREATED_BY_CONTROLLER,
    ANN_CREATED_FOR_DATA_VOLUME,
    ANN_POPULATED_FOR,
    ANN_PREALLOCATION_REQUESTED,
    ANN_UPLOAD_TARGET,
    COMMON_LABELS,
    GROUP,
    propagates,
)
from cdi.api.quantity import Quantity
from cdi.reconcile.job import content_type
from cdi.reconcile.origin import Clone, Origin, Upload
from cdi.reconcile.world import Claim, World

_NOT_INHERITED = "kubectl.kubernetes.io/last-applied-configuration"


def owner_reference(dv: DataVolume) -> dict[str, Any]:
    """The DataVolume as the claim's controller: the claim goes with it."""
    return {
        "apiVersion": dv.group_version,
        "kind": dv.kind_name(),
        "name": dv.metadata.name,
        "uid": dv.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def build_claim(world: World, origin: Origin, source: Claim | None) -> dict[str, Any]:
    """The claim's manifest: what the DataVolume says, completed from the storage profile and the clone's source."""
    dv = world.datavolume
    wanted = dv.spec.claim
    spec: dict[str, Any] = wanted.to_dict() if wanted is not None else {}
    profile = world.objects.profile(wanted.storage_class_name if wanted is not None else None)
    spec["accessModes"] = spec.get("accessModes") or list(profile.access_modes)
    if spec.get("volumeMode") not in ("Filesystem", "Block"):
        spec["volumeMode"] = profile.volume_mode
    if (wanted is None or wanted.size is None) and source is not None and source.capacity is not None:
        resources = dict(spec.get("resources") or {})
        resources["requests"] = {
            **(resources.get("requests") or {}),
            "storage": Quantity.of_bytes(source.capacity).text,
        }
        spec["resources"] = resources
    labels = {**(dv.metadata.labels or {}), **COMMON_LABELS}
    content = content_type(dv)
    annotations = {
        # Our own group's annotations on a DataVolume are requests; on a claim some of them are facts.
        name: text
        for name, text in (dv.metadata.annotations or {}).items()
        if name != _NOT_INHERITED and not name.startswith(f"{GROUP}/")
    }
    annotations |= {
        ANN_CONTENT_TYPE: content.value,
        ANN_CREATED_BY_CONTROLLER: "yes",
        ANN_CREATED_FOR_DATA_VOLUME: dv.metadata.uid or "",
    }
    preallocation = world.config.preallocation if dv.spec.preallocation is None else dv.spec.preallocation
    if preallocation:
        annotations[ANN_PREALLOCATION_REQUESTED] = "true"
    if isinstance(origin, Upload):
        annotations[ANN_UPLOAD_TARGET] = ""
    if isinstance(origin, Clone):
        annotations[ANN_CLONE_REQUEST] = f"{origin.namespace}/{origin.name}"
    if source is not None:
        labels |= {name: text for name, text in source.labels.items() if propagates(name) and name not in labels}
        annotations[ANN_CONTENT_TYPE] = source.annotations.get(ANN_CONTENT_TYPE, ContentType.KUBEVIRT.value)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": dv.metadata.name,
            "namespace": dv.metadata.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(dv)],
        },
        "spec": spec,
    }


def populated_for(claim: Claim, dv: DataVolume) -> bool:
    """The claim came with its content, and that is meant for this DataVolume."""
    return claim.annotations.get(ANN_POPULATED_FOR) == dv.metadata.name
