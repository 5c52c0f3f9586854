"""Values that a reconciler is given and returns: volumes, their sources, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from cdi.api.errors import CdiError
from cdi.api.job import Failure
from cdi.api.overhead import DEFAULT_OVERHEAD
from cdi.api.sources import SourceBlank, SourceGcs, SourceHttp, SourceKind, SourceRegistry, SourceS3
from cdi.reconcile.clone.types import SourceKind as CloneKind
from cdi.reconcile.storage.capabilities import PropertySet

Operation = Literal["Import", "Upload", "Clone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRef:
    """A reference to an object in a PVC's ``dataSourceRef`` (or ``dataSource``)."""

    group: str
    """The API group; empty for the core group."""
    kind: str
    name: str
    namespace: str | None = None
    """None for the PVC's own namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PVC:
    """A PersistentVolumeClaim."""

    namespace: str
    name: str
    uid: str
    phase: str
    """Pending, Bound or Lost."""
    provisioning_message: str = ""
    """The reason why it is not bound, as a sentence; empty if nothing is wrong."""
    provisioning_reason: str = ""
    """Reason of the event that reported it; empty if unknown."""
    capacity: int | None = None
    """Size in bytes; None until it is bound."""
    controller_kind: str = ""
    controller_name: str = ""
    controller_uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    volume_mode: str = "Filesystem"
    access_modes: tuple[str, ...] = ()
    storage_class: str | None = None
    """``spec.storageClassName``: None if unset, empty for no class at all."""
    requested: int | None = None
    """Requested size in bytes (``spec.resources.requests.storage``)."""
    volume_name: str = ""
    """The PersistentVolume that it is bound to or requests (``spec.volumeName``)."""
    data_ref: DataRef | None = None
    selected_node: str = ""
    """The node chosen for its first consumer (``volume.kubernetes.io/selected-node``)."""
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    """Finalizers, which keep a deleted PVC in existence."""
    version: str = ""
    """Its resourceVersion; empty if there are no concurrent writers."""
    path: str | None = None
    """The volume's directory, if it is on this machine."""


WITHOUT_CLAIM = ("Released", "Failed")
"""Phases of a PersistentVolume whose claim was deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A PersistentVolume."""

    name: str
    uid: str
    claim_uid: str = ""
    """UID of the PVC that ``spec.claimRef`` names; empty if it names none."""
    claim_namespace: str = ""
    claim_name: str = ""
    phase: str = "Bound"
    """Pending, Available, Bound, Released or Failed."""
    capacity: int | None = None
    """Size in bytes."""
    volume_mode: str = "Filesystem"
    access_modes: tuple[str, ...] = ()
    storage_class: str = ""
    reclaim: str = "Delete"
    """``persistentVolumeReclaimPolicy``: Delete, Retain or Recycle."""
    filled_for: str = ""
    """UID of the PVC that the volume was handed over to with complete content; empty if it never was."""
    deleting: bool = False
    version: str = ""
    """Its resourceVersion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Service, through which a pod is reached."""

    name: str
    uid: str
    claim: str = ""
    """UID of its controlling owner, the PVC that it was created for; empty if it has none."""
    deleting: bool = False

    @property
    def is_unowned(self) -> bool:
        """True if the Service was not created by this controller."""
        return not self.claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A Secret or ConfigMap that exists."""

    version: str
    """A token that changes with its content."""
    keys: frozenset[str]
    refused: str = ""
    """Why it must not be read, and the remedy; if set, nothing else is known about it."""


# --- storage ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Values of a StorageProfile for fields that a DataVolume's ``storage`` leaves unset."""

    access_modes: tuple[str, ...] = ("ReadWriteOnce",)
    volume_mode: str = "Filesystem"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageDefaults:
    """The defaults that a storage class offers."""

    storage_class: str | None
    """None if the PVC names no class and there is no default class."""
    exists: bool = True
    """Whether the StorageClass exists; a class without an object can still name manually created volumes."""
    sets: tuple[PropertySet, ...] = ()
    """The supported pairs of access modes and volume mode, best first."""
    learned: bool = False
    """Whether `sets` is inferred from existing volumes; later volumes may show more."""
    overhead: Fraction = DEFAULT_OVERHEAD
    """Filesystem overhead as a fraction of the disk's size."""
    minimum: int = 0
    """The smallest volume that the class provisions, in bytes."""


# --- sources ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """A source outside the cluster, or a blank disk."""

    kind: SourceKind
    source: SourceHttp | SourceS3 | SourceGcs | SourceRegistry | SourceBlank
    kept_in: str | None = None
    """Name of the VolumeImportSource that holds the source; None if the DataVolume does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A source that a client uploads."""

    kept_in: str | None = None
    """Name of the VolumeUploadSource that requests it; None if the DataVolume does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """Another PVC or a snapshot as the source."""

    namespace: str
    name: str
    kind: CloneKind = "PersistentVolumeClaim"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalPopulator:
    """A dataSource or dataSourceRef of another populator or of the storage, which fills the PVC."""

    name: str
    """Name of the object that it refers to."""


Origin = Import | Upload | Clone | ExternalPopulator


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """The result for a source that cannot be used until something else changes."""

    reason: str
    message: str
    """What is missing, and the remedy."""
    event: str | None = None
    words: str = ""
    """The sentence of KubeVirt's CDI for the event and, if there is no PVC, for the conditions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A source that can never be used."""

    failure: Failure

    @classmethod
    def because(cls, error: CdiError) -> Rejected:
        return cls(failure=Failure.from_error(error))


ResolvedSource = Origin | Pending | Rejected
"""What a DataVolume's source is; resolved once for each reconcile (`cdi.reconcile.source.resolve_source`)."""
