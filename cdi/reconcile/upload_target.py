"""Detection of PVCs that accept uploads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdi.api.names import ANN_UPLOAD_TARGET, GROUP

UPLOAD_SOURCE = "VolumeUploadSource"


def is_upload_target(claim: Mapping[str, Any]) -> bool:
    """Return whether a PersistentVolumeClaim (an API object) is, or was, to be filled by an upload."""
    metadata, spec = claim.get("metadata") or {}, claim.get("spec") or {}
    ref = spec.get("dataSourceRef") or {}
    return ANN_UPLOAD_TARGET in (metadata.get("annotations") or {}) or (
        (ref.get("apiGroup"), ref.get("kind")) == (GROUP, UPLOAD_SOURCE)
    )
