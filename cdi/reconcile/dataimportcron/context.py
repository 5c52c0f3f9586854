"""Input of the DataImportCron reconciler: the facts observed before the call, and the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Any, Literal, Protocol

from cdi.api.dataimportcron import DataImportCron
from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.golden import GoldenSettings, parse_golden_settings
from cdi.api.names import POLL_ACCOUNT
from cdi.api.storageprofile import StorageProfile
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.context import Rejection
from cdi.reconcile.pods.builder import INPUTS
from cdi.reconcile.settings import Platform, ResolvedConfig
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.storage.profiles import SnapshotClass
from cdi.reconcile.types import PVC, Input

Body = Mapping[str, Any]
"""An API object, which must not be modified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneRight:
    """A service account that is to clone a PVC of another namespace."""

    namespace: str
    """The service account's namespace."""
    service_account: str
    source_namespace: str
    source_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStream:
    """Result of reading an ImageStream."""

    body: Body | None = None
    failure: str = ""
    """Why there is no body: cause and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTask:
    """A poll or proof that runs, or has run, as a process of this machine."""

    running: bool
    started: float = 0.0
    """Seconds since the epoch."""
    ended: float | None = None
    """Seconds since the epoch."""
    result: str = ""
    """JSON of its result; empty if it ended without one."""


class CronLister(Protocol):
    """A read-only view of the observed objects; lookups do no I/O.

    Methods with ``_of`` select by the label ``cdi.kubevirt.io/dataImportCron`` in the namespace of the DataImportCron,
    and return the objects sorted by name. Objects of the installation's namespace are selected by both labels
    ``dataImportCronNs`` and ``dataImportCron``.
    """

    def cron(self, namespace: str, name: str) -> DataImportCron | None: ...

    def data_volume(self, namespace: str, name: str) -> DataVolume | None: ...

    def data_volumes_of(self, namespace: str, cron: str) -> tuple[DataVolume, ...]: ...

    def claim(self, namespace: str, name: str) -> PVC | None: ...

    def claims_of(self, namespace: str, cron: str) -> tuple[PVC, ...]: ...

    def data_source(self, namespace: str, name: str) -> DataSource | None: ...

    def data_sources_of(self, namespace: str, cron: str) -> tuple[DataSource, ...]: ...

    def input(self, ref: ObjectRef) -> Input | None:
        """Return keys and version of a Secret or ConfigMap; None if it does not exist."""

    def descendants_of(self, namespace: str, cron: str) -> tuple[PVC, ...]:
        """Return the PVCs of all namespaces whose annotation `GOLDEN_ORIGIN` names this DataImportCron."""

    def clones_in_progress(self, namespace: str, name: str) -> tuple[str, ...]:
        """Return ``namespace/name`` of the unfinished clones of the PVC or VolumeSnapshot of this name.

        A clone into another namespace is one only if it is authorized.
        """

    def local_task(self, task: Literal["poll", "proof"], uid: str) -> LocalTask | None:
        """Return the newest task of this kind for a DataImportCron (poll) or PVC (proof); on one machine only."""

    # The methods below are called in a cluster only (`Platform.cluster`).

    def snapshot(self, namespace: str, name: str) -> Snapshot | None: ...

    def snapshots_of(self, namespace: str, cron: str) -> tuple[Snapshot, ...]: ...

    def storage_class(self, name: str) -> StorageClass | None: ...

    def default_storage_class(self, *, virtualization: bool) -> StorageClass | None:
        """Return the class for PVCs that name none (`cdi.reconcile.storage.classes.default_class`)."""

    def storage_profile(self, storage_class: str) -> StorageProfile | None: ...

    def snapshot_classes(self) -> tuple[SnapshotClass, ...]: ...

    def may_clone(self, right: CloneRight) -> bool | None:
        """Return whether the API server allows the clone; None if it has not been asked yet.

        After None the plan is discarded: the API server is asked, and the reconcile repeated with the answer.
        """

    def image_stream(self, namespace: str, name: str) -> ImageStream | None:
        """Return an ImageStream; None if it has not been read yet, with the same consequence as in `may_clone`."""

    def cron_jobs_of(self, namespace: str, cron: str) -> tuple[Body, ...]:
        """Return the CronJobs in the installation's namespace."""

    def jobs_of(self, namespace: str, cron: str) -> tuple[Body, ...]:
        """Return the Jobs in the installation's namespace."""

    def job_pods(self, job: str) -> tuple[Body, ...]:
        """Return the pods of a Job in the installation's namespace (label ``batch.kubernetes.io/job-name``)."""

    def pod(self, namespace: str, name: str) -> Body | None:
        """Return a pod with the label ``app: containerized-data-importer``."""

    def running_polls(self) -> Mapping[str, int]:
        """Return the number of unfinished poll Jobs and poll pods, by the namespace of the DataImportCron."""

    def waiting_polls(self, now: float) -> Mapping[str, int]:
        """Return the number of DataImportCrons that wait for their turn to poll, by namespace."""

    def running_proofs(self) -> Mapping[str, int]:
        """Return the number of unfinished proof pods, by namespace."""

    def waiting_proofs(self, now: float) -> Mapping[str, int]:
        """Return the number of versions that wait for their turn to be proven, by namespace."""

    def offers_device(self, resource: str) -> bool:
        """Return whether a ready node offers an extended resource, such as ``devices.kubevirt.io/kvm``."""


def settings_of(annotations: Mapping[str, str] | None) -> tuple[GoldenSettings, str]:
    """Return the settings in annotations and why they are invalid; invalid ones hold everything as it is."""
    try:
        return parse_golden_settings(annotations), ""
    except InvalidManifest as error:
        return GoldenSettings(hold=True), str(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class CronContext:
    """The complete input for reconciling one DataImportCron."""

    now: float
    """Seconds since the epoch."""
    cron: DataImportCron
    objects: CronLister
    settings: GoldenSettings = field(default_factory=GoldenSettings)
    settings_problem: str = ""
    """Why the annotations of the settings are invalid; `settings` then hold everything as it is."""
    config: ResolvedConfig = field(default_factory=ResolvedConfig)
    platform: Platform = field(default_factory=Platform)
    install_namespace: str = "cdi"
    owner: Mapping[str, Any] | None = None
    """Owner reference to the CDI object, for objects in the installation's namespace; None if there is none."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the programs that import, by name (cdi, qemu), for records of origin."""
    poll_account: str = POLL_ACCOUNT
    """Service account of poll pods, which has no rights."""
    poll_inputs: str = INPUTS
    """Directory below which a poll finds Secrets and ConfigMaps; on one machine another one for each DataImportCron."""
    zone: tzinfo = UTC
    """Time zone of schedules that name none."""
    refusal: Rejection | None = None
    """The rejected action of the previous plan, set only for the reconcile that follows at once with the same input."""

    @property
    def namespace(self) -> str:
        return self.cron.metadata.namespace or ""

    @property
    def name(self) -> str:
        return self.cron.metadata.name or ""

    @property
    def uid(self) -> str:
        return self.cron.metadata.uid or ""

    @property
    def cron_reference(self) -> dict[str, Any]:
        """Owner reference of the objects that the DataImportCron controls."""
        return {
            "apiVersion": self.cron.group_version,
            "kind": self.cron.kind_name(),
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.cron.metadata.annotations or {}

    @property
    def labels(self) -> Mapping[str, str]:
        return self.cron.metadata.labels or {}

    @property
    def data_source_name(self) -> str:
        return self.cron.spec.managed_data_source
