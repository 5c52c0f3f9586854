"""Manifests of a clone's objects: snapshots, temporary PVCs, prep pods and size-detection pods."""

from __future__ import annotations

from typing import Any, Final

from cdi.api.datavolume import DataVolume
from cdi.api.names import (
    ANN_CLONE_TYPE,
    ANN_CONTENT_TYPE,
    ANN_CREATED_BY_CONTROLLER,
    ANN_OWNER_UID,
    ANN_POPULATOR_KIND,
    ANN_SERVICE_ACCOUNT,
    COMMON_LABELS,
    GROUP,
    POD_ANNOTATION_DEFAULTS,
    TEMPORARY_CLAIM_LABELS,
    clone_source,
    joined,
)
from cdi.api.quantity import Quantity
from cdi.reconcile.clone.plan_annotation import (
    ANN_SOURCE_UID,
    ANN_TARGET,
    LABEL_TEMPORARY,
    ClonePlanRecord,
    temporary_pvc,
)
from cdi.reconcile.clone.types import CloneSource
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.annotated_claims import CLONE_SOURCE
from cdi.reconcile.datavolume.claim_builder import build_prime, owner_reference
from cdi.reconcile.pods.builder import claim_owner
from cdi.reconcile.pods.roles import (
    PREPARATION,
    SIZE_DETECTION,
    DataMount,
    build_pod,
    pod_spec,
)
from cdi.reconcile.settings import ResolvedConfig
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.types import PVC, Clone

SNAPSHOT_GROUP: Final = "snapshot.storage.k8s.io"
_SOURCE: Final = "/var/run/cdi/clone/source"


def preparation_pod(claim: str) -> str:
    """Return the name of the prep pod of a PVC."""
    return joined("prepare", claim)


def measurement_pod(dv: DataVolume) -> str:
    """Return the name of the size-detection pod."""
    return f"size-detection-{dv.metadata.uid}"


def build_snapshot(
    config: ResolvedConfig, target: PVC, found: CloneSource, name: str, snapshot_class: str
) -> dict[str, Any]:
    """Build a snapshot of the source, shared by all clones that are made of it now."""
    return {
        "apiVersion": f"{SNAPSHOT_GROUP}/v1",
        "kind": "VolumeSnapshot",
        "metadata": {
            "name": name,
            "namespace": found.namespace,
            # The target's labels are copied, so that tools that select objects by label find this one as well.
            "labels": {**target.labels, **config.labels, **COMMON_LABELS, LABEL_TEMPORARY: "true"},
            "annotations": {
                ANN_CREATED_BY_CONTROLLER: "yes",
                ANN_SOURCE_UID: found.uid,
                ANN_TARGET: f"{target.namespace}/{target.name}",
            },
        },
        "spec": {
            "volumeSnapshotClassName": snapshot_class,
            "source": {"persistentVolumeClaimName": found.name},
        },
    }


def build_temporary_pvc(
    context: ReconcileContext,
    target: PVC,
    record: ClonePlanRecord,
    found: CloneSource,
    reference: dict[str, Any],
    size: int,
) -> dict[str, Any]:
    """Build the temporary PVC with the ``dataSource`` `reference` and `size` bytes, in place of the target."""
    namespace, name = temporary_pvc(target)
    # In another namespace it has no owner, and an annotation that names a source would request another clone.
    origin = Clone(namespace=found.namespace, name=found.name, kind=found.kind)
    body = build_prime(context, target, origin if namespace == target.namespace else None)
    metadata = body["metadata"]
    metadata["name"], metadata["namespace"] = name, namespace
    metadata["annotations"] |= {ANN_POPULATOR_KIND: CLONE_SOURCE, ANN_CLONE_TYPE: record.strategy.value}
    if namespace != target.namespace:
        # Owner references do not work across namespaces, so an annotation names the target.
        del metadata["ownerReferences"]
        metadata["labels"] = {**target.labels, **metadata["labels"], LABEL_TEMPORARY: "true"}
        metadata["annotations"] |= {ANN_TARGET: f"{target.namespace}/{target.name}", ANN_OWNER_UID: target.uid}
    body["spec"]["dataSource"] = reference
    body["spec"]["resources"] = {"requests": {"storage": Quantity.of_bytes(size).text}}
    return body


