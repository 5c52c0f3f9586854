"""Parts of a PersistentVolumeClaim's spec, as in Kubernetes and in the form that a storage profile completes."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from cdi.api.meta import LabelSelector, TypedLocalObjectReference, TypedObjectReference
from cdi.api.model import Amount, Model
from cdi.api.quantity import Quantity


class AccessMode(enum.StrEnum):
    """Access mode of a volume."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_ONLY_MANY = "ReadOnlyMany"
    READ_WRITE_MANY = "ReadWriteMany"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"


class VolumeMode(enum.StrEnum):
    """Volume mode: block device or file system."""

    FILESYSTEM = "Filesystem"
    BLOCK = "Block"
    FROM_STORAGE_PROFILE = "FromStorageProfile"
    """Only on a claim that uses its StorageProfile: the profile's volume mode is inserted."""


class VolumeResources(Model):
    """How much a volume must hold."""

    requests: dict[str, Amount] | None = None
    """At least this much; `storage` is the size in bytes."""
    limits: dict[str, Amount] | None = None
    """At most this much."""


class StorageSpec(Model):
    """PVC template; fields that are not set are completed from the StorageProfile."""

    access_modes: list[str] | None = None
    """Access modes that the volume should have; those of the storage profile where none is given."""
    selector: LabelSelector | None = None
    """Volumes to consider for binding."""
    resources: VolumeResources | None = None
    """The size of the disk; the claim is made as much larger as the file system needs."""
    volume_name: str | None = None
    """The PersistentVolume to bind to."""
    storage_class_name: str | None = None
    """The StorageClass that the claim asks for."""
    volume_mode: str | None = None
    """Filesystem or Block; that of the storage profile where none is given."""
    data_source: TypedLocalObjectReference | None = None
    """A snapshot, claim or populator that fills the volume instead of CDI."""
    data_source_ref: TypedObjectReference | None = None
    """As dataSource, of any kind; another namespace is refused."""

    @property
    def size(self) -> Quantity | None:
        """Requested size."""
        requests = self.resources.requests if self.resources else None
        return requests.get("storage") if requests else None


class ClaimSpec(StorageSpec):
    """A PersistentVolumeClaim's spec, taken as it is."""

    access_modes: list[str] | None = None
    """The access mode that the volume must have; exactly one."""
    resources: VolumeResources | None = None
    """The size of the volume, file system included."""
    volume_mode: str | None = None
    """Filesystem (the default) or Block."""
    volume_attributes_class_name: str | None = None
    """The VolumeAttributesClass that tunes the volume."""


AccessModes = Annotated[
    list[str],
    Field(
        json_schema_extra={
            "maxItems": 4,
            "x-kubernetes-validations": [
                {
                    "rule": "self.all(am, am in ['ReadWriteOnce', 'ReadOnlyMany', 'ReadWriteMany', "
                    "'ReadWriteOncePod'])",
                    "message": "Illegal AccessMode",
                }
            ],
        }
    ),
]
"""List of access modes in a StorageProfile."""
