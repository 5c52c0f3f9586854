"""Validation of a request for an upload token."""

from __future__ import annotations

from cdi.api.rules.problems import Problems, object_name
from cdi.api.upload import UploadTokenRequest


def check_upload_token_request(request: UploadTokenRequest) -> Problems:
    """Yield the problems of an UploadTokenRequest."""
    yield from object_name(request.spec.pvc_name, "spec.pvcName", "PersistentVolumeClaim")
