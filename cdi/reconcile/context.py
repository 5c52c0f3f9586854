"""Input of a reconciler: the facts observed before the call, and the time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.job import Failure
from cdi.api.populators import VolumeImportSource, VolumeUploadSource
from cdi.reconcile.actions import Action, ObjectRef
from cdi.reconcile.clone.lister import CloneLister
from cdi.reconcile.pods.types import VolumeLayout, Worker
from cdi.reconcile.settings import Platform, ResolvedConfig, Retries
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.types import PVC, Input, Profile, Service, StorageDefaults, Volume


class InputLister(Protocol):
    """A view of the Secrets and ConfigMaps; lookups do no I/O."""

    def input(self, ref: ObjectRef) -> Input | None: ...


class Lister(Protocol):
    """A read-only view of the observed objects; lookups do no I/O."""

    def claim(self, namespace: str, name: str) -> PVC | None: ...

    def data_volume(self, namespace: str, name: str) -> DataVolume | None: ...

    def data_source(self, namespace: str, name: str) -> DataSource | None: ...

    def input(self, ref: ObjectRef) -> Input | None: ...

    def profile(self, storage_class: str | None) -> Profile: ...

    # The methods below are called in a cluster only (`Platform.cluster`).

    def storage_class(self, name: str) -> StorageClass | None: ...

    def default_storage_class(self, *, virtualization: bool) -> StorageClass | None:
        """Return the class for PVCs that name none (`cdi.reconcile.storage.classes.default_class`).

        Args:
            virtualization: Prefer the default class for virtual machines.

        """

    def csi_driver(self, provisioner: str) -> bool:
        """Return whether a CSIDriver object of this name exists."""

    def storage_defaults(self, storage_class: str | None, *, virtualization: bool) -> StorageDefaults:
        """Return the defaults for a PVC of this class (None: no class named); see `claim_defaults.storage_defaults`."""

    def volume(self, name: str) -> Volume | None: ...

    def volumes_for(self, namespace: str, claim: str) -> tuple[Volume, ...]:
        """Return the PersistentVolumes whose claimRef names this PVC, which need not exist."""

    def users(self, namespace: str, claim: str) -> tuple[str, ...]:
        """Return the names of unfinished pods, not created by CDI, that use the volume of a PVC or are about to."""

    def import_source(self, namespace: str, name: str) -> VolumeImportSource | None: ...

    def upload_source(self, namespace: str, name: str) -> VolumeUploadSource | None: ...

    def service(self, namespace: str, name: str) -> Service | None: ...

    def worker(self, namespace: str, pod: str) -> Worker | None:
        """Return the worker in the pod of this name, as parsed by `cdi.reconcile.pods.status.worker_from_pod`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An action that the API server rejected."""

    action: Action
    failure: Failure
    """The failure made from the `CdiError` by `cdi.reconcile.datavolume.rejection.refusal_of`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileContext:
    """The complete input for reconciling one DataVolume.

    In a cluster it is assembled by `cdi.reconcile.context_builder.build_context`.
    """

    now: float
    """Seconds since the epoch."""
    datavolume: DataVolume
    """The DataVolume; synthesized if the PVC itself requests an import (`synthetic`)."""
    objects: Lister
    worker: Worker | None
    """The worker of the PVC being filled: the prime PVC if the PVC uses a populator, else the DataVolume's own PVC."""
    layout: VolumeLayout | None
    """None until the PVC exists."""
    config: ResolvedConfig = field(default_factory=ResolvedConfig)
    retries: Retries = field(default_factory=Retries)
    platform: Platform = field(default_factory=Platform)
    has_worker_slot: bool = True
    """Whether there is a free slot for one more worker."""
    queue_message: str = ""
    """The queue message, if `has_worker_slot` is False."""
    synthetic: bool = False
    """There is no DataVolume: events are recorded on the PVC, and no status is written."""
    prime: PVC | None = None
    """The prime PVC, which is filled in place of the target (`cdi.api.names.prime_claim`)."""
    scratch: PVC | None = None
    """The scratch PVC of the PVC being filled."""
    service: Service | None = None
    """The Service with the name of that PVC's upload server, whether or not it belongs to the PVC."""
    clones: CloneLister | None = None
    """Further facts for clones; in a cluster only."""
    refusal: Rejection | None = None
    """The rejected action of the previous plan, set only for the reconcile that follows at once with the same input.

    The plan then omits that action, and its status and events give the reason. The next reconcile tries it again.
    """
