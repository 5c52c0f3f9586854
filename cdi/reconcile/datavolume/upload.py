"""PVCs that accept uploads, and the request for an upload on this machine (`cdi.api.annotations.UPLOAD_REQUEST`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdi.api.names import ANN_UPLOAD_CLIENT_NAME, ANN_UPLOAD_TARGET, GROUP
from cdi.api.upload_protocol import CLIENT_NAME

UPLOAD_SOURCE = "VolumeUploadSource"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRequest:
    """A request for one upload; each has a unique id."""

    id: str
    path: str | None = None
    """The file to upload; None for a stream, which only the process that holds it can pass to a worker."""
    length: int | None = None
    """Length of a stream in bytes, if known."""
    attempt: int | None = None
    """Number of the attempt that reads the stream.

    The client that starts it records it, because the supervisor follows a worker only after a change of an object.
    """


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
