"""StorageClasses, and the choice of a default class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from cdi.api.names import ANN_CLONE_STRATEGY, ANN_DEFAULT_CLASS, ANN_DEFAULT_VIRT_CLASS
from cdi.api.storageprofile import CloneStrategy

NO_PROVISIONER = "kubernetes.io/no-provisioner"
"""Provisioner of classes whose volumes are created manually."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageClass:
    """The relevant fields of a StorageClass."""

    name: str
    provisioner: str
    uid: str = ""
    created: str = ""
    """RFC 3339 as written by the API server; the fixed format makes the texts comparable."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    wait_for_first_consumer: bool = False
    """Whether volumes are bound when their first consumer is scheduled (WaitForFirstConsumer)."""
    allow_expansion: bool = False
    """Whether volumes can be expanded (``allowVolumeExpansion``)."""

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Parse an API object; missing fields are empty."""
        metadata = body.get("metadata") or {}
        return cls(
            name=metadata.get("name") or "",
            uid=metadata.get("uid") or "",
            created=metadata.get("creationTimestamp") or "",
            provisioner=body.get("provisioner") or "",
            parameters=body.get("parameters") or {},
            annotations=metadata.get("annotations") or {},
            wait_for_first_consumer=body.get("volumeBindingMode") == "WaitForFirstConsumer",
            allow_expansion=bool(body.get("allowVolumeExpansion")),
        )

    @property
    def is_default(self) -> bool:
        """True for the class that Kubernetes uses for PVCs that name none."""
        return self.annotations.get(ANN_DEFAULT_CLASS) == "true"

    @property
    def is_virt_default(self) -> bool:
        """True for the default class of virtual machine disks."""
        return self.annotations.get(ANN_DEFAULT_VIRT_CLASS) == "true"

    @property
    def clone_strategy(self) -> CloneStrategy | None:
        """The clone strategy from its annotation; None if that is missing or unknown."""
        asked = self.annotations.get(ANN_CLONE_STRATEGY, "")
        return CloneStrategy(asked) if asked in set(CloneStrategy) else None


def default_class(classes: Iterable[StorageClass], *, virtualization: bool = True) -> StorageClass | None:
    """Return the class of a volume that names none; None if there is no default.

    With `virtualization` (for disks, not archives) the default class for virtual machines is preferred. Among several
    defaults the newest is used, and among equally old ones the first by name, as in Kubernetes.
    """
    known = list(classes)
    if virtualization:
        found = _newest(one for one in known if one.is_virt_default)
        if found is not None:
            return found
    return _newest(one for one in known if one.is_default)


def named_or_default(
    name: str | None, classes: Iterable[StorageClass], *, virtualization: bool = True
) -> StorageClass | None:
    """Return the class with the given name, or the default class if `name` is None.

    None if there is no such class. The empty name requests a volume without a class, so it gives None as well.
    """
    known = list(classes)
    if name is None:
        return default_class(known, virtualization=virtualization)
    return next((one for one in known if one.name == name), None)


def scratch_class(configured: str | None, classes: Iterable[StorageClass]) -> str | None:
    """Return the class of scratch space from CDIConfig if it exists, else None for that of the volume being filled."""
    return configured if configured and any(one.name == configured for one in classes) else None


def _newest(classes: Iterable[StorageClass]) -> StorageClass | None:
    by_name = sorted(classes, key=lambda one: one.name)
    # max() returns the first of equal elements, which is the first by name.
    return max(by_name, key=lambda one: one.created, default=None)
