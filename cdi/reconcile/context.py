"""Input of a reconciler: the facts observed before the call, and the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.job import Failure, Outcome, Progress, Proxy
from cdi.api.overhead import NO_OVERHEAD
from cdi.api.populators import VolumeImportSource, VolumeUploadSource
from cdi.reconcile.actions import Action, ObjectRef
from cdi.reconcile.storage.classes import StorageClass

if TYPE_CHECKING:
    from cdi.reconcile.clone.lister import CloneLister
    from cdi.reconcile.storage.claim_defaults import StorageDefaults  # which needs `ResolvedConfig`


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
class PodBlocker:
    """The reason why a pod does not run although none of its containers has failed yet."""

    reason: str
    """A reason of the Running condition: Unschedulable, ImagePullFailed, ContainerCreating, NodeLost …"""
    message: str
    """Cause and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The pod of a worker attempt."""

    name: str
    uid: str
    claim: str
    """UID of its controlling owner, the PVC that it fills."""
    node: str = ""
    """The node's name; empty until it is scheduled."""
    started: bool = False
    """Whether its container is running or has run."""
    scheduled: bool | None = None
    """Status of the PodScheduled condition; None if the condition is absent."""
    hold: PodBlocker | None = None
    deleting: bool = False
    limits: str = ""
    """The annotation with its limits (`cdi.api.job.Limits`)."""
    scratch: bool = False
    """Whether it has scratch space."""
    serves: bool = False
    """Whether it accepts data: an upload server, or the target pod of a clone."""
    ready: bool = False
    """Whether its container reports ready."""
    restarts: bool = False
    """Whether the kubelet restarts its container after a failure, which is the next attempt."""
    restarted: bool = False
    """Whether its container has been restarted."""
    spec: str = ""
    """Digest of the template that it was created from."""
    address: str = ""
    """Its pod IP; empty until it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The newest attempt to fill a PVC."""

    attempt: int
    running: bool
    """Whether it has not ended; its container may not have started yet (`Pod.started`)."""
    started: float
    """Seconds since the epoch."""
    ended: float | None = None
    progress: Progress | None = None
    outcome: Outcome | None = None
    """Set once it is not running; a worker that ended without an outcome has a failure ``WorkerLost``."""
    fingerprint: str = ""
    """Digest of the inputs that it was started with (`StartWorker.fingerprint`)."""
    upload: str = ""
    pod: Pod | None = None
    """None where workers are processes."""
    journal: str = ""
    """State for the next attempt, if its volume cannot keep it."""
    refused: Failure | None = None
    """Why it rejected the last upload; it is waiting for another one."""
    previous: Worker | None = None
    """The attempt before this one, if it ran in the same pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A Secret or ConfigMap that exists."""

    version: str
    """A token that changes with its content."""
    keys: frozenset[str]
    refused: str = ""
    """Why it must not be read, and the remedy; if set, nothing else is known about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPodConfig:
    """Settings for worker pods, from the controller's options, CDIConfig and the CDI object."""

    image: str = ""
    """The container image of the worker."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Names from CDIConfig's imagePullSecrets."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """CDIConfig's podResourceRequirements as an API object (``limits``, ``requests``).

    Omitted values get the defaults of `cdi.reconcile.pods.builder`.
    """
    placement: Mapping[str, Any] = field(default_factory=dict)
    """The CDI object's ``spec.workload`` as an API object: ``nodeSelector``, ``affinity``, ``tolerations``."""
    verbosity: int = 1
    """CDIConfig's logVerbosity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """The resolved values of CDIConfig."""

    preallocation: bool = False
    proxy: Proxy = field(default_factory=Proxy)
    trusted_ca: ObjectRef | None = None
    """The CA certificates of the proxy."""
    insecure_registries: frozenset[str] = frozenset()
    """Registries as ``host`` or ``host:port``."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels added to every created object."""
    scratch_class: str | None = None
    """The storage class of scratch space; None for that of the volume being filled."""
    overhead: Fraction = NO_OVERHEAD
    """Filesystem overhead as a fraction of the disk's size (`cdi.api.overhead`)."""
    overheads: Mapping[str, Fraction] = field(default_factory=dict)
    """Filesystem overhead by storage class."""
    adopts: bool = False
    """Whether a DataVolume adopts a PVC of its name that has no controller, unless its annotation says otherwise."""
    renders_claims: bool = False
    """Whether the webhook completes new PVCs with the label applyStorageProfile."""
    clone_strategy: str | None = None
    """The CDI object's cloneStrategyOverride."""
    pods: WorkerPodConfig = field(default_factory=WorkerPodConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Values of a StorageProfile for fields that a DataVolume's ``storage`` leaves unset."""

    access_modes: tuple[str, ...] = ("ReadWriteOnce",)
    volume_mode: str = "Filesystem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Retry policy for failed attempts, with a jitter of 25 % either way."""

    budget: int | None = 10
    """Maximum number of consecutive transient failures without progress; None for no limit."""
    base: float = 1.0
    """Delay in seconds before the second attempt after a transient failure; it doubles with each further one."""
    longest: float = 120.0
    """Maximum of these delays, in seconds."""
    base_on_change: float = 10.0
    """Delay in seconds before the second attempt after a failure that only a user can resolve; it doubles as well."""
    longest_on_change: float = 60.0
    """Maximum of these delays, in seconds."""
    patience: float = 60.0
    """Polling interval, in seconds, for state whose changes cause no event."""


CLUSTER_RETRIES: Final = Retries(budget=None, longest=240.0, longest_on_change=240.0)
"""Unlimited retries with delays of up to five minutes, as in KubeVirt's CDI: no user is waiting in the foreground."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Capabilities of the environment."""

    local_files: bool = False
    """Whether manifests may name files of this machine (a key ring)."""
    snapshots: bool = False
    image_streams: bool = False
    cluster: bool = False
    """Whether workers are pods and other controllers provision volumes; `ReconcileContext` then holds their objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLayout:
    """Paths that a worker uses for its volume, scratch space and inputs."""

    disk: str
    directory: str
    """The volume itself, for archives."""
    journal: str | None
    scratch: str | None
    inputs: str
    """Parent directory, with one directory for each mount."""


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


Operation = Literal["Import", "Upload", "Clone"]
