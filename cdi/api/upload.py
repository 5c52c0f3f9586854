"""UploadTokenRequest, which grants an upload; it is served by the aggregated API and never stored."""

from __future__ import annotations

from typing import ClassVar

from cdi.api.meta import KubeObject
from cdi.api.model import Model
from cdi.api.names import UPLOAD_GROUP, VERSION


class UploadTokenRequestSpec(Model):
    """Target of the upload."""

    pvc_name: str
    """The name of the claim in the same namespace."""


class UploadTokenRequestStatus(Model):
    """Response of the server."""

    token: str | None = None
    """The token that the client sends as `Authorization: Bearer`; valid for five minutes."""


class UploadTokenRequest(KubeObject):
    """A request for a token that allows an upload to one claim."""

    group_version: ClassVar[str] = f"{UPLOAD_GROUP}/{VERSION}"

    spec: UploadTokenRequestSpec
    """Target of the upload."""
    status: UploadTokenRequestStatus | None = None
    """Response of the server."""
