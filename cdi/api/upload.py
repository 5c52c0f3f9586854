"""UploadTokenRequest, which grants an upload; it is served by the aggregated API and never stored."""

from __future__ import annotations

from typing import ClassVar

from cdi.api.meta import KubeObject
from cdi.api.model import Model
from cdi.api.names import UPLOAD_GROUP, VERSION


class UploadTokenRequestSpec(Model):
    """What shall be uploaded to."""

    pvc_name: str
    """The claim, of the same namespace."""


class UploadTokenRequestStatus(Model):
    """The answer."""

    token: str | None = None
    """What the client sends as `Authorization: Bearer`; it is good for five minutes."""


class UploadTokenRequest(KubeObject):
    """Asks for a token that allows an upload to one claim."""

    group_version: ClassVar[str] = f"{UPLOAD_GROUP}/{VERSION}"

    spec: UploadTokenRequestSpec
    """What shall be uploaded to."""
    status: UploadTokenRequestStatus | None = None
    """The answer."""
