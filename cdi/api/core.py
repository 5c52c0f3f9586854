"""The kinds of Kubernetes' core group that a machine without a cluster keeps itself."""

from __future__ import annotations

from typing import ClassVar

from cdi.api.claims import ClaimSpec
from cdi.api.meta import Condition, KubeObject
from cdi.api.model import Amount, Model


class Secret(KubeObject):
    """Credentials, by key."""

    group_version: ClassVar[str] = "v1"

    type: str | None = None
    """What the Secret is for, such as Opaque or kubernetes.io/dockerconfigjson."""
    data: dict[str, str] | None = None
    """Values in base64."""
    string_data: dict[str, str] | None = None
    """Values as they are; they go before those of data."""
    immutable: bool | None = None
    """The content cannot be changed any more."""


class ConfigMap(KubeObject):
    """Texts that are no secrets, by key."""

    group_version: ClassVar[str] = "v1"

    data: dict[str, str] | None = None
    """Texts."""
    binary_data: dict[str, str] | None = None
    """Values in base64."""
    immutable: bool | None = None
    """The content cannot be changed any more."""


class ClaimStatus(Model):
    """What was found."""

    phase: str | None = None
    """Pending, Bound or Lost."""
    access_modes: list[str] | None = None
    """The volume's access modes."""
    capacity: dict[str, Amount] | None = None
    """How much the volume holds; `storage` in bytes."""
    conditions: list[Condition] | None = None
    """Of a resize, for instance."""


class PersistentVolumeClaim(KubeObject):
    """A request for a volume, and its tie to one."""

    group_version: ClassVar[str] = "v1"

    spec: ClaimSpec
    """What is asked for."""
    status: ClaimStatus | None = None
    """What was found."""
