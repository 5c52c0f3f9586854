"""Manifests of PVCs: a DataVolume's own, its prime PVC and its scratch PVC."""

from __future__ import annotations

from typing import Any, assert_never

from cdi.api.annotations import CLONE_SNAPSHOT_REQUEST
from cdi.api.datavolume import ContentType, DataVolume
from cdi.api.errors import StorageClassMissing
from cdi.api.names import (
    ANN_CLONE_REQUEST,
    ANN_CONTENT_TYPE,
    ANN_CREATED_BY_CONTROLLER,
    ANN_CREATED_FOR_DATA_VOLUME,
    ANN_EXTERNAL_POPULATION,
    ANN_IMMEDIATE_BINDING,
    ANN_POD_RETAIN,
    ANN_POPULATED_FOR,
    ANN_POPULATOR_KIND,
    ANN_PREALLOCATION_REQUESTED,
    ANN_PRIORITY_CLASS,
    ANN_SELECTED_NODE,
    ANN_UPLOAD_TARGET,
    ANN_USE_POPULATOR,
    COMMON_LABELS,
    GROUP,
    LABEL_ALERT_FILLING_UP,
    TEMPORARY_CLAIM_LABELS,
    import_source,
    labels_for_clone,
    prime_claim,
    scratch_claim,
    upload_source,
)
from cdi.api.overhead import required
from cdi.api.quantity import Quantity
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.annotated_claims import IMPORT_SOURCE
from cdi.reconcile.datavolume.lineage import inherited_origin
from cdi.reconcile.datavolume.provisioning import (
    class_of,
    provisioner_annotations,
    uses_populator,
    uses_virt_default_class,
)
from cdi.reconcile.datavolume.source_annotations import write_source
from cdi.reconcile.datavolume.upload import UPLOAD_SOURCE, upload_annotations
from cdi.reconcile.pods.builder import claim_owner
from cdi.reconcile.pods.job import content_type
from cdi.reconcile.settings import ResolvedConfig
from cdi.reconcile.storage.claim_defaults import default_claim, overhead_of
from cdi.reconcile.types import PVC, Clone, ExternalPopulator, Import, Origin, Upload

_MAX_RECORD = 128 << 10
"""Maximum number of characters of a recorded source; Kubernetes limits all annotations of an object to 256 KiB."""
_NOT_INHERITED = "kubectl.kubernetes.io/last-applied-configuration"
_INHERITED = frozenset({ANN_IMMEDIATE_BINDING, ANN_POD_RETAIN, ANN_EXTERNAL_POPULATION})
"""Annotations of CDI that other programs read on the PVC."""


