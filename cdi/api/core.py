"""Kinds of Kubernetes' core group that are stored locally on a machine without a cluster."""

from __future__ import annotations

from typing import ClassVar

from cdi.api.claims import ClaimSpec
from cdi.api.meta import Condition, KubeObject
from cdi.api.model import Amount, Model


class Secret(KubeObject):
    """Credentials by key."""

    group_version: ClassVar[str] = "v1"

    type: str | None = None
    """Purpose of the Secret, such as Opaque or kubernetes.io/dockerconfigjson."""
    data: dict[str, str] | None = None
    """Values in Base64."""
    string_data: dict[str, str] | None = None
    """Values as plain text, which override those in data."""
    immutable: bool | None = None
    """Whether the content cannot be changed."""


class ConfigMap(KubeObject):
    """Configuration values by key that are not secret."""

    group_version: ClassVar[str] = "v1"

    data: dict[str, str] | None = None
    """Values as text."""
    binary_data: dict[str, str] | None = None
    """Values in Base64."""
    immutable: bool | None = None
    """Whether the content cannot be changed."""


class ClaimStatus(Model):
    """Observed state of a claim."""

    phase: str | None = None
    """Pending, Bound or Lost."""
    access_modes: list[str] | None = None
    """Access modes of the volume."""
    capacity: dict[str, Amount] | None = None
    """Capacity of the volume; `storage` is in bytes."""
    conditions: list[Condition] | None = None
    """Conditions, for example of a resize."""


class PersistentVolumeClaim(KubeObject):
    """Request for a volume, and its binding to one."""

    group_version: ClassVar[str] = "v1"

    spec: ClaimSpec
    """Requested properties of the volume."""
    status: ClaimStatus | None = None
    """Observed state of the claim."""
