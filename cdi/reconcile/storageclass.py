"""StorageClasses as they matter for volumes, and which of them is meant where none is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from cdi.api.names import ANN_CLONE_STRATEGY, ANN_DEFAULT_CLASS, ANN_DEFAULT_VIRT_CLASS
from cdi.api.storageprofile import CloneStrategy

NO_PROVISIONER = "kubernetes.io/no-provisioner"
"""Of a class whose volumes are made by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageClass:
    """What a StorageClass says of itself."""

    name: str
    provisioner: str
    uid: str = ""
    created: str = ""
    """RFC 3339, as the API server writes it: texts of the same form, so that they can be compared."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    waits: bool = False
    """Volumes are bound when their first consumer is scheduled."""
    expands: bool = False
    """Volumes can be enlarged."""

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """From an object of the API; what is missing in it is empty."""
        metadata = body.get("metadata") or {}
        return cls(
            name=metadata.get("name") or "",
            uid=metadata.get("uid") or "",
            created=metadata.get("creationTimestamp") or "",
            provisioner=body.get("provisioner") or "",
            parameters=body.get("parameters") or {},
            annotations=metadata.get("annotations") or {},
            waits=body.get("volumeBindingMode") == "WaitForFirstConsumer",
            expands=bool(body.get("allowVolumeExpansion")),
        )

    @property
    def is_default(self) -> bool:
        """Kubernetes takes it for claims that name no class."""
        return self.annotations.get(ANN_DEFAULT_CLASS) == "true"

    @property
    def is_virt_default(self) -> bool:
        """It is taken for disks of virtual machines that name no class."""
        return self.annotations.get(ANN_DEFAULT_VIRT_CLASS) == "true"

    @property
    def clone_strategy(self) -> CloneStrategy | None:
        """What its annotation asks for; None where it says nothing that is known."""
        asked = self.annotations.get(ANN_CLONE_STRATEGY, "")
        return CloneStrategy(asked) if asked in set(CloneStrategy) else None


def default_class(classes: Iterable[StorageClass], *, virtualization: bool = True) -> StorageClass | None:
    """The class of a volume that names none: for `virtualization` (disks, not archives) its own default goes first.

    Of several defaults the newest counts, and of equally old ones the first by name, as in Kubernetes.
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
    """The class of that name, where one is given; otherwise the default.

    None where there is no such class.  The name "" asks for a volume without a class, which has none either.
    """
    known = list(classes)
    if name is None:
        return default_class(known, virtualization=virtualization)
    return next((one for one in known if one.name == name), None)


def scratch_class(configured: str | None, classes: Iterable[StorageClass], target: str | None = None) -> str | None:
    """The class of scratch space: the configured one if there is such a class, else Kubernetes' default, else that of
    the volume that is filled (`target`).
    """
    known = list(classes)
    if configured and any(one.name == configured for one in known):
        return configured
    default = default_class(known, virtualization=False)
    return default.name if default is not None else target


def _newest(classes: Iterable[StorageClass]) -> StorageClass | None:
    by_name = sorted(classes, key=lambda one: one.name)
    # max() gives the first of equals: the first by name.
    return max(by_name, key=lambda one: one.created, default=None)