def owner_reference(dv: DataVolume) -> dict[str, Any]:
    """Return an owner reference to the DataVolume as the controller, so that the PVC is garbage-collected with it."""
    return {
        "apiVersion": dv.group_version,
        "kind": dv.kind_name(),
        "name": dv.metadata.name,
        "uid": dv.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def build_claim(context: ReconcileContext, origin: Origin, source: PVC | None) -> dict[str, Any]:
    """Build the PVC's manifest from the DataVolume, with defaults from the storage profile and the clone's source.

    In a cluster it raises the errors of `cdi.reconcile.storage.claim_defaults.default_claim`.
    """
    dv = context.datavolume
    wanted = dv.spec.claim
    spec = _cluster_spec(context) if context.platform.cluster else _machine_spec(context)
    if (wanted is None or wanted.size is None) and source is not None and source.capacity is not None:
        resources = dict(spec.get("resources") or {})
        resources["requests"] = {
            **(resources.get("requests") or {}),
            "storage": Quantity.of_bytes(source.capacity).text,
        }
        spec["resources"] = resources
    labels = {**context.config.labels, **(dv.metadata.labels or {}), **COMMON_LABELS}
    if context.platform.cluster and (spec.get("volumeMode") or "Filesystem") == "Filesystem":
        # The disk image fills its filesystem by design.
        labels = {LABEL_ALERT_FILLING_UP: "disabled", **labels}
    content = content_type(dv)
    annotations = {
        # On a DataVolume the annotations of CDI's own group are requests, but on a PVC some of them state facts.
        name: text
        for name, text in (dv.metadata.annotations or {}).items()
        if name != _NOT_INHERITED and (name in _INHERITED or not name.startswith(f"{GROUP}/"))
    }
    annotations |= {
        ANN_CONTENT_TYPE: content.value,
        ANN_CREATED_BY_CONTROLLER: "yes",
        ANN_CREATED_FOR_DATA_VOLUME: dv.metadata.uid or "",
    }
    if isinstance(origin, Import | Upload) and context.platform.cluster:
        storage_class = class_of(dv, context.objects)
        populated = uses_populator(dv, storage_class, context.objects)
        annotations[ANN_USE_POPULATOR] = "true" if populated else "false"
        if populated:
            annotations |= provisioner_annotations(storage_class, context.objects)
        if populated and origin.kept_in is None:
            metadata = build_source(dv, origin)["metadata"]
            kind = IMPORT_SOURCE if isinstance(origin, Import) else UPLOAD_SOURCE
            spec["dataSourceRef"] = {"apiGroup": GROUP, "kind": kind, "name": metadata["name"]}
            spec.pop("dataSource", None)
    if isinstance(origin, ExternalPopulator):
        annotations[ANN_EXTERNAL_POPULATION] = "true"
    if dv.spec.priority_class_name:
        annotations[ANN_PRIORITY_CLASS] = dv.spec.priority_class_name
    preallocation = context.config.preallocation if dv.spec.preallocation is None else dv.spec.preallocation
    if preallocation:
        annotations[ANN_PREALLOCATION_REQUESTED] = "true"
    if isinstance(origin, Upload):
        annotations[ANN_UPLOAD_TARGET] = ""
    if isinstance(origin, Clone):
        annotations[ANN_CLONE_REQUEST] = f"{origin.namespace}/{origin.name}"
    if source is not None:
        labels |= labels_for_clone(source.labels, labels)
        annotations[ANN_CONTENT_TYPE] = source.annotations.get(ANN_CONTENT_TYPE, ContentType.KUBEVIRT.value)
        annotations |= inherited_origin(source.annotations)
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


def _machine_spec(context: ReconcileContext) -> dict[str, Any]:
    wanted = context.datavolume.spec.claim
    spec: dict[str, Any] = wanted.to_dict() if wanted is not None else {}
    profile = context.objects.profile(wanted.storage_class_name if wanted is not None else None)
    spec["accessModes"] = spec.get("accessModes") or list(profile.access_modes)
    if spec.get("volumeMode") not in ("Filesystem", "Block"):
        spec["volumeMode"] = profile.volume_mode
    return spec


def _cluster_spec(context: ReconcileContext) -> dict[str, Any]:
    """Return the spec: ``pvc`` unchanged, ``storage`` with defaults.

    Both name their class, so that a later change of the default class has no effect.
    """
    dv, objects = context.datavolume, context.objects
    wanted = dv.spec.claim
    spec: dict[str, Any] = wanted.to_dict() if wanted is not None else {}
    storage_class = class_of(dv, objects)
    named = wanted.storage_class_name if wanted is not None else None
    offer = objects.storage_defaults(named, virtualization=uses_virt_default_class(dv))
    if dv.spec.pvc is None:
        spec = default_claim(spec, offer, archive=content_type(dv) is ContentType.ARCHIVE, sized=not dv.spec.is_clone)
    elif spec.get("storageClassName") is None and storage_class is not None:
        spec["storageClassName"] = storage_class.name
    # A class without an object may name manually created volumes; these then provide the defaults.
    if storage_class is None and not offer.sets and not spec.get("volumeName") and not spec.get("selector"):
        name = spec.get("storageClassName")
        if name != "":
            raise StorageClassMissing(
                f"StorageClass {name} does not exist"
                if name
                else "no StorageClass is named, and there is no default StorageClass",
                where="storageClassName",
            )
    return spec


def build_source(dv: DataVolume, origin: Import | Upload) -> dict[str, Any]:
    """Build the VolumeImportSource or VolumeUploadSource of a PVC, whose reference makes provisioners ignore it."""
    assert dv.spec.source is not None
    uid = dv.metadata.uid or ""
    imports = isinstance(origin, Import)
    spec: dict[str, Any] = {"source": dv.spec.source.to_dict()} if imports else {}
    spec["contentType"] = content_type(dv).value
    if dv.spec.preallocation is not None:
        spec["preallocation"] = dv.spec.preallocation
    return {
        "apiVersion": dv.group_version,
        "kind": IMPORT_SOURCE if imports else UPLOAD_SOURCE,
        "metadata": {
            "name": import_source(uid) if imports else upload_source(uid),
            "namespace": dv.metadata.namespace,
            "labels": dict(COMMON_LABELS),
            "ownerReferences": [owner_reference(dv)],
        },
        "spec": spec,
    }


def build_prime(context: ReconcileContext, target: PVC, origin: Origin | None) -> dict[str, Any]:
    """Build the prime PVC, which is filled in place of the target: the same spec without the dataSourceRef.

    Its annotations record `origin`, so that it is filled even if the object that named the source is deleted.
    """
    annotations = {
        ANN_CREATED_BY_CONTROLLER: "yes",
        ANN_CONTENT_TYPE: content_type(context.datavolume).value,
        ANN_POPULATOR_KIND: target.data_ref.kind if target.data_ref is not None else IMPORT_SOURCE,
        ANN_IMMEDIATE_BINDING: "",
        **_record_of(context, origin),
    }
    if target.selected_node:
        # The volume is provisioned for that node at once, before the worker's pod is scheduled.
        annotations[ANN_SELECTED_NODE] = target.selected_node
    if target.annotations.get(ANN_POD_RETAIN) == "true":
        annotations[ANN_POD_RETAIN] = "true"
    if target.storage_class:
        annotations |= provisioner_annotations(context.objects.storage_class(target.storage_class), context.objects)
    spec: dict[str, Any] = {
        "accessModes": list(target.access_modes),
        "volumeMode": target.volume_mode,
        "storageClassName": target.storage_class,
        "resources": {"requests": {"storage": Quantity.of_bytes(target.requested or 0).text}},
    }
    return _temporary(context.config, prime_claim(target.uid), target, annotations, spec)


def _record_of(context: ReconcileContext, origin: Origin | None) -> dict[str, str]:
    match origin:
        case Import():
            record = write_source(origin.source)
            if sum(map(len, (*record, *record.values()))) > _MAX_RECORD:
                record = {}
        case Upload():
            record = upload_annotations()
        case Clone():
            if origin.kind == "VolumeSnapshot":
                return CLONE_SNAPSHOT_REQUEST.write(origin.namespace, origin.name)
            return {ANN_CLONE_REQUEST: f"{origin.namespace}/{origin.name}"}
        case ExternalPopulator() | None:
            return {}
        case _:
            assert_never(origin)
    asked = context.datavolume.spec.preallocation
    preallocation = context.config.preallocation if asked is None else asked
    return {**record, ANN_PREALLOCATION_REQUESTED: "true" if preallocation else "false"}


def build_scratch(config: ResolvedConfig, filled: PVC) -> dict[str, Any]:
    """Build the scratch PVC, for content that cannot be decoded as a stream.

    It has the usable size of the volume, plus filesystem overhead if that is a block device.
    """
    size = filled.requested or filled.capacity or 0
    name = config.scratch_class or filled.storage_class
    if filled.volume_mode == "Block":
        size = required(size, overhead_of(name, config))
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "storageClassName": name,
        "resources": {"requests": {"storage": Quantity.of_bytes(size).text}},
    }
    annotations = {ANN_CREATED_BY_CONTROLLER: "yes"}
    return _temporary(config, scratch_claim(filled.name), filled, annotations, spec)


def _temporary(
    config: ResolvedConfig, name: str, owner: PVC, annotations: dict[str, str], spec: dict[str, Any]
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": {**config.labels, **COMMON_LABELS, **TEMPORARY_CLAIM_LABELS},
            "annotations": annotations,
            "ownerReferences": [claim_owner(owner)],
        },
        "spec": spec,
    }


def populated_for(claim: PVC, dv: DataVolume) -> bool:
    """Return whether the PVC came with its content, intended for this DataVolume."""
    return claim.annotations.get(ANN_POPULATED_FOR) == dv.metadata.name
