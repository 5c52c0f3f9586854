"""ObjectTransfer: a move of a claim or DataVolume to another namespace or name."""

from __future__ import annotations

from cdi.api.meta import Condition, KubeObject
from cdi.api.model import Model


class TransferSource(Model):
    """Object to move."""

    api_version: str | None = None
    """Its group and version."""
    kind: str
    """DataVolume or PersistentVolumeClaim."""
    namespace: str
    """Its namespace."""
    name: str
    """Its name."""
    required_annotations: dict[str, str] | None = None
    """Annotations that it must have before it is moved."""


class TransferTarget(Model):
    """Target of the transfer; at least one of the two fields is set."""

    namespace: str | None = None
    """The new namespace."""
    name: str | None = None
    """The new name."""


class ObjectTransferSpec(Model):
    """Desired state: the object to move and its target."""

    source: TransferSource
    """Object to move."""
    target: TransferTarget
    """Target of the transfer."""
    parent_name: str | None = None
    """The transfer that this one is a part of."""


class ObjectTransferStatus(Model):
    """How far it is."""

    data: dict[str, str] | None = None
    """Internal record of the transfer, kept between its steps."""
    phase: str | None = None
    """Pending, Running, Complete or Error."""
    conditions: list[Condition] | None = None
    """Complete, with the reason."""


class ObjectTransfer(KubeObject):
    """Moves a claim or DataVolume, with its data, to another namespace or name."""

    spec: ObjectTransferSpec
    """Desired state: the object to move and its target."""
    status: ObjectTransferStatus | None = None
    """How far it is; written by the controller."""
