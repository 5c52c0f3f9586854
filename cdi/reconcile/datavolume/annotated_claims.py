"""DataVolumes synthesized from PVCs that request an import themselves.

There are two kinds: PVCs with ``storage.import.*`` or ``k8s.io/CloneRequest`` annotations, written by users, and PVCs
whose ``dataSourceRef`` names a VolumeImportSource or VolumeCloneSource. The request is converted to a DataVolume, so
that the same reconciler handles it; the resulting status is stored in an annotation of the PVC.
"""

from __future__ import annotations

from typing import Any

from cdi.api.annotations import IMPORT_STATUS
from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.kinds import DATA_VOLUMES
from cdi.api.names import (
    ANN_CLONE_REQUEST,
    ANN_CONTENT_TYPE,
    ANN_ENDPOINT,
    ANN_PREALLOCATION_REQUESTED,
    ANN_PRIORITY_CLASS,
    ANN_SERVICE_ACCOUNT,
    ANN_SOURCE,
    ANN_UPLOAD_CLIENT_NAME,
    ANN_UPLOAD_TARGET,
    GROUP,
    prime_claim,
)
from cdi.api.quantity import Quantity
from cdi.api.sources import AnySource
from cdi.api.validation import parse
from cdi.reconcile.clone.plan_annotation import requested_source
from cdi.reconcile.context import Lister
from cdi.reconcile.datavolume.source_annotations import read_source
from cdi.reconcile.datavolume.upload import UPLOAD_SOURCE
from cdi.reconcile.types import PVC, DataRef

IMPORT_SOURCE = "VolumeImportSource"
CLONE_SOURCE = "VolumeCloneSource"


def names_import_source(ref: DataRef | None) -> bool:
    """Return whether a PVC's dataSourceRef names a VolumeImportSource."""
    return ref is not None and (ref.group, ref.kind) == (GROUP, IMPORT_SOURCE)


def names_populator(ref: DataRef | None) -> bool:
    """Return whether a PVC's dataSourceRef names one of CDI's populators, so that the provisioner ignores the PVC."""
    return names_import_source(ref) or names_upload_source(ref) or names_clone_source(ref)


def names_upload_source(ref: DataRef | None) -> bool:
    """Return whether a PVC's dataSourceRef names a VolumeUploadSource."""
    return ref is not None and (ref.group, ref.kind) == (GROUP, UPLOAD_SOURCE)


def names_clone_source(ref: DataRef | None) -> bool:
    """Return whether a PVC's dataSourceRef names a VolumeCloneSource."""
    return ref is not None and (ref.group, ref.kind) == (GROUP, CLONE_SOURCE)


def data_volume_for_claim(claim: PVC, objects: Lister) -> DataVolume | None:
    """Return the DataVolume that corresponds to `claim`; None if it requests nothing."""
    annotations = claim.annotations
    spec: dict[str, Any] = {}
    if names_import_source(claim.data_ref):
        assert claim.data_ref is not None
        # The source is resolved when it is needed (`cdi.reconcile.source`), since the object may be created later.
        found = objects.import_source(claim.namespace, claim.data_ref.name)
        if found is not None:
            spec["contentType"] = found.spec.content_type
            spec["preallocation"] = found.spec.preallocation
        else:
            spec |= _recorded_form(claim, objects)
    elif names_clone_source(claim.data_ref) or ANN_CLONE_REQUEST in annotations:
        # The source is resolved later as well, but that it is a clone must be known now.
        namespace, name, snapshot = requested_source(annotations) or (claim.namespace, "", False)
        spec["source"] = {"snapshot" if snapshot else "pvc": {"namespace": namespace, "name": name}}
    elif names_upload_source(claim.data_ref):
        assert claim.data_ref is not None
        kept = objects.upload_source(claim.namespace, claim.data_ref.name)
        spec["source"] = {"upload": {}}
        if kept is not None:
            spec["contentType"] = kept.spec.content_type
            spec["preallocation"] = kept.spec.preallocation
        else:
            spec |= _recorded_form(claim, objects)
    elif ANN_ENDPOINT in annotations or ANN_SOURCE in annotations:
        spec["source"] = read_source(annotations)
    elif ANN_UPLOAD_TARGET in annotations or ANN_UPLOAD_CLIENT_NAME in annotations:
        # The second one stays if a user removes the first, and the upload server is then stopped.
        spec["source"] = {"upload": {}}
    else:
        return None
    spec["contentType"] = annotations.get(ANN_CONTENT_TYPE) or spec.get("contentType")
    if annotations.get(ANN_PREALLOCATION_REQUESTED) in ("true", "false"):
        spec["preallocation"] = annotations[ANN_PREALLOCATION_REQUESTED] == "true"
    spec["priorityClassName"] = annotations.get(ANN_PRIORITY_CLASS)
    spec["serviceAccountName"] = annotations.get(ANN_SERVICE_ACCOUNT)
    spec["pvc"] = {
        "accessModes": list(claim.access_modes),
        "volumeMode": claim.volume_mode,
        "storageClassName": claim.storage_class,
        "resources": {"requests": {"storage": Quantity.of_bytes(claim.requested).text}}
        if claim.requested is not None
        else None,
    }
    return _data_volume(claim, spec, IMPORT_STATUS.read(annotations))


def _recorded_form(claim: PVC, objects: Lister) -> dict[str, Any]:
    """Return content type and preallocation as recorded on the prime PVC, for a volume source that was deleted."""
    prime = objects.claim(claim.namespace, prime_claim(claim.uid))
    if prime is None or prime.controller_uid != claim.uid:
        return {}
    asked = prime.annotations.get(ANN_PREALLOCATION_REQUESTED)
    return {
        "contentType": prime.annotations.get(ANN_CONTENT_TYPE),
        "preallocation": asked == "true" if asked in ("true", "false") else None,
    }


def recorded_source(prime: PVC) -> AnySource | None:
    """Return the import source that is recorded on a prime PVC; None if there is none or it is invalid."""
    if ANN_SOURCE not in prime.annotations:
        return None
    try:
        source = _data_volume(prime, {"source": read_source(prime.annotations)}, None).spec.source
    except InvalidManifest:
        return None
    return next((member for _, member in source.given()), None) if source is not None else None


def placeholder_for_deletion(claim: PVC) -> DataVolume:
    """Return a placeholder for a PVC that is being deleted, for which only the worker must be stopped."""
    return _data_volume(claim, {"source": {"blank": {}}}, None, deleted="1970-01-01T00:00:00Z")


def _data_volume(
    claim: PVC, spec: dict[str, Any], status: dict[str, Any] | None, *, deleted: str | None = None
) -> DataVolume:
    body: dict[str, Any] = {
        "apiVersion": DATA_VOLUMES.api_version,
        "kind": "DataVolume",
        "metadata": {
            "namespace": claim.namespace,
            "name": claim.name,
            "uid": claim.uid,
            "annotations": dict(claim.annotations),
            "labels": dict(claim.labels),
            **({"deletionTimestamp": deleted} if deleted else {}),
        },
        "spec": {name: value for name, value in spec.items() if value is not None},
    }
    if status is not None:
        try:
            return _parsed({**body, "status": status})
        except InvalidManifest:
            # The annotation was modified and is invalid; it will be overwritten.
            pass
    return _parsed(body)


def _parsed(body: dict[str, Any]) -> DataVolume:
    model = parse(body)
    assert isinstance(model, DataVolume)
    return model
