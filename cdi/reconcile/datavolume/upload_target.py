"""PVCs that accept uploads: their annotations, and their detection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdi.api.names import ANN_UPLOAD_CLIENT_NAME, ANN_UPLOAD_TARGET, GROUP
from cdi.api.upload_protocol import CLIENT_NAME

UPLOAD_SOURCE = "VolumeUploadSource"


def is_upload_target(claim: Mapping[str, Any]) -> bool:
    """Return whether a PersistentVolumeClaim (an API object) is, or was, to be filled by an upload."""
    metadata, spec = claim.get("metadata") or {}, claim.get("spec") or {}
    ref = spec.get("dataSourceRef") or {}
    return ANN_UPLOAD_TARGET in (metadata.get("annotations") or {}) or (
        (ref.get("apiGroup"), ref.get("kind")) == (GROUP, UPLOAD_SOURCE)
    )


def upload_annotations() -> dict[str, str]:
    """Return the annotations of a PVC that accepts an upload, which other programs read."""
    return {ANN_UPLOAD_TARGET: "", ANN_UPLOAD_CLIENT_NAME: CLIENT_NAME}


def is_withdrawn(annotations: Mapping[str, str]) -> bool:
    """Return whether a user has removed the annotation that requests an upload.

    Both annotations are written together, and only once; the other one remains.
    """
    return ANN_UPLOAD_CLIENT_NAME in annotations and ANN_UPLOAD_TARGET not in annotations
