"""Manifests of a transfer's target objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from cdi.api.annotations import TRANSFER_UID
from cdi.api.image_facts import PREFIX as IMAGE_FACTS
from cdi.api.names import (
    ANN_CLONE_TOKEN,
    ANN_CONTENT_TYPE,
    ANN_EXTENDED_CLONE_TOKEN,
    ANN_POPULATED_FOR,
    ANN_PRE_POPULATED,
    ANN_PREALLOCATION_APPLIED,
    ANN_PROVISIONER,
    ANN_PROVISIONER_BEFORE,
    ANN_SELECTED_NODE,
    GROUP,
)
from cdi.reconcile.objecttransfer.context import TransferWorld
from cdi.reconcile.objecttransfer.record import TransferRecord

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_BOUND: Final = frozenset(
    {
        "pv.kubernetes.io/bind-completed",
        "pv.kubernetes.io/bound-by-controller",
        ANN_PROVISIONER,
        ANN_PROVISIONER_BEFORE,
        ANN_SELECTED_NODE,
        _LAST_APPLIED,
    }
)
"""Annotations about a PVC's binding, set by Kubernetes.

Without ``bind-completed`` a PVC is treated as not yet bound.
"""
_FACTS: Final = frozenset({ANN_CONTENT_TYPE, ANN_PREALLOCATION_APPLIED})
_ONE_USE: Final = frozenset({ANN_CLONE_TOKEN, ANN_EXTENDED_CLONE_TOKEN, TRANSFER_UID.key, _LAST_APPLIED})


def build_claim(context: TransferWorld, source: Mapping[str, Any], record: TransferRecord) -> dict[str, Any]:
    """Build the target PVC: the source's spec and labels, and annotations of the user or about the volume's content.

    It names the volume, so that no other one is provisioned. It has no data source, or it would be populated again.
    Owner references are not copied, because Kubernetes treats owners in another namespace as deleted.
    """
    namespace, name = context.target
    metadata, spec = source["metadata"], source["spec"]
    annotations = {
        **{key: text for key, text in (metadata.get("annotations") or {}).items() if _goes_along(key)},
        **TRANSFER_UID.write(context.uid),
    }
    if context.moves_data_volume:
        annotations[ANN_POPULATED_FOR] = name
    kept = {part: value for part, value in spec.items() if part not in ("dataSource", "dataSourceRef", "volumeName")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": dict(metadata.get("labels") or {}),
            "annotations": annotations,
        },
        "spec": {**kept, "volumeName": record.volume},
    }


def build_data_volume(context: TransferWorld, source: Mapping[str, Any]) -> str:
    """Return the DataVolume that adopts the moved PVC, as JSON.

    It has the source's spec, which documents the original source, and the annotation that its PVC is complete.
    """
    namespace, name = context.target
    metadata = source["metadata"]
    annotations = {key: text for key, text in (metadata.get("annotations") or {}).items() if key not in _ONE_USE}
    body = {
        "apiVersion": source["apiVersion"],
        "kind": source["kind"],
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": dict(metadata.get("labels") or {}),
            "annotations": {**annotations, ANN_PRE_POPULATED: name, **TRANSFER_UID.write(context.uid)},
        },
        "spec": _placed(source.get("spec") or {}, context.source[0]),
    }
    return json.dumps(body, separators=(",", ":"))


def _goes_along(annotation: str) -> bool:
    """Return whether an annotation is copied to the target PVC.

    Annotations of CDI's own group describe past requests and progress, except those about the volume's content.
    """
    if annotation.startswith(f"{GROUP}/"):
        return annotation in _FACTS or annotation.startswith(IMAGE_FACTS)
    return annotation not in _BOUND and not annotation.startswith("k8s.io/Clone")


def _placed(spec: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    """Return the spec with explicit namespaces in references that are relative to the source's namespace."""
    placed = dict(spec)
    if placed.get("sourceRef"):
        placed["sourceRef"] = {"namespace": namespace, **_given(placed["sourceRef"])}
    source = placed.get("source") or {}
    for kind in ("pvc", "snapshot"):
        if source.get(kind):
            placed["source"] = {**source, kind: {"namespace": namespace, **_given(source[kind])}}
    return placed


def _given(reference: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in reference.items() if value}