def build_restored_pvc(
    context: ReconcileContext, target: PVC, found: CloneSource, name: str, storage_class: StorageClass
) -> dict[str, Any]:
    """Build the PVC through which pods read a snapshot, with the volume mode of the snapshot's source."""
    mode = found.volume_mode or target.volume_mode
    offered = context.objects.storage_defaults(storage_class.name, virtualization=True).sets
    modes = next((one.access_modes for one in offered if one.volume_mode == mode), ("ReadWriteOnce",))
    size = found.size if found.size is not None else target.requested or 0
    annotations = {
        ANN_CREATED_BY_CONTROLLER: "yes",
        ANN_SOURCE_UID: found.uid,
        ANN_TARGET: f"{target.namespace}/{target.name}",
    }
    if ANN_CONTENT_TYPE in found.annotations:
        annotations[ANN_CONTENT_TYPE] = found.annotations[ANN_CONTENT_TYPE]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": found.namespace,
            "labels": {
                **target.labels,
                **context.config.labels,
                **COMMON_LABELS,
                **TEMPORARY_CLAIM_LABELS,
                LABEL_TEMPORARY: "true",
            },
            "annotations": annotations,
        },
        "spec": {
            "accessModes": list(modes),
            "volumeMode": mode,
            "storageClassName": storage_class.name,
            "dataSource": of_snapshot(found.name),
            "resources": {"requests": {"storage": Quantity.of_bytes(size).text}},
        },
    }


def pvc_data_source(name: str) -> dict[str, Any]:
    """Return a ``dataSource`` for a PVC."""
    return {"kind": "PersistentVolumeClaim", "name": name}


def of_snapshot(name: str) -> dict[str, Any]:
    """Return a ``dataSource`` for a snapshot."""
    return {"apiGroup": SNAPSHOT_GROUP, "kind": "VolumeSnapshot", "name": name}


def build_clone_source(dv: DataVolume, origin: Clone) -> dict[str, Any]:
    """Build the VolumeCloneSource of a DataVolume's PVC, which makes provisioners ignore the PVC."""
    source = (
        of_snapshot(origin.name)
        if origin.kind == "VolumeSnapshot"
        else {"apiGroup": "", **pvc_data_source(origin.name)}
    )
    return {
        "apiVersion": dv.group_version,
        "kind": CLONE_SOURCE,
        "metadata": {
            "name": clone_source(dv.metadata.uid or ""),
            "namespace": dv.metadata.namespace,
            "labels": dict(COMMON_LABELS),
            "ownerReferences": [owner_reference(dv)],
        },
        "spec": {"source": source},
    }


def clone_source_ref(dv: DataVolume) -> dict[str, Any]:
    """Return the ``dataSourceRef`` for the DataVolume's VolumeCloneSource."""
    return {"apiGroup": GROUP, "kind": CLONE_SOURCE, "name": clone_source(dv.metadata.uid or "")}


def build_prep_pod(config: ResolvedConfig, target: PVC, prime: PVC) -> dict[str, Any]:
    """Build the prep pod, which mounts the volume and ends.

    With WaitForFirstConsumer this provisions the volume, and mounting expands a filesystem that is smaller than its
    volume.
    """
    account = target.annotations.get(ANN_SERVICE_ACCOUNT) if prime.namespace == target.namespace else None
    data = DataMount(claim=prime.name, block=prime.volume_mode == "Block")
    return build_pod(
        PREPARATION,
        config,
        pod_spec(PREPARATION, config.pods, owner=target.uid, data=data, account=account),
        namespace=prime.namespace,
        name=preparation_pod(prime.name),
        annotations={ANN_CREATED_BY_CONTROLLER: "yes", ANN_OWNER_UID: target.uid},
        owner=claim_owner(prime),
    )


def build_size_detection_pod(context: ReconcileContext, found: CloneSource) -> dict[str, Any]:
    """Build the size-detection pod, which mounts the source read-only."""
    dv = context.datavolume
    owner = dv.metadata.uid or ""
    spec = pod_spec(
        SIZE_DETECTION,
        context.config.pods,
        owner=owner,
        args=(f"{_SOURCE}/disk.img", found.uid),
        data=DataMount(claim=found.name, directory=_SOURCE),
        priority=dv.spec.priority_class_name,
    )
    annotations = {
        **POD_ANNOTATION_DEFAULTS,
        ANN_CREATED_BY_CONTROLLER: "yes",
        ANN_OWNER_UID: owner,
        ANN_SOURCE_UID: found.uid,
        ANN_TARGET: f"{dv.metadata.namespace}/{dv.metadata.name}",
    }
    return build_pod(
        SIZE_DETECTION,
        context.config,
        spec,
        namespace=found.namespace,
        name=measurement_pod(dv),
        annotations=annotations,
        inherited=dv.metadata.labels,
        labels={LABEL_TEMPORARY: "true"},
        owner=owner_reference(dv) if found.namespace == dv.metadata.namespace else None,
    )
